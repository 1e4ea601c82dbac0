"""Whether this host's clock is good enough to serve, where several hosts share one log: a pure rule.

A takeover moves billing time by the difference of two hosts' clocks, and everybody is charged for that step, or is not.
So a host whose clock may be wrong by more than `error_ns_max` takes nothing over, and gives up what it has. At half of
that somebody is told. Three things speak about a clock, and the worst of them counts:

- the *kernel*, which whoever keeps its clock has told how wrong it may be. Where nobody keeps it nothing is known: that
  is told once, and decides nothing, for the other two see an hour as well;
- *billing time*: what this host would begin with, or serves by, against its wall clock. A host of another boot begins
  at its wall clock, but never before the instant up to which the last owner was granted time. So a clock that is behind
  is seen here at once, and a clock that is ahead is not;
- the *host that serves*, as heard of while this one stands by: each record that grants time says what billing time was
  when it was sent, `grant_ns` before `until_ns`. It was sent between two looks at the log, so it names a line of the
  other host's time over this host's boot clock, to within the time between the looks. Of the last ones the promptest
  counts. The line outlives the host that drew it, by `DRIFT_PPM` less certain as time goes by; a wall clock that is set
  right meanwhile is right at once, for only the boot clock was asked.

It reads no clock, logs nothing, and never decides who serves (`shards.supervisor.standby`).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from shards.system.clock import WallError

HEARD_MAX = 32  # of the last records
HEARD_MIN = 4  # one alone may have been late on its way
DRIFT_PPM = 500


class Line(NamedTuple):
    """Bounds of the other host's billing time minus this host's boot clock, as of a boot instant."""

    least_ns: int
    most_ns: int
    boot_ns: int


class Judgement(NamedTuple):
    """How wrong the clock may be, or is, by the worst of the signs; and that sign as a text for people."""

    error_ns: int
    text: str


class ClockGuard:
    """Judges the clock of one host. With `error_ns_max` 0 nothing is judged."""

    def __init__(self, error_ns_max: int) -> None:
        self.error_ns_max = error_ns_max
        self._until_ns: dict[int, int] = {}  # shard -> of its newest record
        self._lines: deque[Line] = deque(maxlen=HEARD_MAX)

    def heard(self, shard: int, sent_ns: int, after_ns: int, before_ns: int) -> None:
        """Takes a record of the serving host. `sent_ns`: billing time when it was sent; it was sent after this host's
        boot instant `after_ns` and before `before_ns`. A record no newer than the one before is ignored.
        """
        known_ns = self._until_ns.get(shard)
        self._until_ns[shard] = sent_ns
        if known_ns is not None and sent_ns > known_ns:
            self._lines.append(Line(sent_ns - before_ns, sent_ns - after_ns, before_ns))

    @property
    def is_informed(self) -> bool:
        """Whether another host was heard of often enough to compare its clock with this one."""
        return len(self._lines) >= HEARD_MIN

    def judge(self, kernel: WallError, boot_ns: int, wall_ns: int, billing_ns: int) -> Judgement:
        """Judges the clock. `boot_ns`, `wall_ns`: this host's clocks, read together; `billing_ns`: the billing time by
        which it serves, or with which it would begin.
        """
        judgements = [_of_kernel(kernel), _of_billing_time(wall_ns - billing_ns)]
        if self.is_informed:
            judgements.append(_of_line(min(self._lines, key=_width), boot_ns, wall_ns))
        return max(judgements, key=lambda judgement: judgement.error_ns) if self.error_ns_max else Judgement(0, "")

    def is_unfit(self, judgement: Judgement) -> bool:
        """Whether a host with such a clock must serve nothing."""
        return judgement.error_ns > self.error_ns_max

    def is_doubtful(self, judgement: Judgement) -> bool:
        """Whether an operator should look at the clock."""
        return judgement.error_ns > self.error_ns_max // 2


def seconds(ns: int) -> str:
    """Nanoseconds as seconds, for people."""
    return f"{ns / 1e9:.3f} s"


def _of_kernel(kernel: WallError) -> Judgement:
    if not kernel.is_disciplined:
        return Judgement(0, "")
    return Judgement(kernel.max_ns, f"the kernel says that it may be wrong by {seconds(kernel.max_ns)}")


def _of_billing_time(ahead_ns: int) -> Judgement:
    side = "ahead of" if ahead_ns > 0 else "behind"
    return Judgement(abs(ahead_ns), f"it is {seconds(abs(ahead_ns))} {side} billing time")


def _of_line(line: Line, boot_ns: int, wall_ns: int) -> Judgement:
    unsure_ns = (boot_ns - line.boot_ns) * DRIFT_PPM // 10**6
    at_least_ahead_ns = wall_ns - boot_ns - line.most_ns - unsure_ns
    at_least_behind_ns = line.least_ns - unsure_ns - (wall_ns - boot_ns)
    error_ns = max(at_least_ahead_ns, at_least_behind_ns, 0)
    side = "ahead of" if at_least_ahead_ns > 0 else "behind"
    return Judgement(error_ns, f"it is {seconds(error_ns)} {side} that of the host which served")


def _width(line: Line) -> int:
    return line.most_ns - line.least_ns
