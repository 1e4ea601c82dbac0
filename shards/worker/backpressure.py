"""A journal without room, or without a grant, as a worker meets it: what comes in is refused, surely not applied.

**No room.** A journal says ahead of time that it will soon find none (`journal.no_room`). From then on commands are
refused; everything else goes on: reads are answered, and events of time and outcomes of calls go into the remaining
room. The journal is asked again every second, and the first answer that finds room ends the refusals. A snapshot is
begun as well: the log behind it may be what takes the room. Should what is left be used up too (`stuck`), the batch
under way waits for room. Its clients wait with it, since it may still be written; and whatever may have seen it waits
or is refused.

**No room that nothing announced**, as where somebody has just lowered the limit of a log on servers. Waiting would cost
the grant of time there, and with it all reads and cutoffs. So a batch that somebody waits for is never written
(`withdraw`): its callers are told that nothing was applied, nothing else is told, and as soon as a beat fits the worker
ends, to begin anew from the journal, which now says ahead of time that there is no room. So it is, too, where a log
cannot be reached for longer than a change of its leader takes: after `TRIES_MAX` tries nobody waits for it any more.

**No grant.** Where the journal grants time and the grant has run out (`lapsed`), another owner may already live at
these instants: commands and reads are refused until the journal has renewed it.

Nothing in this module reads a clock, and every reason is the journal's own text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from shards.journal import Journal, Unavailable
from shards.replies import Unavailable as Refusal

ROOM_RETRY_S = 1.0  # how often a journal without room is asked again
TRIES_MAX = 4  # of a batch that somebody waits for, where waiting costs the grant of time; some ten seconds
REASONS_MAX = 8  # for which a grant was not renewed, logged in one lapse
LAPSED = "the grant of time has run out: the log of this shard cannot be reached"

log = logging.getLogger("shards.worker.worker")


class Backpressure:
    """Knows whether the journal has room; asked before each command."""

    def __init__(
        self,
        shard_id: int,
        journal: Journal,
        look: Callable[[], None],
        snapshot: Callable[[], None],
        retry_s: float = ROOM_RETRY_S,
    ) -> None:
        """`look()` lets the journal look for room, and calls `looked` afterwards; `snapshot()` begins a snapshot."""
        self.reason = ""  # why commands are refused; empty where they are not
        self.stuck = False  # a batch waits for room, or was withdrawn
        self.lapsed = False  # the journal's grant has run out
        self.tries = 0  # of the batch that waits
        self._not_renewed: set[str] = set()  # why, as it was logged since the grant ran out
        self._shard_id = shard_id
        self._journal = journal
        self._look = look
        self._retry_s = retry_s
        self._snapshot = snapshot
        self._snapshot_head = -1  # of the journal, when the last one was begun here
        self._timer: asyncio.TimerHandle | None = None

    @property
    def refuses_reads(self) -> bool:
        """Whether reads are refused as well as commands."""
        return self.stuck or self.lapsed

    def refuse(self, caller: Any, token: Any) -> None:
        """Refuses a command or read at once; the refusal depends on no stored state."""
        caller.refuse(token, Refusal(self._shard_id, self.reason, "no"))

    def lapse(self) -> None:
        """The grant has run out before the journal renewed it."""
        if not self.lapsed:
            self.lapsed = True
            self.reason = self.reason or LAPSED
            log.error("shard %d: %s; commands and reads are refused until it is renewed", self._shard_id, LAPSED)

    def not_renewed(self, error: Unavailable) -> None:
        """The journal could not renew the grant. Logs each reason once a lapse: each try is at another server."""
        if self.lapsed and error.message not in self._not_renewed and len(self._not_renewed) < REASONS_MAX:
            self._not_renewed.add(error.message)
            log.error("shard %d: the grant of time is not renewed: %s", self._shard_id, error.message)

    def granted(self) -> None:
        """The journal has renewed the grant."""
        if self.lapsed:
            self.lapsed = False
            self._not_renewed.clear()
            self.reason = "" if self.reason == LAPSED else self.reason
            log.warning("shard %d: the journal has renewed the grant of time", self._shard_id)

    def looked(self) -> None:
        """The journal has just written a batch, or looked for room."""
        self.stuck, self.tries = False, 0
        no_room = self._journal.no_room
        if no_room and self.reason in ("", LAPSED):
            self._say(no_room)
        elif self.reason not in ("", LAPSED) and not no_room:
            self.reason = LAPSED if self.lapsed else ""
            log.warning("shard %d: there is room for the journal again", self._shard_id)
        if no_room and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._retry_s, self._again)

    def stick(self, error: Unavailable, append: Callable[[], None]) -> None:
        """A batch found no room, or the log was out of reach; `append` is called again after a while."""
        self.stuck = True
        self.tries += 1
        if self.reason in ("", LAPSED):
            self._say(error.message)
        asyncio.get_running_loop().call_later(self._retry_s, append)

    def withdraw(self, error: Unavailable) -> None:
        """A batch found no room, and will never be written by this worker."""
        self.stuck = True
        self.reason = error.message
        log.error("shard %d: %s; the batch under way is withdrawn", self._shard_id, error.message)

    def check_stop(self) -> None:
        """Raises Unavailable where an orderly stop would have to wait for room; what is not written was not
        answered.
        """
        if self.stuck:
            raise Unavailable(f"stopped while a batch waited for room: {self.reason}")

    def _again(self) -> None:
        self._timer = None
        if self._journal.head > self._snapshot_head:
            self._snapshot_head = self._journal.head
            self._snapshot()
        self._look()

    def _say(self, reason: str) -> None:
        self.reason = reason
        log.error("shard %d: %s; commands are refused until there is", self._shard_id, reason)
