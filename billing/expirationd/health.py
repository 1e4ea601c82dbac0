"""The state of an endpoint as a whole, and the evidence for it. Pure.

**Shut.** The state of an endpoint is judged from the calls of different users. It is shut when connections fail twice
without a success between, or when `users_max` different users had the first failure of an event without a success
between. (The repeated failure of one user says nothing new about the endpoint; nor does the failure of a call that was
begun before the last success.) A shut endpoint is probed: it takes one retry each `probe_ns`, after a few in quicker
succession; events never attempted go out at once, up to `FRESH_BURST` of them, then one each `fresh_probe_ns`. If
connections fail, it makes no difference for which user a call is, and one item of either kind goes out each `probe_ns`.
The first success opens the endpoint.

**Rest.** If `users_max` different users were answered 429 or 503 with a Retry-After without a success between, the
endpoint as a whole asks for rest: it is shut, and retries pause for as long as Retry-After says, up to `rest_max_ns`;
events never attempted go out as to any shut endpoint.

**Patience.** A call may take `timeout_ns` at first. When `SLOW_CALLS` calls were not answered in time, all of them
begun after the last success, the patience doubles, up to `patience_max_ns`; a success that took less than half of the
patience lowers it to twice the time that the success took, but not below `timeout_ns`.

`Health` never sets the schedule of a single user's retries: the outbox does.
"""

from __future__ import annotations

from typing import Final, NamedTuple

OK: Final = 0  # 2xx: this event is done
FAILED: Final = 1  # another status, or a connection that ended without one
TIMED_OUT: Final = 2  # no answer in time
BUSY: Final = 3  # 429 or 503, with a Retry-After
UNREACHABLE: Final = 4  # no connection could be opened, so no call was made
DROPPED: Final = 5  # a connection used before turned out to be closed, and no byte came back: retried at once

FRESH_BURST: Final = 8  # events never attempted that may go to a lane that is shut without a pause between them
SLOW_CALLS: Final = 3
UNREACHABLE_MAX: Final = 2

_SECOND_NS: Final = 10**9
_WAITS_NS: Final = tuple(int(seconds * _SECOND_NS) for seconds in (0.2, 0.5, 1, 2, 4, 8, 15, 30))

Account = tuple[int, bytes]  # bucket_id, user_id


class Pace(NamedTuple):
    """The settings of retries, concurrency and probing."""

    waits_ns: tuple[int, ...] = _WAITS_NS  # after the first failure, the second, ...
    repeat_ns: int = 30 * _SECOND_NS  # after each further failure
    jitter: float = 0.1  # of repeat_ns, to either side
    concurrency: int = 64
    users_max: int = 5  # so many different users fail without a success between before the endpoint is shut
    probe_ns: int = _SECOND_NS
    fresh_probe_ns: int = _SECOND_NS // 50
    retry_after_max_ns: int = 300 * _SECOND_NS
    rest_max_ns: int = 30 * _SECOND_NS
    timeout_ns: int = 10 * _SECOND_NS
    patience_max_ns: int = 60 * _SECOND_NS
    hang_min_ns: int = _SECOND_NS // 2


