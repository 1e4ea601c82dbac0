"""Clients that remember: the load of every fault that strikes the real daemon, and the proof that it lost nothing.

`Writer`s top up by one nano a time, each call under a request_id of its own. What was answered is noted; what was not
is repeated afterwards under its request_id, which says whether it had been applied. Then every balance must be exactly
the number of calls, an account's entries must be numbered 1 … that number, and its history must name each request
once. So an answer that was lost, doubled or invented shows.

`Spenders` make users whose money runs out while the endpoint refuses every call. Each of these must be owed its cutoff,
with the instant that the daemon had named before, until the endpoint accepts it; and nobody else may be.

All that clients know is in the memory of this process, which no fault of the daemon, its host or its disk touches.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from tests.system.rpc import ConnectionLost, Rpc

CLIENTS = 8
USERS_EACH = 3
IN_FLIGHT = 16
SETTLE_CHUNK = 512
RUNS_OUT_NANOS, PER_SECOND_NANOS = 100, 1000  # a spender's money lasts a tenth of a second
REFUSALS = ("UNAVAILABLE", "BUSY")
FULL = "the disk is full"


class Writer:
    """One client: its own users, the calls it made, and what is not known of them."""

    def __init__(self, name: str) -> None:
        self.users = [f"{name}_{index}" for index in range(USERS_EACH)]
        self.called = dict.fromkeys(self.users, 0)
        self.unknown: list[tuple[str, str]] = []
        self.last_entry = dict.fromkeys(self.users, 0)
        self.answered = self.refused = 0
        self.full: set[str] = set()  # refused since the disk was full: these must not have been applied
        self.trusting = True  # else whatever is answered is noted as unknown

    async def run(self, port: int, stop: asyncio.Event) -> None:
        """Calls, pipelined, until told to stop; reconnects when the connection breaks."""
        rng = random.Random(self.users[0])
        while not stop.is_set():
            try:
                rpc = await Rpc.connect(port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                while not stop.is_set():
                    outcomes = await asyncio.gather(
                        *(self.call_once(rpc, rng.choice(self.users)) for _ in range(IN_FLIGHT))
                    )
                    if "lost" in outcomes:
                        break
                    if "refused" in outcomes:
                        await asyncio.sleep(0.02)
            finally:
                rpc.close()
            await asyncio.sleep(0)

    async def call_once(self, rpc: Rpc, user: str) -> str:
        """One call: "answered", "refused" or "lost"."""
        self.called[user] += 1
        request_id = f"{user}-{self.called[user]}"
        try:
            error, result = await rpc.call("top_up", user, 1, {"request_id": request_id})
        except ConnectionLost:
            self.unknown.append((user, request_id))
            return "lost"
        if not self.trusting:
            self.unknown.append((user, request_id))
            return "lost"
        if error is not None:
            assert error.startswith(REFUSALS), error
            self.unknown.append((user, request_id))
            self.refused += 1
            if FULL in error:
                self.full.add(request_id)
            return "refused"
        self.answered += 1
        assert not result["replayed"]
        assert result["entry_id"] > self.last_entry[user]
        self.last_entry[user] = result["entry_id"]
        return "answered"

    async def settle(self, rpc: Rpc) -> tuple[int, int]:
        """Repeats what is unknown; returns how many of these had been applied, and how many not."""
        applied = 0
        for first in range(0, len(self.unknown), SETTLE_CHUNK):
            chunk = self.unknown[first : first + SETTLE_CHUNK]
            calls = (rpc.ask("top_up", user, 1, {"request_id": request_id}) for user, request_id in chunk)
            for (user, request_id), result in zip(chunk, await asyncio.gather(*calls), strict=True):
                applied += result["replayed"]
                assert not (result["replayed"] and request_id in self.full), f"{request_id} was refused, and applied"
                self.last_entry[user] = max(self.last_entry[user], result["entry_id"])
        settled, self.unknown = len(self.unknown), []
        return applied, settled - applied

    async def check(self, rpc: Rpc) -> None:
        """Each balance is the number of calls."""
        users = [user for user in self.users if self.called[user]]
        for user, account in zip(users, await asyncio.gather(*(rpc.ask("get_account", u) for u in users)), strict=True):
            assert account["balance_nanos"] == self.called[user], f"{user}: {account}, {self.called[user]} calls"
            assert account["entry_id"] == self.last_entry[user] == self.called[user], user

    async def check_history(self, rpc: Rpc) -> int:
        """Every request is in the history once, and nothing else is; how many there are."""
        for user in self.users:
            rows: list[dict[str, Any]] = []
            while len(rows) < self.called[user]:
                page_options = {"before": rows[-1]["entry_id"]} if rows else {}
                page = await rpc.ask("history", user, {"limit": 1000, **page_options})
                assert page, f"{user}: {len(rows)} rows for {self.called[user]} calls"
                rows += page
            assert [row["entry_id"] for row in rows] == list(range(self.called[user], 0, -1)), user
            request_ids = {f"{user}-{number}" for number in range(1, self.called[user] + 1)}
            assert {row["request_id"] for row in rows} == request_ids, user
        return sum(self.called.values())


class Spenders:
    """Users whose money runs out, a few more each time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made = 0
        self.due: dict[str, int] = {}  # user -> the instant that was answered
        self.maybe: set[str] = set()  # of these it is not known whether they spend
        self.trusting = True

    async def more(self, port: int, stop: asyncio.Event) -> None:
        """Two more users with a little money and a rate, unless the connection breaks before that is known."""
        for _ in range(2):
            if stop.is_set():
                return
            self._made += 1
            user = f"{self._name}_{self._made}"
            try:
                rpc = await Rpc.connect(port)
            except OSError:
                return
            try:
                error, _ = await rpc.call("top_up", user, RUNS_OUT_NANOS, {"request_id": "money"})
                if error is None:
                    self.maybe.add(user)
                    error, result = await rpc.call("set_rate", user, PER_SECOND_NANOS, {"request_id": "rate"})
                    if error is None and self.trusting:
                        self.due[user] = result["exhausts_at_ns"]
                        self.maybe.remove(user)
            except ConnectionLost:
                return
            finally:
                rpc.close()

    async def check(self, rpc: Rpc) -> None:
        """All whose instant has passed are owed their cutoff, with that instant; nobody else is."""
        for user in list(self.maybe):
            error, account = await rpc.call("get_account", user)
            self.maybe.remove(user)
            if error is None and account["rate_nanos_per_second"]:
                ends = account["cutoff"]["exhausted_at_ns"] if account["state"] == "exhausted" else None
                self.due[user] = ends or account["exhausts_at_ns"]
        now_ns = (await rpc.ask("get_account", next(iter(self.due))))["at_ns"] if self.due else 0
        while any(instant > now_ns for instant in self.due.values()):
            await asyncio.sleep(0.02)
            now_ns = (await rpc.ask("get_account", next(iter(self.due))))["at_ns"]
        owed = await pending(rpc)
        assert owed == self.due, f"owed {owed}, wanted {self.due}"


