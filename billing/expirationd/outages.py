"""Reports endpoints that take no calls, and users whose calls wait: in log lines, as figures and in sentences.

An outage is logged when it begins; once a minute while it lasts, with the number of users who wait; and when it ends,
with its duration. A line is also logged, at most once a minute, when an endpoint needs more than `cutoff.timeout_s`.

This module decides nothing: `health` decides whether an endpoint takes calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from billing.expirationd.health import Health
from billing.expirationd.lane import FLYING, PARKED, Item
from shards.counting import counted

LOG_S: Final = 60
_SECOND_NS: Final = 10**9

log = logging.getLogger("billing.expirationd")


class Outage:
    """One endpoint that takes no calls: since when, and why."""

    def __init__(self, origin: str, since_ns: int, error: str) -> None:
        self.origin = origin
        self.since_ns = since_ns
        self.error = error
        self.timer: asyncio.TimerHandle | None = None


class Words(Protocol):
    """Writes the log lines about outages."""

    def began(self, origin: str, error: str, waiting: int) -> None:
        """The endpoint takes no calls; `waiting` users wait."""

    def lasts(self, origin: str, seconds: int, error: str, waiting: int) -> None:
        """The endpoint has taken no calls for `seconds`."""

    def ended(self, origin: str, seconds: float, waiting: int) -> None:
        """The endpoint takes calls again, after `seconds`."""

    def is_slow(self, origin: str, timeout_s: float, patience_s: float) -> None:
        """The endpoint answered no call within `timeout_s`; a call may take `patience_s` now."""


class OfCutoffs:
    """The log lines of a delivery that sends cutoffs and restores."""

    def began(self, origin: str, error: str, waiting: int) -> None:
        log.warning("%s takes no calls (%s) and is probed; users who wait: %d", origin, error, waiting)

    def lasts(self, origin: str, seconds: int, error: str, waiting: int) -> None:
        log.warning(
            "%s has taken no calls for %d s (%s) and is probed; users who wait: %d", origin, seconds, error, waiting
        )

    def ended(self, origin: str, seconds: float, waiting: int) -> None:
        log.info("%s takes calls again after %.1f s: sending, %d owed", origin, seconds, waiting)

    def is_slow(self, origin: str, timeout_s: float, patience_s: float) -> None:
        log.warning(
            "%s answered nobody in time (cutoff.timeout_s is %g): calls may take %g s now",
            origin,
            timeout_s,
            patience_s,
        )


class Outages:
    """The outages of one delivery. `waiting()`: for how many users a call is owed. The owner must call `close`."""

    def __init__(self, timeout_s: float, now_ns: Callable[[], int], waiting: Callable[[], int], words: Words) -> None:
        self._words = words
        self._timeout_s = timeout_s
        self._now_ns = now_ns
        self._waiting = waiting
        self._loop = asyncio.get_running_loop()
        self._by_origin: dict[str, Outage] = {}  # by origin
        self._patience_ns: dict[str, int] = {}  # of each origin, as it was last
        self._patience_told_ns: dict[str, int] = {}

    def __len__(self) -> int:
        """The number of endpoints that take no calls."""
        return len(self._by_origin)

    def of(self, origin: str) -> Outage | None:
        """The outage of this endpoint; None while it takes calls."""
        return self._by_origin.get(origin)

    def plain(self) -> list[dict[str, Any]]:
        """The outages for the operator, as plain data."""
        waiting = self._waiting()
        return [
            {"endpoint": outage.origin, "since_ns": outage.since_ns, "error": outage.error, "waiting": waiting}
            for outage in self._by_origin.values()
        ]

    def close(self) -> None:
        """Stops the timers of the log lines."""
        for outage in self._by_origin.values():
            if outage.timer is not None:
                outage.timer.cancel()

    def look(self, origin: str, health: Health, error: str) -> None:
        """An attempt has ended: reports a change in the health of its endpoint. `error`: of the attempt, "" for a
        success.
        """
        outage = self._by_origin.get(origin)
        if health.shut and outage is None:
            self._begin(Outage(origin, health.shut_since_ns, error))
        elif outage is not None and health.shut:
            outage.error = error or outage.error
        elif outage is not None:
            self._end(outage)
        if health.patience_ns > self._patience_ns.get(origin, int(self._timeout_s * _SECOND_NS)):
            self._tell_patience(origin, health.patience_ns)
        self._patience_ns[origin] = health.patience_ns

    def _begin(self, outage: Outage) -> None:
        self._by_origin[outage.origin] = outage
        self._words.began(outage.origin, outage.error, self._waiting())
        outage.timer = self._loop.call_later(LOG_S, self._go_on, outage)

    def _go_on(self, outage: Outage) -> None:
        lasted_s = (self._now_ns() - outage.since_ns) // _SECOND_NS
        self._words.lasts(outage.origin, lasted_s, outage.error, self._waiting())
        outage.timer = self._loop.call_later(LOG_S, self._go_on, outage)

    def _end(self, outage: Outage) -> None:
        del self._by_origin[outage.origin]
        if outage.timer is not None:
            outage.timer.cancel()
        self._words.ended(outage.origin, (self._now_ns() - outage.since_ns) / _SECOND_NS, self._waiting())

    def _tell_patience(self, origin: str, patience_ns: int) -> None:
        now_ns = self._now_ns()
        if now_ns - self._patience_told_ns.get(origin, -LOG_S * _SECOND_NS) < LOG_S * _SECOND_NS:
            return
        self._patience_told_ns[origin] = now_ns
        self._words.is_slow(origin, self._timeout_s, patience_ns / _SECOND_NS)


def waiting_because(item: Item, outage: Outage | None, last_error: str, now_ns: int, owed: int) -> str:
    """Why the call for one account is not done yet, in a sentence. `owed`: for how many accounts of this shard a call
    is owed.
    """
    if item.state == PARKED:
        return "The call is held back since the start, and waits for `billing cutoffs release`."
    if item.state == FLYING:
        under_way_s = max(0, now_ns - item.begun_ns) / _SECOND_NS if item.begun_ns >= 0 else 0.0
        return f"A call is under way, for {under_way_s:.1f} s so far."
    if outage is not None:
        lasts_s = (now_ns - outage.since_ns) // _SECOND_NS
        return (
            f"{outage.origin} has taken no calls for {lasts_s} s ({outage.error}) and is probed with one user after "
            f"the other; calls for {counted(owed, 'user')} of this shard wait."
        )
    if item.failures:
        met = f" ({last_error})" if last_error else ""
        next_s = (item.due_ns - now_ns) / _SECOND_NS
        follows = f"follows in {next_s:.1f} s" if next_s > 0 else "waits for its turn among those that failed"
        times = "The last attempt" if item.failures == 1 else f"The last {item.failures} attempts"
        return f"{times} failed for this user{met}; the next one {follows}. Other users are not held up by it."
    return f"The first call waits for its turn: calls for {counted(owed, 'user')} are owed, the oldest goes first."
