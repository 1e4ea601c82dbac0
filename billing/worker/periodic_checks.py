"""Checks that a worker makes by itself: the wheel scrubber, what is coming, and whether cutoffs took effect.

It has five duties, and does each in small pieces between requests:

- if a burst falls due within the next `AHEAD_NS`, it prepares the requests, except what depends on the instant of
  sending;
- it opens a connection for the next cutoff a moment before that falls due, if none is open;
- it makes one step of the wheel scrubber a second; a mismatch is logged, counted and healed;
- it warns if a second of the coming hour has more cutoffs than the endpoint takes per second, as last measured;
- `cutoff.recheck_s` after a 2xx it checks whether the account's rate is zero; if not, the cutoff becomes owed once
  more, by an entry like any other, under the same event_id.

It decides nothing about money; its findings go through the worker's `apply`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from billing.expirationd.coming import SECOND_NS, forecast
from billing.expirationd.delivery import Delivery
from billing.expirationd.recheck import Rechecks
from billing.expirationd.wheel_scrubber import WheelScrubber
from billing.ledger import commands as ops
from billing.ledger.errors import Refused
from billing.worker.machine import BillingMachine
from shards.machine import Command
from shards.replies import WrongBucket

LOOK_S: Final = 1.0
WARN_LOOKS: Final = 10  # looks from one comparison of the coming hour with the endpoint's throughput to the next
RECHECKS_AT_ONCE: Final = 64
AHEAD_NS: Final = 1_250_000_000  # requests are prepared so long ahead: until the next look, and a little more
BURST: Final = 256  # requests are prepared only if so many filings come up
PREPARE_PAUSE_S: Final = 0.001
KEPT_LOOKS: Final = 60  # looks for which the prepared requests of a burst are kept, for an endpoint that is slow
_LATE_S: Final = 0.001

log = logging.getLogger("billing.expirationd")


class PeriodicChecks:
    """The checks of one worker. `apply` carries out a command and returns its reply or refusal; `wake` has the worker
    take its next turn.
    """

    def __init__(
        self,
        machine: BillingMachine,
        delivery: Delivery,
        now_ns: Callable[[], int],
        apply: Callable[[int, Command], object],
        wake: Callable[[], None],
        recheck_s: float,
        boot_ns: Callable[[], int],
    ) -> None:
        self._boot_ns = boot_ns
        self._machine = machine
        self.delivery = delivery
        self._now_ns = now_ns
        self._apply = apply
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._scrubber = WheelScrubber(machine.ledger.books, machine.ledger.tick, machine.ledger.call_at_ns)
        self._rechecks = Rechecks(int(recheck_s * SECOND_NS))
        self._timer: asyncio.TimerHandle | None = None
        self._recheck_timer: asyncio.TimerHandle | None = None
        self._prepare_timer: asyncio.TimerHandle | None = None
        self._looks = 0
        self._began_ns = self._boot_ns()
        self._peak = (0, 0)  # second, cutoffs
        self._warned = 0  # the second that was warned of last
        self.restarts = self.not_effective = self.bursts = 0

    def start(self) -> None:
        """Starts the checks."""
        for bucket_id in self._machine.ledger.books:
            self.take_up(bucket_id)
        self._expect()
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Stops the checks."""
        for timer in (self._timer, self._recheck_timer, self._prepare_timer):
            if timer is not None:
                timer.cancel()

    # -- the wheel scrubber ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now_ns = self._now_ns()
        try:
            wrong = self._scrubber.step(now_ns, self._machine.next_due_ns())
        except Exception:
            self.restarts += 1
            self._scrubber.begin_again()
            log.exception("the second opinion begins again")
        else:
            if wrong:
                log.error("accounts that were not filed for what is coming for them: %d; they are now", wrong)
                self._wake()
        if self._looks % WARN_LOOKS == 0:
            self._look_ahead(now_ns)
        self._looks += 1
        self._expect()
        if self._prepare_timer is None:
            pieces = self._machine.running_out(now_ns + AHEAD_NS, BURST)
            first = next(pieces, None)
            if first is not None or self._looks % KEPT_LOOKS == 0:
                self.delivery.ahead.turn()
            if first is not None:
                self._prepare(chain([first], pieces))
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def _expect(self) -> None:
        due_ns = self._machine.next_due_ns()
        if 0 <= due_ns <= self._now_ns() + AHEAD_NS:
            self.delivery.expect(due_ns)

    def _prepare(self, pieces: Iterator[list[tuple[bytes, str, int, int]]]) -> None:
        piece = next(pieces, None)
        if piece is None:
            self._prepare_timer = None
            return
        prepare = self.delivery.ahead.prepare
        for coming in piece:
            prepare(*coming)
        self._prepare_timer = self._loop.call_later(PREPARE_PAUSE_S, self._prepare, pieces)

    def _look_ahead(self, now_ns: int) -> None:
        coming = self._scrubber.coming(now_ns)
        self._peak = max(coming, key=lambda second_and_cutoffs: second_and_cutoffs[1], default=(0, 0))
        second, cutoffs = self._peak
        takes = self.delivery.throughput.per_second
        if 0 <= takes < cutoffs and second != self._warned:
            self._warned = second
            self.bursts += 1
            log.warning(
                "cutoffs that fall due in the second of %s: %d; the endpoint was last seen to take %d a second, so the "
                "last will be some %.1f s late",
                datetime.fromtimestamp(second, UTC).isoformat(),
                cutoffs,
                takes,
                cutoffs / max(takes, 1),
            )

    # -- verification ------------------------------------------------------------------------------------------------

    def delivered(self, bucket_id: int, user_id: bytes, seq: int) -> None:
        """This cutoff got its 2xx: schedules its check."""
        if self._rechecks.are_wanted:
            self._rechecks.delivered(bucket_id, user_id, seq, self._now_ns())
            self._arm()

    def take_up(self, bucket_id: int) -> None:
        """The bucket is here now: schedules the checks of its delivered cutoffs as if their 2xx had just come."""
        now_ns = self._now_ns()
        for user_id, seq in self._machine.ledger.delivered_in(bucket_id):
            self._rechecks.delivered(bucket_id, user_id, seq, now_ns)
        self._arm()

    def _arm(self) -> None:
        next_ns = self._rechecks.next_ns()
        if next_ns >= 0 and self._recheck_timer is None:
            wait_s = max(0, next_ns - self._now_ns()) / SECOND_NS + _LATE_S
            self._recheck_timer = self._loop.call_later(wait_s, self._recheck)

    def _recheck(self) -> None:
        self._recheck_timer = None
        for _, bucket_id, user_id, seq in self._rechecks.due(self._now_ns(), RECHECKS_AT_ONCE):
            outcome = self._apply(bucket_id, (ops.CUTOFF_RETRY, user_id, seq, 0, 0, b"", b"", b"", b"", b""))
            if not isinstance(outcome, Refused | WrongBucket):  # else the cutoff took effect, or was superseded
                self.not_effective += 1
        self._arm()

    # -- for the operator --------------------------------------------------------------------------------------------

    def answer(self, shard_id: int, query: Command) -> Generator[None, None, dict[str, Any]]:
        """`("forecast", within_ns, step_ns)` or `("expirationd_stats",)`: this shard's part, in slices."""
        if query[0] == "expirationd_stats":
            return {"shard_id": shard_id, **self._stats()}
        now_ns = self._now_ns()
        ledger = self._machine.ledger
        part = yield from forecast(ledger.books, ledger.call_at_ns, now_ns, now_ns + int(query[1]))
        return {**part, "takes_per_second": self.delivery.throughput.per_second}

    def _stats(self) -> dict[str, int | None]:
        """The row of `expirationd_stats` for this shard, since its worker started; the lateness is that of the first
        attempts.
        """
        late = self.delivery.counts.sent_late
        is_known = any(late.counts)
        return {
            "checked_count": self._scrubber.checked,
            "expired_count": self._machine.fired,
            "mismatches": self._scrubber.mismatches,
            "rounds": self._scrubber.rounds,
            "restarts": self.restarts,
            "lateness_p50_ns": late.quantile(0.5) if is_known else None,
            "lateness_p99_ns": late.quantile(0.99) if is_known else None,
            "working_time_ns": self._boot_ns() - self._began_ns,
        }

    def figures(self) -> dict[str, Any]:
        """Counters, as plain data."""
        scrubber, now_ns = self._scrubber, self._now_ns()
        coming = scrubber.coming(now_ns)
        minute = (now_ns + 60 * SECOND_NS) // SECOND_NS
        return {
            "wheel_checked": scrubber.checked,
            "wheel_mismatches": scrubber.mismatches,
            "wheel_rounds": scrubber.rounds,
            "wheel_check_restarts": self.restarts,
            "due_fired": self._machine.fired,
            "cutoffs_not_effective": self.not_effective,
            "cutoffs_coming_minute": sum(count for second, count in coming if second < minute),
            "cutoffs_coming_hour": sum(count for _, count in coming),
            "cutoffs_peak_per_second": self._peak[1],
            "cutoffs_peak_at_ns": self._peak[0] * SECOND_NS,
            "cutoffs_bursts_warned": self.bursts,
            "endpoint_takes_per_second": self.delivery.throughput.per_second,
        }