async def pending(rpc: Rpc) -> dict[str, int]:
    """user -> instant of every cutoff that is owed."""
    rows: dict[str, int] = {}
    page_options: dict[str, Any] = {}
    while True:
        page = await rpc.ask("pending_cutoffs", {"limit": 1000, **page_options})
        rows |= {row["user_id"]: row["exhausted_at_ns"] for row in page}
        if len(page) < 1000:
            return rows
        page_options = {"after": page[-1]["user_id"]}


class Load:
    """All clients."""

    def __init__(self, name: str) -> None:
        self.writers = [Writer(f"{name}_{number}") for number in range(CLIENTS)]
        self.spenders = Spenders(f"{name}_spender")
        self.counts: Counter[str] = Counter()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, port: int) -> None:
        """Lets all of them call."""
        self._stop.clear()
        self._trust(True)
        runs = [writer.run(port, self._stop) for writer in self.writers]
        self._tasks = [asyncio.create_task(run) for run in (*runs, self.spenders.more(port, self._stop))]

    def distrust(self) -> None:
        """What is answered from here on counts as not answered, until the next `begin`."""
        self._trust(False)

    def _trust(self, trusting: bool) -> None:
        for writer in self.writers:
            writer.trusting = trusting
        self.spenders.trusting = trusting

    async def end(self) -> None:
        """Returns when none of them waits for an answer any more."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def verify(self, port: int) -> None:
        """The daemon serves again: settles what is unknown and compares everything. AssertionError."""
        rpc = await Rpc.connect(port)
        try:
            for writer in self.writers:
                applied, not_applied = await writer.settle(rpc)
                self.counts["applied unanswered"] += applied
                self.counts["not applied"] += not_applied
                await writer.check(rpc)
            await self.spenders.check(rpc)
        finally:
            rpc.close()
        self.counts["answered"] = sum(writer.answered for writer in self.writers)
        self.counts["refused"] = sum(writer.refused for writer in self.writers)
        self.counts["refused, full"] = sum(len(writer.full) for writer in self.writers)
        self.counts["cutoffs owed"] = len(self.spenders.due)

    async def verify_history(self, port: int) -> None:
        """Every request of every user is in the history exactly once."""
        rpc = await Rpc.connect(port)
        try:
            for writer in self.writers:
                self.counts["history rows"] += await writer.check_history(rpc)
        finally:
            rpc.close()

    def require(self, cycles: int) -> None:
        """The load was one: it got answers, and was struck in flight. AssertionError."""
        assert self.counts["answered"] > 50 * cycles, f"too little load: {self.counts}"
        assert self.counts["applied unanswered"] + self.counts["not applied"] > 0, "no call was struck in flight"
        assert self.counts["cutoffs owed"] > 0, "nobody was owed a cutoff"