class Health:
    """The state of one endpoint. Instants are in nanoseconds and never decrease from call to call."""

    __slots__ = (
        *("_fresh_after_ns", "_outage_since_ns", "_pace", "_probe_wait_ns", "_resting", "_suspects"),
        *("_timed_out", "_unreachable", "_usual_ns", "patience_ns", "probe_after_ns", "shut", "shut_since_ns"),
        "succeeded_ns",
    )

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.shut = False
        self.shut_since_ns = 0
        self.patience_ns = pace.timeout_ns
        self.probe_after_ns = 0  # the next retry, while it is shut
        self._probe_wait_ns = 0
        self._fresh_after_ns = 0
        self._outage_since_ns = -1  # the first failure since the last success that counts as evidence; -1: none
        self._suspects: set[Account] = set()  # those with a first failure since the last success, `users_max` at most
        self._resting: set[Account] = set()  # accounts answered 429 or 503 with Retry-After since the last success
        self._timed_out = 0  # time-outs of calls begun since the last success, counted since the patience grew
        self._unreachable = 0  # connections that failed since the last one that was opened
        self.succeeded_ns = -1  # the last success
        self._usual_ns = 0  # the duration of successful calls, smoothed

    def admits_fresh(self, now_ns: int) -> bool:
        """Whether an event never attempted may go to this endpoint now."""
        return not self.shut or now_ns >= self.fresh_from_ns()

    def admits_retry(self, now_ns: int) -> bool:
        """Whether a retry may go to this endpoint now."""
        return not self.shut or now_ns >= self.probe_after_ns

    def fresh_from_ns(self) -> int:
        """The instant from which the next event never attempted may go to this endpoint while it is shut."""
        if self._unreachable:
            return self.probe_after_ns
        return self._fresh_after_ns - (FRESH_BURST - 1) * self._pace.fresh_probe_ns

    def slow_ns(self) -> int:
        """A call hangs when it has been in flight for this long."""
        return min(max(4 * self._usual_ns, self._pace.hang_min_ns), self.patience_ns)

    def spend(self, now_ns: int) -> None:
        """A call goes to this endpoint now: if the endpoint is shut, sets the instants of the next probes."""
        if self.shut:
            self._probe_wait_ns = min(2 * self._probe_wait_ns, self._pace.probe_ns)
            self.probe_after_ns = max(self.probe_after_ns, now_ns + self._probe_wait_ns)
            self._fresh_after_ns = max(self._fresh_after_ns, now_ns) + self._pace.fresh_probe_ns

    def success(self, now_ns: int, took_ns: int) -> int:
        """A call got a 2xx after `took_ns`. Returns the beginning of the outage that this ends; -1 if the endpoint was
        not shut.
        """
        self.succeeded_ns = now_ns
        self._usual_ns += (took_ns - self._usual_ns) // 16 if self._usual_ns else took_ns
        if self.patience_ns > self._pace.timeout_ns:
            self.patience_ns = max(self._pace.timeout_ns, min(self.patience_ns, 2 * took_ns))
        ended_ns = -1
        if self._outage_since_ns >= 0:
            ended_ns = self._outage_since_ns if self.shut else -1
            self._suspects.clear()
            self._resting.clear()
            self._timed_out = self._unreachable = 0
            self._outage_since_ns = -1
            self.shut = False
        return ended_ns

    def failure(
        self, account: Account, first: bool, outcome: int, begun_ns: int, now_ns: int, retry_after_ns: int
    ) -> None:
        """A call failed. `first`: it is the first failure of its event."""
        pace = self._pace
        if outcome != UNREACHABLE and begun_ns < self.succeeded_ns:
            return  # the endpoint served another call meanwhile
        if self._outage_since_ns < 0:
            self._outage_since_ns = now_ns
        if outcome == UNREACHABLE:
            self._unreachable += 1
            if self._unreachable >= UNREACHABLE_MAX:
                self._shut(now_ns)
            return
        self._unreachable = 0
        if first and len(self._suspects) < pace.users_max:
            self._suspects.add(account)
            if len(self._suspects) >= pace.users_max:
                self._shut(now_ns)
        if outcome == TIMED_OUT and begun_ns > self.succeeded_ns and now_ns - begun_ns >= self.patience_ns:
            self._timed_out += 1
            if self._timed_out >= SLOW_CALLS:
                self._timed_out = 0
                self.patience_ns = max(self.patience_ns, min(2 * self.patience_ns, pace.patience_max_ns))
        elif outcome == BUSY:
            if len(self._resting) < pace.users_max:
                self._resting.add(account)
            if len(self._resting) >= pace.users_max:
                self._shut(now_ns)
                self.probe_after_ns = max(self.probe_after_ns, now_ns + min(retry_after_ns, pace.rest_max_ns))

    def _shut(self, now_ns: int) -> None:
        if not self.shut:
            self.shut = True
            self.shut_since_ns = now_ns
            self._probe_wait_ns = self._pace.probe_ns // 8
            self.probe_after_ns = now_ns + self._probe_wait_ns
            self._fresh_after_ns = now_ns
