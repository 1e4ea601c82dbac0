"""A full disk, as a worker meets it: new commands are refused long before a commit could fail.

The journal gets its next segment ahead. As long as there is no room for that one and the present one is filling up
(`journal.is_short`), commands are refused, surely not applied; everything else goes on: reads are answered, and what
time causes, and what became of calls, goes into the room that is left. It is looked again every second, and the first
look that finds room ends the refusals. A snapshot is begun as well: the log behind it may be what fills the disk.

Should what is left be used up too (`stuck`), the batch under way waits for room. Its clients wait with it, since it may
still be written; and whatever may have seen it waits or is refused. Nothing in this module reads a clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from shards.journal import Journal, Unavailable
from shards.worker.router import Unavailable as Refusal

ROOM_RETRY_S = 1.0  # how often a full disk is asked again

log = logging.getLogger("shards.worker.worker")


class Backpressure:
    """Whether there is room; asked before each command."""

    def __init__(
        self,
        shard_id: int,
        journal: Journal,
        look: Callable[[], None],
        snapshot: Callable[[], None],
        retry_s: float = ROOM_RETRY_S,
    ) -> None:
        """`look()` lets the journal try to get room, and calls `looked` afterwards; `snapshot()` begins one."""
        self.reason = ""  # why commands are refused; empty where they are not
        self.stuck = False  # a batch waits for room
        self._shard_id = shard_id
        self._journal = journal
        self._look = look
        self._retry_s = retry_s
        self._snapshot = snapshot
        self._snapshot_head = -1  # of the journal, when the last one was begun here
        self._timer: asyncio.TimerHandle | None = None

    def refuse(self, caller: Any, token: Any) -> None:
        """The answer to a command, or to a read while a batch is stuck. It depends on nothing, so it leaves at once."""
        caller.refuse(token, Refusal(self._shard_id, self.reason, "no"))

    def looked(self) -> None:
        """The journal has just taken a batch, or tried to get room."""
        self.stuck = False
        short = self._journal.is_short
        if short and not self.reason:
            self._say("the disk is full: no room for the next segment of the journal")
        elif self.reason and not short:
            self.reason = ""
            log.warning("shard %d: there is room on the disk again", self._shard_id)
        if short and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._retry_s, self._again)

    def stick(self, error: Unavailable, append: Callable[[], None]) -> None:
        """A batch found no room; `append` tries it again in a while."""
        self.stuck = True
        if not self.reason:
            self._say(f"the disk is full: {error.message}")
        asyncio.get_running_loop().call_later(self._retry_s, append)

    def check_stop(self) -> None:
        """Raises Unavailable where an orderly stop would wait for room: what is not written was not answered."""
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
