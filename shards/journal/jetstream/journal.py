"""A shard's journal in the streams `J_<shard>` and `S_<shard>`.

**Ownership is time.** Each record names the billing instant up to which its owner may act (`until_ns`), `grant_ns`
after the moment at which it was sent; where no other record is due, a beat renews it. A newer owner waits until the
stream's last sequence has stood still for 1.01 `grant_ns` of its own boot clock, or is a seal. Then it publishes its
epoch behind exactly that sequence, and begins at the last `until_ns`. An older owner that wakes up finds its sequence
taken: `Fenced`. So every billing instant belongs to one epoch, however far the clocks of two hosts differ.

**One publish in flight**, each at the sequence behind the last (`publisher`), so a record that is there proves all
before it. A batch that is too large for one record is written in parts, and exists once its last part does.

**A host remembers the end of each stream that it has seen.** A stream that ends before the remembered sequence, or has
another record there, has lost its end. No chain can show that, so `open` raises Corrupt.

There are three connections for three threads: one appends, one saves snapshots and trims, one reads.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from crc32c import crc32c

from shards.journal import (
    Corrupt,
    Fenced,
    Full,
    Gap,
    JournalError,
    Medium,
    Opened,
    Snapshot,
    Unavailable,
    Unknown,
)
from shards.journal.jetstream import log, snapshots
from shards.journal.jetstream.connection import Connection, Denied, NoAnswer, Unreachable
from shards.journal.jetstream.publisher import Publisher, Taken
from shards.journal.jetstream.record import (
    BATCH,
    BEAT,
    EPOCH,
    FIRST_CHAIN,
    PART_BYTES_MAX,
    SEAL,
    Malformed,
    Record,
    pack,
)
from shards.journal.jetstream.streams import NO_ROOM_SHARE, NotNow, Refused, State, Stream, opening
from shards.journal.jetstream.witness import Witness

PAYLOAD_BYTES_MAX = 256 << 20
OWNER_BYTES_MAX = 64
RECENT = 4096  # the last batches whose places are remembered
STILL_SHARE = 1.01  # of the grant, because the clocks of two hosts run at different rates
MESSAGE_OVERHEAD_BYTES = 100  # about what a stream stores beside each message
LOOK_BYTES = 4 << 20  # the size of the stream is read again after so many bytes,
LOOK_NS = 1_000_000_000  # or with the first record after so long: somebody may have limited it
OPEN_PATIENCE_S, PATIENCE_S = 2.0, 10.0


class Terms(NamedTuple):
    """The settings of a journal."""

    grant_ns: int
    retain_bytes: int  # of the log, kept although a snapshot replaces them


class JetStreamJournal:
    """Implements `shards.journal.Journal`. After an error of `open`, `open` may be called again."""

    def __init__(
        self,
        connect: Callable[[str], Connection],
        shard: int,
        terms: Terms,
        witness: Witness,
        now_ns: Callable[[], int],
        boot_ns: Callable[[], int],
        still: tuple[int, int] | None = None,
        line_ns: Callable[[], int] | None = None,
    ) -> None:
        """`connect(purpose)`: returns a connection that nobody else uses. `now_ns`: billing time; 0 before it has
        begun. `still`: a last sequence of the stream, and the boot instant since which it has been seen to be the last.
        `line_ns`: see `shards.journal.Backend.journal`.
        """
        self._terms, self._witness, self._now_ns, self._boot_ns = terms, witness, now_ns, boot_ns
        self._line_ns = now_ns if line_ns is None else line_ns
        self._connections = [connect(purpose) for purpose in ("append", "snapshot", "read")]
        self._name = f"J_{shard}"
        self._shard = shard
        self._subject = f"J.{shard}"
        self._ended: JournalError | None = JournalError(f"the journal {self._name} is not open")
        self._still = still  # (the last sequence, the boot instant since which it has stood still)
        self._epoch = self._head = self._last_time_ns = self._granted_ns = self._asked_ns = 0
        self._chain = FIRST_CHAIN
        self._first = 1
        self._recent: deque[log.Place] = deque(maxlen=RECENT)
        self._log_bytes = self._looked_bytes = self._looked_ns = self._bytes_max = 0
        self._manifests: list[snapshots.Manifest] = []
        self._no_room = ""
        self._leader = ""  # of the stream, when its state was last read
        self._round_trip_ns = 0  # of the last record
        self._warnings: list[str] = []
        self._is_open = False
        self._rest(OPEN_PATIENCE_S)

    def _rest(self, patience_s: float) -> None:
        appending, saving, reading = self._connections
        self._log = Stream(appending, self._name, patience_s, self._boot_ns)
        self._trimmed = Stream(saving, self._name, patience_s, self._boot_ns)
        self._saved = Stream(saving, f"S_{self._shard}", patience_s, self._boot_ns)
        self._read = Stream(reading, self._name, patience_s, self._boot_ns)
        self._loaded = Stream(reading, f"S_{self._shard}", patience_s, self._boot_ns)
        self._publisher = Publisher(self._log, 0, self._boot_ns)

    head = property(lambda self: self._head)
    first = property(lambda self: self._first)
    last_time_ns = property(lambda self: self._last_time_ns)
    granted_ns = property(lambda self: self._granted_ns)
    no_room = property(lambda self: self._no_room)
    warnings = property(lambda self: self._warnings)

    @property
    def medium(self) -> Medium:
        return Medium(self._leader, self._log_bytes, self._bytes_max, self._round_trip_ns)

    @property
    def beat_s(self) -> float:
        return self._terms.grant_ns / 4e9

    @property
    def stored_bytes(self) -> int:
        return self._log_bytes + sum(manifest.length for manifest in self._manifests[:])

    # -- opening ----------------------------------------------------------------------------------------------------

    def open(self, shard: int, owner: str) -> Opened:
        assert shard == self._shard, f"this is the journal of shard {self._shard}"
        assert not self._is_open, "it is open already"
        if len(owner.encode()) > OWNER_BYTES_MAX:
            raise ValueError(f"the owner's name is longer than {OWNER_BYTES_MAX} bytes")
        self._rest(OPEN_PATIENCE_S)
        with opening():
            opened = self._take(owner.encode())
        self._rest(PATIENCE_S)
        self._publisher.sequence = self._asked_sequence
        self._ended, self._is_open = None, True
        return opened

    def _take(self, owner: bytes) -> Opened:
        witnessed = self._witness.last_seen()
        state = self._log.state()
        end, newest = log.Place(0, 0, FIRST_CHAIN), None
        if state.first <= state.last:
            end, newest = log.end_of(self._log, state.first, state.last, self._shard)
        elif state.last:
            raise Corrupt(f"{self._name} is empty, and was at sequence {state.last}")
        self._witness.check(
            witnessed, self._name, state.last, lambda at: log.record_at(self._log, at, self._shard).chain
        )
        self._await_stillness(state, newest)
        began_ns = newest.until_ns if newest is not None else 0
        time_ns = newest.time_ns if newest is not None else 0
        epoch = newest.epoch + 1 if newest is not None else 1
        self._manifests = self._choose(state, end)
        record = Record(
            EPOCH, 1, 0, self._shard, epoch, end.position, end.chain, end.chain, time_ns, began_ns, owner
        )  # fmt: skip
        publisher = Publisher(self._log, state.last, self._boot_ns)
        try:
            self._asked_sequence = publisher.put(self._subject, pack(record))
        except Taken as taken:
            raise Fenced(f"another owner was faster: {taken}") from None
        self._epoch, self._head, self._chain = epoch, end.position, end.chain
        self._last_time_ns, self._granted_ns = time_ns, began_ns
        self._recent.clear()
        self._recent.append(end)
        self._first = log.first_position(self._log, state.first, state.last, self._shard)
        self._measure(self._log.state())
        return Opened(epoch, end.position, began_ns)

    def _await_stillness(self, state: State, newest: Record | None) -> None:
        """Raises Fenced as long as the older owner may live."""
        if newest is None or newest.kind == SEAL:
            return
        now_ns = self._boot_ns()
        if self._still is None or self._still[0] != state.last:
            self._still = state.last, now_ns
        if now_ns - self._still[1] < STILL_SHARE * self._terms.grant_ns:
            raise Fenced(f"the owner of epoch {newest.epoch} may live still: {self._name} moved a moment ago")

    def _choose(self, state: State, end: log.Place) -> list[snapshots.Manifest]:
        """Returns the snapshots up to the newest whole one. Raises Corrupt where a snapshot does not fit
        this log.
        """
        self._warnings = []
        try:
            manifests = snapshots.manifests_of(self._saved, self._shard)
        except Malformed as fault:
            raise Corrupt(f"{self._saved.name}: {fault}") from fault
        while manifests:
            manifest = manifests[-1]
            try:
                if manifest.position > end.position or manifest.reached > end.position:
                    raise Corrupt(
                        f"the snapshot at position {manifest.position} has seen position {manifest.reached}, and "
                        f"{self._name} ends at {end.position}: its end is lost"
                    )
                if manifest.sequence >= state.first:
                    record = log.record_at(self._log, manifest.sequence, self._shard)
                    if (record.position, record.chain) != (manifest.position, manifest.chain):
                        raise Corrupt(f"the snapshot at position {manifest.position} was not taken from this log")
                snapshots.check(self._saved, manifest)
                return manifests
            except Malformed as fault:
                manifests.pop()
                self._warnings.append(f"passed over a damaged snapshot of shard {self._shard}: {fault}")
        return []

    # -- appending --------------------------------------------------------------------------------------------------

    def append(self, payload: bytes, durable: bool = False) -> int:
        if self._ended is not None:
            raise self._ended
        if not 0 < len(payload) <= PAYLOAD_BYTES_MAX:
            raise ValueError(f"a payload has 1 to {PAYLOAD_BYTES_MAX} bytes, not {len(payload)}")
        position, chain = self._head + 1, self._chain
        time_ns = max(self._last_time_ns, self._now_ns())
        for number, at in enumerate(range(0, len(payload), PART_BYTES_MAX)):
            body = payload[at : at + PART_BYTES_MAX]
            before, chain = chain, crc32c(body, chain)
            last = int(at + len(body) == len(payload))
            self._put(BATCH, last, number, position, before, chain, time_ns, body)
        self._head, self._chain, self._last_time_ns = position, chain, time_ns
        self._recent.append(log.Place(position, self._publisher.sequence, chain))
        self._look()
        return position

    def idle_barrier(self) -> None:
        if self._ended is not None:
            raise self._ended
        now_ns = self._now_ns()  # 0: the shard recovers, and the beat only says that its owner lives
        if not now_ns or self._granted_ns - now_ns <= self._terms.grant_ns * 3 // 4 or self._no_room:
            self._put(BEAT, 1, 0, self._head, self._chain, self._chain, self._last_time_ns, b"")
            if self._no_room:
                self._looked_bytes = -LOOK_BYTES
            self._look()

    def _put(
        self, kind: int, last: int, part: int, position: int, prev_chain: int, chain: int, time_ns: int, body: bytes
    ) -> None:
        """Publishes one record, and renews the grant with it."""
        now_ns = self._now_ns()
        until_ns = max(self._granted_ns, self._line_ns() + self._terms.grant_ns) if now_ns else self._granted_ns
        if kind == SEAL:
            until_ns = min(self._granted_ns, now_ns + 1) if now_ns else self._granted_ns
        fields = (kind, last, part, self._shard, self._epoch, position, prev_chain, chain, time_ns, until_ns)
        sent_ns = self._boot_ns()
        record = pack(Record(*fields, body))
        try:
            self._publisher.put(self._subject, record, matters=kind != BEAT)
        except Taken as taken:
            raise self._end(self._intruder(taken)) from None
        except Unavailable as error:
            if isinstance(error, Full):
                self._no_room = error.message
            raise
        except JournalError as error:
            raise self._end(error) from error
        self._granted_ns = until_ns
        self._round_trip_ns = self._boot_ns() - sent_ns
        self._log_bytes += len(record) + MESSAGE_OVERHEAD_BYTES

    def _intruder(self, taken: Taken) -> JournalError:
        """Returns the error for a record of somebody else at the next sequence: Fenced where a newer owner wrote it,
        Corrupt where it is no record of this shard.
        """
        try:
            record = log.record_of(taken.stored, self._shard, self._name)
        except Corrupt as corrupt:
            return Corrupt(f"somebody who is no owner writes to {self._subject}: {corrupt.message}")
        return Fenced(f"epoch {record.epoch} has taken shard {self._shard} from epoch {self._epoch}")

    def _end(self, error: JournalError) -> JournalError:
        self._ended = error
        return error

    def _look(self) -> None:
        """Records how far this host has seen the stream, and now and then reads the stream's size."""
        self._witness.saw(self._publisher.sequence, self._chain)
        now_ns = self._boot_ns()
        nearly_full = not self._no_room and 0 < self._bytes_max * NO_ROOM_SHARE < self._log_bytes
        if nearly_full or self._log_bytes - self._looked_bytes >= LOOK_BYTES or now_ns - self._looked_ns > LOOK_NS:
            self._looked_ns = now_ns
            try:
                self._measure(self._log.glance())
            except (Unreachable, NoAnswer, NotNow, Refused, Denied):
                self._leader = ""  # read again after LOOK_NS

    def _measure(self, state: State) -> None:
        self._log_bytes = self._looked_bytes = state.stored_bytes
        self._bytes_max = max(int(state.config.get("max_bytes", -1)), 0)
        self._leader = str(state.cluster.get("leader", ""))
        if 0 < self._bytes_max * NO_ROOM_SHARE < self._log_bytes:
            self._no_room = f"the log is full: {self._name} holds {self._log_bytes} of {self._bytes_max} bytes"
        else:
            self._no_room = ""

    # -- reading ----------------------------------------------------------------------------------------------------

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        if self._ended is not None:
            raise self._ended
        head, last = self._head, self._publisher.sequence  # read first: batches appended from now on are not replayed
        if not self._first <= start <= head + 1:
            raise Gap(f"position {start} is not in {self._name}, which holds {self._first} to {head}")
        return log.replayed(self._read, self._shard, self._locate(self._read, start - 1), last, head)

    def _locate(self, stream: Stream, position: int) -> log.Place:
        """Returns where a position ends: the last ones and those of snapshots are remembered, others are
        searched for.
        """
        if position == 0 and self._first == 1:
            return log.Place(0, 0, FIRST_CHAIN)
        recent = list(self._recent)
        if recent and recent[0].position <= position <= recent[-1].position:
            return recent[position - recent[0].position]
        for manifest in reversed(self._manifests[:]):  # of two at one position, the log may begin behind the older one
            if manifest.position == position:
                return log.Place(position, manifest.sequence, manifest.chain)
        last = self._publisher.sequence
        return log.locate(stream, stream.state().first, last, position, self._shard)

    # -- snapshots --------------------------------------------------------------------------------------------------

    def save_snapshot(self, position: int, chunks: Iterable[bytes]) -> None:
        if self._ended is not None:
            raise self._ended
        newest = self._manifests[-1].position if self._manifests else -1
        if not newest <= position <= self._head:
            raise ValueError(f"position {position} does not lie between the last snapshot's and the head {self._head}")
        end = self._locate(self._trimmed, position)
        subject, manifest_subject = snapshots.subjects_of(self._shard)
        try:
            publisher = Publisher(self._saved, self._saved.state().last, self._boot_ns)
            previous = self._saved.last_of(manifest_subject)
            if previous is not None:
                epoch = snapshots.unpack_manifest(previous.payload, self._shard).epoch
                if epoch > self._epoch:  # a recovery from our snapshot would need records that this epoch has trimmed
                    raise self._end(Fenced(f"epoch {epoch} saves snapshots of shard {self._shard}"))
            digest = hashlib.blake2b(digest_size=16)
            first, number, length = publisher.sequence + 1, 0, 0
            for piece in snapshots.pieces_of(chunks, digest):
                publisher.put(subject, snapshots.pack_piece(self._shard, self._epoch, position, number, piece))
                number, length = number + 1, length + len(piece)
            manifest = snapshots.Manifest(
                self._shard, self._epoch, position, end.chain, end.sequence, self._head, first, number, length,
                previous.sequence if previous is not None else 0, digest.digest(),
            )  # fmt: skip
            snapshots.check(self._saved, manifest)
            publisher.put(manifest_subject, snapshots.pack_manifest(manifest))
        except Taken as taken:
            raise self._end(Fenced(f"another owner saves snapshots of shard {self._shard}: {taken}")) from None
        except (Malformed, Corrupt, Refused) as error:
            raise self._end(Unknown(f"saving a snapshot: {error}")) from error
        self._manifests = [*self._manifests, manifest][-snapshots.KEPT :]
        if len(self._manifests) == snapshots.KEPT:
            self._saved.purge(self._manifests[0].first)

    def load_snapshot(self) -> Snapshot | None:
        if self._ended is not None:
            raise self._ended
        return Snapshot(self._manifests[-1].position, self._chunks(self._manifests[-1])) if self._manifests else None

    def _chunks(self, manifest: snapshots.Manifest) -> Iterator[bytes]:
        try:
            yield from snapshots.chunks_of(self._loaded, manifest)
        except Malformed as fault:
            raise Corrupt(f"the snapshot is damaged: {fault}", position=manifest.position) from fault

    def trim(self, position: int) -> None:
        if self._ended is not None:
            raise self._ended
        if position > (self._manifests[-1].position if self._manifests else -1):
            raise ValueError(f"position {position} lies beyond the newest snapshot")
        limit = min(position, self._manifests[-2].position if len(self._manifests) == snapshots.KEPT else 0)
        if limit < self._first:
            return
        try:
            if self._trimmed.state().stored_bytes > self._terms.retain_bytes:
                below = self._locate(self._trimmed, limit).sequence + 1
                self._trimmed.purge(min(below, self._publisher.sequence))  # the last record says who owns the shard
                self._first = limit + 1
                self._log_bytes = self._looked_bytes = self._trimmed.state().stored_bytes
        except Refused as error:
            raise self._end(Unknown(f"trimming: {error}")) from error

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        try:
            if self._is_open and self._ended is None:
                self._put(SEAL, 1, 0, self._head, self._chain, self._chain, self._last_time_ns, b"")
                self._witness.saw(self._publisher.sequence, self._chain, at_once=True)
        finally:
            self._is_open = False
            if self._ended is None:
                self._ended = JournalError(f"the journal {self._name} was closed")
            for connection in self._connections:
                connection.close()
