"""Recovery: from what the journal holds to a shard as it was, or a refusal.

The newest good snapshot is loaded, later batches are replayed through the code that made them, and the buckets that the
shard then holds are compared with its buckets in the map. A shard restored from an older backup, or emptied, is
`Damaged` and not served. What an error of a worker means for its next start is said here, too.

The boot clock that is handed in serves only for how long it waits, and for saying how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import ClassVar, NamedTuple, TypeVar

from shards import exits
from shards.buckets import BucketMap
from shards.journal import Fenced, Journal, Opened, Unavailable
from shards.shard import Shard
from shards.worker.backpressure import ROOM_RETRY_S
from shards.worker.hosting import Hosted

T = TypeVar("T")

FENCED_WAIT_S = 10.0  # an owner left over from the last life gets this long to end
SLICE_NS = 50_000_000  # how long recovery computes before it says how far it is


class Damaged(Exception):
    """The stored state contradicts an invariant."""

    ending: ClassVar[exits.Ending] = exits.DAMAGED


class Stopped(Exception):
    """The worker was told to stop before its journal was open."""


async def open_journal(
    journal: Journal,
    shard_id: int,
    pid: int,
    boot_ns: Callable[[], int],
    stopping: asyncio.Event,
    on_wait: Callable[[Unavailable], None],
) -> Opened:
    """Opens it; an owner left over from an earlier life gets some time to end (Fenced), and a journal without room all
    it needs, of which `on_wait` is told. The journal's errors; Stopped as soon as it is `stopping`.
    """
    deadline_ns = boot_ns() + int(FENCED_WAIT_S * 1e9)
    while not stopping.is_set():
        try:
            return journal.open(shard_id, f"pid {pid}")
        except Fenced:
            if boot_ns() > deadline_ns:
                raise
            pause_s = 0.1
        except Unavailable as full:
            on_wait(full)
            pause_s = ROOM_RETRY_S
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause_s)
    raise Stopped


class Beats:
    """Lets a journal's owner be heard of while it does not serve yet: a long recovery must not look like a death."""

    def __init__(self, journal: Journal, boot_ns: Callable[[], int]) -> None:
        self._journal = journal
        self._boot_ns = boot_ns
        self._last_ns = boot_ns()

    def due(self) -> None:
        """To be called now and then. Blocks for a round trip where a beat is due; raises what `idle_barrier` does."""
        if self._journal.beat_s and self._boot_ns() - self._last_ns >= self._journal.beat_s * 1e9:
            self._journal.idle_barrier()
            self._last_ns = self._boot_ns()

    async def until(self, wait: Callable[[], Awaitable[T]]) -> T:
        """What `wait` returns."""
        if not self._journal.beat_s:
            return await wait()
        waiting = asyncio.ensure_future(wait())
        try:
            while True:
                await asyncio.wait({waiting}, timeout=self._journal.beat_s)
                if waiting.done():
                    return waiting.result()
                self.due()
        finally:
            waiting.cancel()


class Recovered(NamedTuple):
    """What a recovery did."""

    parts: int  # of a snapshot, loaded
    records: int  # replayed


async def recover(
    shard: Shard,
    journal: Journal,
    progress: Callable[[int, int], None],
    boot_ns: Callable[[], int],
    stopping: asyncio.Event | None = None,
) -> Recovered:
    """Brings a shard to the end of its journal. `progress(done, total)` counts parts of the snapshot and batches behind
    it together. Raises Stopped as soon as it is `stopping`.
    """
    start, parts, total = 1, 0, journal.head
    snapshot = journal.load_snapshot()
    last_ns = boot_ns()
    if snapshot is not None:
        start = snapshot.position + 1
        total += snapshot.chunk_count - snapshot.position
        for part in snapshot.chunks:
            shard.load(part)
            parts += 1
            if boot_ns() - last_ns > SLICE_NS:
                await _breathe(progress, parts, max(total, parts), stopping)
                last_ns = boot_ns()
    records, total = 0, parts + journal.head - start + 1
    for position, payload in journal.replay(start):
        records += shard.replay(position, payload)
        if boot_ns() - last_ns > SLICE_NS:
            await _breathe(progress, parts + position - start + 1, total, stopping)
            last_ns = boot_ns()
    return Recovered(parts, records)


async def _breathe(progress: Callable[[int, int], None], done: int, total: int, stopping: asyncio.Event | None) -> None:
    """Reports progress, and lets the process handle its messages."""
    progress(done, total)
    await asyncio.sleep(0)
    if stopping is not None and stopping.is_set():
        raise Stopped


def check_ownership(shard: Shard, bucket_map: BucketMap, founded: bool, is_new: bool) -> list[int]:
    """Compares the buckets in the journal with those in the map; raises Damaged.

    Returns the buckets that are here and another's, the orphans: left over from a move that was decided for the target
    before this source gave it up (the map is at a higher generation), or was never decided for this target (the map is
    one lower, or gave that generation to another target since: nothing has happened to the copy then). They are laid
    aside, and forgotten once their owner has passed this very check.
    """
    me = shard.shard_id
    for bucket_id, generation in bucket_map.ownership_of(me).items():
        held = shard.held.get(bucket_id)
        if held == generation or (is_new and not founded):
            continue
        state = "does not have it" if held is None else f"has it at generation {held}"
        raise Damaged(
            f"shard {me} owns bucket {bucket_id} at generation {generation} by the map, but its own data {state}: "
            "an older backup, or a directory that was emptied"
        )
    orphans = []
    for bucket_id, held in shard.held.items():
        owner = bucket_map.owner_of(bucket_id)
        if owner.shard_id == me:
            continue
        if held > owner.generation + 1 or (held == owner.generation and not shard.is_untouched(bucket_id)):
            raise Damaged(
                f"shard {me} holds bucket {bucket_id} at generation {held}, the map says shard {owner.shard_id} at "
                f"generation {owner.generation}: one of the two is an older backup"
            )
        orphans.append(bucket_id)
    return orphans


def exit_code_of(error: BaseException, application: Hosted | None) -> exits.Exit:
    """The exit code of a worker that this error ends."""
    if isinstance(error, Unavailable):
        return exits.Exit.AGAIN
    if application is not None and application.replay_failed(error):
        return exits.Exit.DAMAGED
    return exits.ending_of(error).code
