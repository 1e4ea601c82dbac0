"""Sends commands to a daemon at planned moments, over one pipelined connection, until each has its answer.

Open loop: a command goes out when it is due, whether or not those before it were answered, up to `IN_FLIGHT_MAX` of
them at once. `behind_ns` is how far the sending fell behind the plan at worst.

**Each command has its effect once.** What failed in a way that may pass (a worker is being restarted, the connection
was lost) is sent again after a pause; commands are told apart by their request_id, and a late retry of a machine's
start is stale by its rate_seq. Retries may overtake later commands of the same user: the order that counts is the
daemon's, by `entry_id`.

From instants in replies it learns how far billing time and the wall clock of this host may lie apart (`Skew`), so that
arrivals stamped by the one can be judged by the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from billing.api.client import Client
from billing.api.errors import BillingError
from shards.clock import boot_now_ns, wall_now_ns

IN_FLIGHT_MAX: Final = 4096
BATCH_MAX: Final = 256  # sent in one turn of the loop
TRIES_MAX: Final = 300
RETRY_PAUSE_NS: Final = 100_000_000
PAUSE_S: Final = 0.001
SECOND_NS: Final = 10**9

Request = tuple[str, list[Any]]  # method, params
PASSING: Final = frozenset(
    {"UNKNOWN_ACCOUNT"}
)  # refused only because the account's first top-up is itself being retried


class Skew:
    """By how much billing time is ahead of the wall clock, as far as replies tell.

    A command is stamped after it was sent and before it was answered, so the difference lies between `low_ns` and
    `high_ns` of the reply that came back fastest. (Of others the stamp may be a little older than the sending: a worker
    reads its clock once a turn.)
    """

    def __init__(self) -> None:
        self.low_ns = -(2**63)
        self.high_ns = 2**63

    def learn(self, at_ns: int, sent_ns: int, received_ns: int) -> None:
        """A command stamped `at_ns` left and was answered at these instants of the wall clock."""
        if at_ns - received_ns > self.low_ns:
            self.low_ns = at_ns - received_ns
            self.high_ns = at_ns - sent_ns

    @property
    def shift_ns(self) -> int:
        """What to add to an instant of the wall clock: nothing as long as the two may be equal."""
        return max(self.low_ns, min(self.high_ns, 0))


class Drive:
    """One run of `count` requests. `request(index)` makes one, `on_answer(index, reply)` gets each first answer;
    `failed` holds what was refused for good: (index, the error)."""

    def __init__(
        self,
        client: Client,
        count: int,
        request: Callable[[int], Request],
        on_answer: Callable[[int, dict[str, Any]], None],
    ) -> None:
        self.answered = 0
        self.retries = 0
        self.stale = 0
        self.behind_ns = 0
        self.failed: list[tuple[int, BillingError]] = []
        self.skew = Skew()
        self._client = client
        self._count = count
        self._request = request
        self._on_answer = on_answer
        self._in_flight = 0
        self._tries: dict[int, int] = {}
        self._again: deque[tuple[int, int]] = deque()  # (boot instant, index), in this order

    async def run(self, due_ns: Sequence[int] | None, on_progress: Callable[[int], None]) -> None:
        """Sends all, the n-th `due_ns[n]` after now (or as fast as it goes), and waits for all answers."""
        started_ns = boot_now_ns()
        sent = 0
        while True:
            now_ns = boot_now_ns() - started_ns
            room = min(BATCH_MAX, IN_FLIGHT_MAX - self._in_flight)
            while room > 0 and self._again and self._again[0][0] <= now_ns + started_ns:
                self._send(self._again.popleft()[1])
                room -= 1
            end = min(self._count, sent + room)
            first = sent
            while sent < end and (due_ns is None or due_ns[sent] <= now_ns):
                self._send(sent)
                sent += 1
            if sent > first and due_ns is not None:
                self.behind_ns = max(self.behind_ns, now_ns - due_ns[first])
            self._client.flush()
            on_progress(sent)
            if sent == self._count and not self._in_flight and not self._again:
                return
            await asyncio.sleep(0 if sent == end and sent < self._count and room > 0 else PAUSE_S)

    def _send(self, index: int) -> None:
        method, params = self._request(index)
        self._in_flight += 1
        self._client.send(method, params, partial(self._on_reply, index, wall_now_ns()))

    def _on_reply(self, index: int, sent_ns: int, error: BillingError | None, reply: Any) -> None:
        self._in_flight -= 1
        if error is None:
            if not reply.get("replayed"):
                self.skew.learn(reply["at_ns"], sent_ns, wall_now_ns())
            self.answered += 1
            self._on_answer(index, reply)
            return
        tries = self._tries.get(index, 0) + 1
        if (error.retry or error.name in PASSING) and tries < TRIES_MAX:
            self._tries[index] = tries
            self.retries += 1
            self._again.append((boot_now_ns() + RETRY_PAUSE_NS, index))
        elif error.name == "STALE_RATE" and tries > 1:
            self.stale += 1
        else:
            self.failed.append((index, error))
