"""A journal in local files: the embedded backend.

One directory holds one shard's journal: `segment-…` files of batches, `manifest`, `snapshot-…` files, `lock`, and
reserved room (`spare`, `ballast`). `record` and `snapshot` describe the bytes, `recovery` says which of them are
valid, and `segment_reserve` makes a full disk strike only between segments. The rules of this module:

- Ownership is a lock on the directory, which the kernel holds until the last handle of it is closed, so an older
  owner that can still write makes the newer one wait (`Fenced`). The epoch is raised in the new segment's first block
  and in the manifest before `open` returns.
- Every opening begins a new segment. Nothing is ever appended behind what an earlier life wrote, torn or not. Batches
  that this life may have left only in a cache are written into the new segment and synced before anybody is told.
- `append` is one write and, as the sync mode says, one fdatasync. An error of either ends this object: what happened
  is not known, and a second sync could report success for data that the first one lost.
- Where the machine was started anew since the last batch, `last_time_ns` lies `TOLD_AHEAD_NS` behind it, and is
  recorded so in the new segment: the life before may have told of effects of time whose batch the power took. Were
  their instants to come again, since the wall clock was set back, a debit or a top-up could change what was told.
- Segments are removed only where all their batches are in the older of two snapshots, both of which were read back.

The module reads no clock and draws no random number: both are passed in.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from shards.journal import (
    ALL_TIME_NS,
    Corrupt,
    Fenced,
    Gap,
    JournalError,
    Medium,
    Opened,
    Snapshot,
    Unavailable,
    Unfit,
)
from shards.journal.file import snapshot
from shards.journal.file.active_segment import ActiveSegment, length_for
from shards.journal.file.cleanup import drop_replaced, drop_unfinished, keep_torn, set_aside
from shards.journal.file.failures import FORBIDDEN, failure_of
from shards.journal.file.record import (
    BARRIER,
    FIRST_CHAIN,
    OWNER_BYTES_MAX,
    Malformed,
    Manifest,
    SegmentHeader,
    pack_block,
    salt_seed,
)
from shards.journal.file.recovery import Recovery, examine, segment_name, written_anew
from shards.journal.file.replay import Segment, batches, chain_at, reaching
from shards.journal.file.retained_snapshots import RetainedSnapshots
from shards.journal.file.segment_reserve import SegmentReserve
from shards.system.clock import TOLD_AHEAD_NS
from shards.system.disk import DirectoryRefused, Disk, is_full, private_directory

LOCK = "lock"
SYNC_MODES = ("always", "interval", "never")
PAYLOAD_BYTES_MAX = 256 << 20
RECENT_CHAINS = 1024
ROOM_RETRY_NS = 1_000_000_000


class FileSettings(NamedTuple):
    """How a journal of files is written.

    `sync`: one of SYNC_MODES. With "interval", an append syncs where the last sync was at least `sync_interval_ns`
    before it, and an idle barrier syncs what is left. `align_bytes`: batches begin at multiples of it. It is at least a
    sector, so that no sector of an acknowledged batch is ever written again.
    """

    sync: str = "always"
    sync_interval_ns: int = 1_000_000_000
    segment_bytes: int = 64 << 20
    ballast_bytes: int = 0  # a file that is dropped where a full disk has no room for an opening; 0: none
    align_bytes: int = 512


DEFAULT_SETTINGS: Final = FileSettings()


class FileJournal:
    """Implements `shards.journal.Journal`. After an error of `open`, `open` may be called again."""

    granted_ns = ALL_TIME_NS  # the lock keeps every newer owner away, so this one may act at any time
    beat_s = 0.0
    _live: ActiveSegment  # from `open` on

    def __init__(
        self,
        directory: str,
        disk: Disk,
        settings: FileSettings = DEFAULT_SETTINGS,
        *,
        now_ns: Callable[[], int],
        salt: Callable[[], int],
    ) -> None:
        """`directory`: made with mode 0700 if absent; its parent must exist. `now_ns`: the clock that stamps batches.
        `salt`: returns a random u64 for each segment.
        """
        if settings.sync not in SYNC_MODES:
            raise ValueError(f"sync must be one of {SYNC_MODES}, not {settings.sync!r}")
        self._directory, self._disk, self._now_ns, self._salt = directory, disk, now_ns, salt
        self._boot_id = disk.boot_id()  # 16 bytes that change when the machine reboots
        self._sync, self._always = settings.sync, settings.sync == "always"
        self._sync_interval_ns = settings.sync_interval_ns
        self._align = settings.align_bytes
        self._room = SegmentReserve(disk, directory, settings.segment_bytes, settings.ballast_bytes)
        self._warnings: list[str] = []
        self._ended: JournalError | None = JournalError("the journal is not open", file=directory)
        self._lock = -1
        self._exchange = threading.Lock()  # held while the active segment is replaced, or another thread syncs it
        self._handle = -1  # of the active segment
        self._shard = 0
        self._owner = b""
        self._epoch = 0
        self._segments: list[Segment] = []  # ascending, the active one last
        self._retained = RetainedSnapshots(disk, directory)
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT_CHAINS)  # (position, chain)
        self._head = self._durable = self._barrier = 0
        self._chain = FIRST_CHAIN
        self._last_time_ns = self._synced_ns = self._room_retry_ns = 0

    @property
    def head(self) -> int:
        return self._head

    @property
    def first(self) -> int:
        return self._segments[0].header.first_position if self._segments else 1

    @property
    def last_time_ns(self) -> int:
        return self._last_time_ns

    @property
    def stored_bytes(self) -> int:
        sealed = sum(segment.size for segment in self._segments[:-1])
        return sealed + (self._live.offset if self._segments else 0) + self._retained.stored_bytes

    @property
    def no_room(self) -> str:
        if self._room.is_wanting and self._live.is_filling:
            return "the disk is full: no room for the next segment of the journal"
        return ""

    @property
    def medium(self) -> Medium:
        """Files have no server, and their only limit is that of the disk."""
        return Medium()

    @property
    def warnings(self) -> list[str]:
        return self._warnings

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self, shard: int, owner: str) -> Opened:
        """Raises Unfit also where the directory is open to other users, or on a file system whose locks do
        not hold.
        """
        assert self._lock < 0, "it is open already"
        self._shard, self._owner = shard, owner.encode()
        if len(self._owner) > OWNER_BYTES_MAX:
            raise ValueError(f"the owner's name is longer than {OWNER_BYTES_MAX} bytes")
        self._ended = None
        self._recent.clear()
        try:
            self._warnings = private_directory(self._disk, self._directory)
            try:
                self._lock = self._disk.lock(f"{self._directory}/{LOCK}")
            except BlockingIOError:
                raise Fenced("another process holds this journal", file=f"{self._directory}/{LOCK}") from None
            self._take(examine(self._disk, self._directory, shard, self._boot_id))
        except OSError as error:
            self._release()
            raise self._failure("opening", error) from error
        except DirectoryRefused as refused:
            self._release()
            raise Unfit(str(refused), file=self._directory) from refused
        except Exception:
            self._release()
            raise
        return Opened(self._epoch, self._head, 0)

    def _take(self, recovery: Recovery) -> None:
        """Begins a segment of this life, with the batches that the earlier life may have left only in a cache."""
        log = recovery.log
        self._room.sweep()
        if log.torn is not None:
            name = recovery.segments[-1].name
            self._with_ballast(lambda: keep_torn(self._disk, self._directory, name, self._now_ns()))
            self._warnings.append(f"cut off a torn tail that nobody was answered: {log.torn}; a copy is kept beside it")
        self._epoch = recovery.epoch + 1
        self._last_time_ns = log.last_time_ns
        if log.last_time_ns and recovery.segments[-1].header.boot_id != self._boot_id:
            self._last_time_ns += TOLD_AHEAD_NS
        self._segments = list(recovery.segments)
        drop_unfinished(self._disk, self._directory, recovery)
        salt = self._salt()
        body = written_anew(log, salt_seed(salt), self._next_segment_id(), self._align)
        self._with_ballast(lambda: self._room.prepare(length_for(len(body), self._align)))
        self._with_ballast(lambda: self._begin(salt, log.durable + 1, log.durable_chain, body))
        self._head = self._durable = self._barrier = log.head
        self._chain = log.chain
        self._recent.append((log.head, log.chain))
        self._warnings += set_aside(self._disk, self._directory, recovery.damaged)
        drop_replaced(self._disk, self._directory, self._segments, recovery)
        self._retained.fill(recovery.snapshots)
        self._make_room()

    def _with_ballast(self, step: Callable[[], None]) -> None:
        """Calls `step`; where there is no room, drops the ballast and calls it once more. Raises OSError."""
        try:
            step()
        except OSError as error:
            if not is_full(error) or not self._room.drop_ballast():
                raise
            self._warnings.append(f"the disk is full: dropped the ballast in {self._directory} to open the journal")
            step()

    # -- appending ---------------------------------------------------------------------------------------------------

    def append(self, payload: bytes, durable: bool = False) -> int:
        if self._ended is not None:
            raise self._ended
        if not 0 < len(payload) <= PAYLOAD_BYTES_MAX:
            raise ValueError(f"a payload has 1 to {PAYLOAD_BYTES_MAX} bytes, not {len(payload)}")
        now_ns = self._now_ns()
        if not self._live.fits(len(payload)):
            self._switch(len(payload))
        elif self._live.is_filling and not self._room.spare_bytes and now_ns >= self._room_retry_ns:
            self._make_room()
        position = self._head + 1
        if now_ns > self._last_time_ns:
            self._last_time_ns = now_ns
        sync = self._always or durable
        sync = sync or (self._sync == "interval" and now_ns - self._synced_ns >= self._sync_interval_ns)
        try:
            chain = self._live.put(self._chain, position, 0, self._durable, self._last_time_ns, payload, sync)
        except OSError as error:
            raise self._end("writing a batch", error, position) from error
        except BaseException:
            self._break_off()
            raise
        self._head, self._chain = position, chain
        self._recent.append((position, chain))
        if sync:
            self._durable, self._synced_ns = position, now_ns
        return position

    def idle_barrier(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._barrier < self._head and self._sync != "never":
            if self._durable < self._head:
                self._sync_live()
            head = self._barrier = self._head
            try:
                self._live.put(self._chain, head, BARRIER, head, self._last_time_ns, b"", True)
            except OSError as error:
                raise self._end("writing a barrier", error, head) from error
            except BaseException:
                self._break_off()
                raise
        self._make_room()

    def _sync_live(self) -> None:
        """Makes everything written durable; called by the thread that appends."""
        try:
            self._live.sync()
        except OSError as error:
            raise self._end("syncing", error, self._head) from error
        self._durable, self._synced_ns = self._head, self._now_ns()

    def _switch(self, payload_bytes: int) -> None:
        """Begins the next segment, with room for a payload of this size. Raises Unavailable where nothing
        has changed.
        """
        if self._durable < self._head:  # only the newest segment may hold batches that are not durable
            self._sync_live()
        try:
            self._room.prepare(length_for(payload_bytes, self._align))
            self._begin(self._salt(), self._head + 1, self._chain, b"")
        except OSError as error:
            raise self._failure("beginning a new segment", error) from error

    def _begin(self, salt: int, first_position: int, prev_chain: int, body: bytes) -> None:
        """Makes the spare the active segment. Raises OSError where nothing has changed yet, Unknown where the disk
        failed midway.
        """
        segment_id, length = self._next_segment_id(), self._room.spare_bytes
        header = SegmentHeader(
            int(self._always), self._shard, salt, segment_id, first_position, length, prev_chain, self._align,
            self._epoch, self._now_ns(), self._last_time_ns, self._boot_id, self._owner,
        )  # fmt: skip
        self._room.dress(pack_block(header) + body, self._manifest(header, clean=0))
        name = segment_name(segment_id)
        try:
            handle = self._room.install(name)
            segment = Segment(name, header, length)
            with self._exchange:
                older, self._handle = self._handle, handle
                self._live = ActiveSegment(self._disk, handle, segment, len(body))
                if older >= 0:
                    self._disk.close(older)
        except OSError as error:
            raise self._end(f"beginning {name}", error) from error
        self._segments.append(segment)

    def _next_segment_id(self) -> int:
        return self._segments[-1].header.segment_id + 1 if self._segments else 1

    def _manifest(self, header: SegmentHeader, *, clean: int) -> Manifest:
        return Manifest(
            clean, self._shard, header.prev_chain, self._epoch, header.segment_id, header.first_position,
            self._head if clean else 0, self._chain if clean else 0,
        )  # fmt: skip

    def _make_room(self) -> None:
        """Prepares the next segment and the ballast, where there is room for them. A disk that fails is terminal."""
        try:
            self._room.prepare()
            self._room.take_ballast()
        except OSError as error:
            if not is_full(error):
                raise self._end("preparing a segment", error) from error
            self._room_retry_ns = self._now_ns() + ROOM_RETRY_NS

    # -- reading -----------------------------------------------------------------------------------------------------

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        if self._ended is not None:
            raise self._ended
        head = self._head  # read first: batches appended from now on are not replayed
        segments = reaching(self._segments[:], start, head)
        if not segments:
            raise Gap(f"position {start} is not in the log, which ends at {head}", file=self._directory)
        return self._replay(segments, start, head)

    def _replay(self, segments: list[Segment], start: int, head: int) -> Iterator[tuple[int, bytes]]:
        try:
            yield from batches(self._disk, self._directory, segments, start, head)
        except OSError as error:
            raise self._end("reading", error) from error

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def save_snapshot(self, position: int, chunks: Iterable[bytes]) -> None:
        if self._ended is not None:
            raise self._ended
        if not self._retained.newest <= position <= self._head:
            raise ValueError(f"position {position} does not lie between the last snapshot's and the head {self._head}")
        try:
            head = snapshot.Head(self._shard, self._chain_at(position), position, self._epoch, self._now_ns())
            self._retained.save(head, chunks, self._reached)
        except Malformed as fault:
            raise self._end("reading a snapshot back", fault) from fault
        except OSError as error:
            if is_full(error):
                with suppress(OSError):
                    self._room.drop_ballast()  # so that the next snapshot may fit, after which trimming frees more
            raise self._failure("saving a snapshot", error) from error

    def load_snapshot(self) -> Snapshot | None:
        if self._ended is not None:
            raise self._ended
        retained = self._retained
        return Snapshot(retained.newest, self._load(), retained.count) if retained.newest >= 0 else None

    def _load(self) -> Iterator[bytes]:
        try:
            yield from self._retained.load()
        except Malformed as fault:
            raise Corrupt(f"the snapshot is damaged: {fault}", file=self._directory) from fault
        except OSError as error:
            raise self._end("reading a snapshot", error) from error

    def trim(self, position: int) -> None:
        if self._ended is not None:
            raise self._ended
        if position > self._retained.newest:
            raise ValueError(f"position {position} lies beyond the newest snapshot, {self._retained.newest}")
        limit, trimmed = min(position, self._retained.fallback), False
        try:
            while len(self._segments) > 1 and self._segments[1].header.first_position - 1 <= limit:
                self._disk.unlink(f"{self._directory}/{self._segments[0].name}")
                del self._segments[0]
                trimmed = True
            if trimmed:
                self._disk.fsync_dir(self._directory)
                self._room.want_ballast()
        except OSError as error:
            raise self._end("trimming", error) from error

    def _reached(self) -> int:
        """Returns the head once everything up to it is durable. Called by the thread that saves a snapshot. Raises
        OSError.
        """
        with self._exchange:
            head = self._head
            if not self._always:
                self._live.sync()
        return head

    def _chain_at(self, position: int) -> int:
        """Returns the chain after this position: the last ones are remembered, older ones are read again."""
        for recent_position, chain in [(0, FIRST_CHAIN), *self._recent]:
            if recent_position == position:
                return chain
        return chain_at(self._disk, self._directory, self._segments, position)

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._lock < 0:
            return
        try:
            if self._ended is None:
                if self._durable < self._head:
                    self._sync_live()
                self._room.mark(self._manifest(self._segments[-1].header, clean=1))
        except OSError as error:
            if not is_full(error):  # without room for the mark, the stop merely does not count as clean
                raise self._end("marking a clean stop", error) from error
        finally:
            self._release()

    def _release(self) -> None:
        self._room.close()
        for handle in (self._handle, self._lock):
            if handle >= 0:
                with suppress(OSError):
                    self._disk.close(handle)
        self._handle = self._lock = -1
        if self._ended is None:
            self._ended = JournalError("the journal was closed", file=self._directory)

    def _failure(self, doing: str, error: OSError) -> JournalError:
        """Returns the journal's error for an OSError of a step that has changed nothing yet."""
        if is_full(error):
            return Unavailable(f"the disk is full: no room for {doing}: {error.strerror}", file=self._directory)
        if error.errno in FORBIDDEN:
            return Unfit(f"{doing} is not possible: {error.strerror}", file=error.filename or self._directory)
        return self._end(doing, error)

    def _break_off(self) -> None:
        """Ends the journal where a write was interrupted. How much of the record is in the file is not known, so
        nothing may follow it and no stop counts as clean.
        """
        self._ended = JournalError("a record was broken off", file=self._directory)

    def _end(self, doing: str, error: Exception, position: int = -1) -> JournalError:
        """Ends the journal because a call failed, and returns the error that every later call raises."""
        name, offset = (self._live.segment.name, self._live.offset) if position >= 0 else ("", -1)
        kind, text = failure_of(doing, error)
        self._ended = kind(text, file=f"{self._directory}/{name}", offset=offset, position=position)
        return self._ended
