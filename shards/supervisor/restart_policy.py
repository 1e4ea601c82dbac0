"""When a worker that ended is started again, as a pure rule.

- One that was killed from outside (SIGKILL, SIGTERM) after it had served is started again at once: that was somebody's
  doing, not the worker's. Before it served, pauses grow up to a second (a worker that outgrows the memory there is ends
  like that, too), and `KILLS_MAX` such ends in a row are too many.
- Any other end is a failure, and failures in a row are answered after growing pauses (`RESTART_DELAYS_S`). A worker
  that served for `STABLE_NS` begins the row anew. More failures in a row than there are pauses are too many.
- One whose log was lost to it (another owner has the shard, or the log is out of reach) is started again without end,
  after pauses that grow up to a second: nothing is broken here.
- Too many, and the worker is *held*: a crash loop mends nothing, and its starts cost the others. It is tried again by
  itself all the same, slowly (`HELD_DELAYS_S`): what made it fail (no descriptors, no memory, a full disk) may have
  passed while nobody looked.
- One whose data are damaged, whose disk failed, or whose directory others may enter is held at once, and until the
  operator lets it be tried again (a reload, a restart): no start mends that.
"""

from __future__ import annotations

import signal

from shards.exits import Exit

RESTART_DELAYS_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LOST_DELAYS_S = (0.0, 0.2, 0.5, 1.0)
KILL_DELAYS_S = (0.0, 0.2, 0.5, 1.0)
KILLS_MAX = 30
HELD_DELAYS_S = (60.0, 120.0, 300.0, 600.0)  # the last one again and again
STABLE_NS = 60_000_000_000
HELD_AT_ONCE = (Exit.DAMAGED, Exit.DISK, Exit.CONFIG)

_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


class RestartPolicy:
    """Counts the failures and kills in a row of one worker, and decides when it is started again."""

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self.kills = 0  # in a row, before it served
        self._holds = 0  # since it last served for `STABLE_NS`

    @property
    def in_a_row(self) -> int:
        """How often the worker has ended in a row without serving for long enough."""
        return max(self.failures, self.kills)

    def forget(self) -> None:
        """Counts from zero again."""
        self.failures = self.kills = self._holds = 0

    def after(self, code: int, served_ns: int) -> float | None:
        """Seconds until the next start; None: the worker is held. `served_ns`: how long it had served; 0 where it did
        not.
        """
        if code in HELD_AT_ONCE:
            return None
        if served_ns:
            self.kills = 0
        if code in _FROM_OUTSIDE:
            if served_ns:
                return 0.0
            self.kills += 1
            return KILL_DELAYS_S[min(self.kills, len(KILL_DELAYS_S)) - 1] if self.kills <= KILLS_MAX else None
        if served_ns > STABLE_NS:
            self.failures = self._holds = 0
        self.failures += 1
        if code == Exit.AGAIN:
            return LOST_DELAYS_S[min(self.failures, len(LOST_DELAYS_S)) - 1]
        return RESTART_DELAYS_S[self.failures - 1] if self.failures <= len(RESTART_DELAYS_S) else None

    def held_for(self, code: int) -> float | None:
        """Seconds until a held worker that ended with `code` is tried again by itself, once; None: never."""
        if code in HELD_AT_ONCE:
            return None
        self._holds += 1
        return HELD_DELAYS_S[min(self._holds, len(HELD_DELAYS_S)) - 1]
