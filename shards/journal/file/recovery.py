"""What a directory of journal files says, and whether it can be believed. Reads only; `file.journal` acts on it.

The answer is the whole sequence from a good snapshot (or from position 1) to the head, or an exception. The one thing
that is passed over is a *torn tail*: the last batch, whose write a loss of power or a kill cut off, and which nobody
was ever answered. Everything else that is not right was durable once, and is refused. At the first place where no good
batch begins:

1. A good header anywhere behind it whose batch was written only after a sync of all before it (`record.is_proof`; under
   sync=always that is each one; there, anything behind the end of a batch whose header is good will do), or a
   following segment: corrupt.
2. The journal was closed cleanly: corrupt.
3. The machine has not been started anew since, so the kernel still has every byte that was written, and what stands
   there is not simply cut short (the rest zeros): corrupt.
4. Else it is a torn tail.
5. A read error is an error of its own (OSError), never the end of the log.

Zeros to the end of the segment are the end of the log. Which bytes belong to a segment follows from the one after it:
it ends where the next begins, so bytes that recovery wrote anew count, and later bytes of the old file do not.

Batches at the end that nothing proves durable (`suspects`) were read from a cache that may know more than the disk.
They are handed to the caller, who must write them anew before anybody is told of them. What proves: a later batch, for
those before it; the manifest, for the name of the segment that it names. A segment newer than that one is the work of
an opening or a switch that did not come to its end; all in it is suspect, even though it looks whole.
"""

from __future__ import annotations

from typing import NamedTuple

from shards.journal import Corrupt, Gap, OtherFormat, Torn
from shards.journal.file import snapshot
from shards.journal.file.record import (
    BARRIER,
    BLOCK_BYTES,
    FIRST_CHAIN,
    HEADER_BYTES,
    Batch,
    Malformed,
    Manifest,
    Newer,
    SegmentHeader,
    aligned,
    claimed_end,
    later_proof,
    pack_batch,
    unpack_block,
    unpack_manifest,
    used_end,
    walk,
)
from shards.journal.file.replay import Segment, covering
from shards.system.disk import Disk, read_file

MANIFEST = "manifest"
TEMPORARY = ".tmp"  # of files that are not finished; swept away by the next opening
PREFIX = "segment-"


class Suspect(NamedTuple):
    """A batch that is there, but perhaps only in a cache: its payload lies in `data` from `start` to `end`."""

    time_ns: int
    data: bytes
    start: int
    end: int


class Log(NamedTuple):
    """The batches from `start` on, read whole and linked."""

    head: int
    chain: int
    durable: int  # proven to be durable up to here
    durable_chain: int
    last_time_ns: int
    suspects: list[Suspect]  # positions durable + 1 … head
    live_end: int  # offset in the newest segment behind the last proven batch
    torn: Torn | None


class Recovery(NamedTuple):
    """All that opening needs to know."""

    epoch: int  # highest ever; 0: nothing is there
    segments: list[Segment]  # those that hold the log, ascending
    replaced: list[Segment]  # those of which a newer one took over everything
    named_segment_id: int  # id of the one in the manifest; 0: none
    log: Log
    snapshots: list[str]  # names of those to keep, ascending, the last one whole
    damaged: list[str]  # names of newer ones that are not


def segment_name(segment_id: int) -> str:
    """File name of a segment; names sort as ids do."""
    return f"{PREFIX}{segment_id:010d}"


def examine(disk: Disk, directory: str, shard: int, boot_id: bytes) -> Recovery:
    """Read everything and judge it. Raises Corrupt, Gap; OSError when something cannot be read."""
    names = disk.listdir(directory)
    segments = [open_segment(disk, directory, name, shard) for name in names if is_segment(name)]
    manifest = _open_manifest(disk, directory, shard) if MANIFEST in names else None
    _check_manifest(disk, directory, manifest, segments)
    holding: list[Segment] = []
    for segment in reversed(segments):
        if not holding or segment.header.first_position < holding[0].header.first_position:
            holding.insert(0, segment)
    snapshot_names, good, damaged = _choose_snapshot(disk, directory, names, shard)
    if not segments and (snapshot_names or damaged):
        raise Gap("there are snapshots, but no segment and no manifest", file=directory)
    clean = manifest is not None and bool(manifest.clean)
    named_segment_id = manifest.segment_id if manifest is not None else 0
    try:
        log = read_log(disk, directory, holding, named_segment_id, good, boot_id, clean=clean)
    except Gap as gap:
        if not damaged:
            raise
        name, reason = damaged[0]
        raise Corrupt(
            f"the snapshot is damaged: {reason}; going without it: {gap}", file=f"{directory}/{name}"
        ) from gap
    if manifest is not None and clean and (log.head, log.chain) != (manifest.head, manifest.head_chain):
        raise Corrupt(
            f"it was closed at position {manifest.head}, but the log ends otherwise at {log.head}",
            file=f"{directory}/{segments[-1].name}",
            offset=log.live_end,
            position=log.head + 1,
        )
    epoch = max(manifest.epoch if manifest is not None else 0, *(segment.header.epoch for segment in segments), 0)
    replaced = [segment for segment in segments if segment not in holding]
    return Recovery(epoch, holding, replaced, named_segment_id, log, snapshot_names, [name for name, _ in damaged])


def read_log(
    disk: Disk,
    directory: str,
    segments: list[Segment],
    named_segment_id: int,
    base: snapshot.Checked | None,
    boot_id: bytes,
    *,
    clean: bool,
) -> Log:
    """Read from the base on (None: from position 1) to the head. Raises Corrupt, Gap; OSError."""
    start = base.head.position + 1 if base is not None else 1
    if not segments:
        return Log(0, FIRST_CHAIN, 0, FIRST_CHAIN, 0, [], 0, None)
    index = covering(segments, start)
    if index < 0:
        first = segments[0].header.first_position
        raise Gap(f"positions {start} to {first - 1} are missing", file=directory, position=start)
    unnamed = [segment for segment in segments if segment.header.segment_id > named_segment_id]
    index = min(index, len(segments) - len(unnamed)) if unnamed else index
    head, chain = segments[index].header.first_position - 1, segments[index].header.prev_chain
    if base is None and chain != FIRST_CHAIN:
        raise Corrupt("the first segment does not begin a chain", file=f"{directory}/{segments[index].name}", offset=0)
    suspects: list[Suspect] = []
    log = None
    for number in range(index, len(segments)):
        segment = segments[number]
        path = f"{directory}/{segment.name}"
        if segment.header.prev_chain != chain or segment.header.first_position != head + 1:
            raise Corrupt("it does not go on from the segment before it", file=path, offset=0, position=head + 1)
        data = read_file(disk, path)
        is_named = segment.header.segment_id <= named_segment_id
        if number + 1 < len(segments):
            head, chain, batches = _read_sealed(path, data, segment, segments[number + 1], base)
            if not is_named:
                suspects += batches
        else:
            log = _read_live(path, data, segment, base, boot_id, clean, is_named)
    assert log is not None
    if unnamed:
        header = unnamed[0].header
        log = log._replace(
            durable=header.first_position - 1, durable_chain=header.prev_chain, suspects=suspects + log.suspects
        )
    if base is not None and log.head < base.reached:
        raise Corrupt(
            f"the log ends at position {log.head}, but {base.name} was finished when {base.reached} was durable",
            file=f"{directory}/{segments[-1].name}",
            offset=log.live_end,
            position=log.head + 1,
        )
    return log


def written_anew(log: Log, seed: int, segment_id: int, align: int) -> bytes:
    """The suspects as they will stand behind the first block of a new segment, and a barrier behind them.

    That segment must be synced whole before it gets its name: then whoever sees it sees the barrier's proof hold.
    """
    if not log.suspects:
        return b""
    parts, position, chain, time_ns = [], log.durable, log.durable_chain, 0
    for time_ns, source, start, end in log.suspects:
        position += 1
        payload = source[start:end]
        chain, data = pack_batch(seed, segment_id, chain, position, 0, log.durable, time_ns, payload)
        parts.append(data.ljust(aligned(len(data), align), b"\0"))
    assert (position, chain) == (log.head, log.chain), "what is written anew is not what was read"
    parts.append(pack_batch(seed, segment_id, chain, position, BARRIER, position, time_ns, b"")[1])
    return b"".join(parts)


def _read_sealed(
    path: str, data: bytes, segment: Segment, following: Segment, base: snapshot.Checked | None
) -> tuple[int, int, list[Suspect]]:
    """(last position, its chain, the batches) of a segment that another one follows: all up to there must be good."""
    header = segment.header
    until = following.header.first_position - 1
    position, chain, end = header.first_position - 1, header.prev_chain, BLOCK_BYTES
    batches = []
    _check_base(path, base, position, chain, 0)
    for batch in walk(data, header):
        if batch.position > until:
            break
        position, chain, end = batch.position, batch.chain, aligned(batch.end, header.align)
        if not batch.flags & BARRIER:
            batches.append(batch)
            _check_base(path, base, position, chain, batch.offset)
    if position < until:
        neighbours = following.header.segment_id == header.segment_id + 1
        if not neighbours and used_end(data, end) == end:
            raise Gap(
                f"positions {position + 1} to {until} are missing before {following.name}", file=path, position=until
            )
        raise Corrupt("no good batch where one was written", file=path, offset=end, position=position + 1)
    return position, chain, [Suspect(batch.time_ns, data, batch.payload_at, batch.payload_end) for batch in batches]


def _read_live(
    path: str, data: bytes, segment: Segment, base: snapshot.Checked | None, boot_id: bytes, clean: bool, is_named: bool
) -> Log:
    """The newest segment: batches, then zeros or a torn tail."""
    header = segment.header
    if len(data) != header.length:
        raise Corrupt(f"the file has {len(data)} bytes, but was made with {header.length}", file=path, offset=len(data))
    head, chain, time_ns, end = header.first_position - 1, header.prev_chain, header.last_time_ns, BLOCK_BYTES
    durable, durable_chain, durable_end = head, chain, end
    unproven: list[Batch] = []
    _check_base(path, base, head, chain, 0)
    for batch in walk(data, header):
        if is_named and batch.durable > durable:
            while unproven and unproven[0].position <= batch.durable:
                proven = unproven.pop(0)
                durable_chain, durable_end = proven.chain, aligned(proven.end, header.align)
            durable = batch.durable
        head, chain, time_ns, end = batch.position, batch.chain, batch.time_ns, aligned(batch.end, header.align)
        if batch.flags & BARRIER:
            if not unproven:
                durable_end = end
            continue
        unproven.append(batch)
        _check_base(path, base, head, chain, batch.offset)
    torn = None
    if used_end(data, end) > end:
        torn = _judge_tail(path, data, header, end, head + 1, same_boot=header.boot_id == boot_id, clean=clean)
    if clean and is_named:
        durable, durable_chain, durable_end = head, chain, end
        unproven = []
    assert durable == head - len(unproven), (durable, head, len(unproven))
    suspects = [Suspect(batch.time_ns, data, batch.payload_at, batch.payload_end) for batch in unproven]
    return Log(head, chain, durable, durable_chain, time_ns, suspects, durable_end, torn)


def _judge_tail(
    path: str, data: bytes, header: SegmentHeader, offset: int, position: int, *, same_boot: bool, clean: bool
) -> Torn:
    """The rules at the top of this module, for what is not zero behind the last good batch of the newest segment."""
    proof = later_proof(data, header, offset)
    if proof >= 0:
        reason = f"the batch is damaged: one that was written after it was durable follows at offset {proof}"
        raise Corrupt(reason, file=path, offset=offset, position=position)
    if clean:
        raise Corrupt("something stands behind the end of a log that was closed", file=path, offset=offset)
    end, claimed = used_end(data, offset), claimed_end(data, header, offset)
    if header.sync and 0 <= claimed < end:
        raise Corrupt("the batch is damaged: more was written behind it", file=path, offset=offset, position=position)
    if same_boot and end >= (claimed if claimed >= 0 else offset + HEADER_BYTES):
        reason = "the last batch is damaged, not cut short, and the machine has been up since it was written"
        raise Corrupt(reason, file=path, offset=offset, position=position)
    return Torn(f"{end - offset} bytes of an unfinished batch", file=path, offset=offset, position=position)


def _check_base(path: str, base: snapshot.Checked | None, position: int, chain: int, offset: int) -> None:
    if base is not None and position == base.head.position and chain != base.head.chain:
        raise Corrupt(f"{base.name} was not taken from this log", file=path, offset=offset, position=position)


def is_segment(name: str) -> bool:
    """Whether a file of this name is a segment."""
    digits = name[len(PREFIX) :]
    return name.startswith(PREFIX) and len(digits) == 10 and digits.isdecimal()


def open_segment(disk: Disk, directory: str, name: str, shard: int) -> Segment:
    """A segment by its first block. Raises Corrupt where that is not this segment's, or another shard's; OSError."""
    path = f"{directory}/{name}"
    handle = disk.open(path)
    try:
        size = disk.size(handle)
        header = unpack_block(disk.pread(handle, BLOCK_BYTES, 0))
    except Newer as fault:
        raise OtherFormat(str(fault), file=path) from None
    except Malformed as fault:
        raise Corrupt(str(fault), file=path, offset=0) from None
    finally:
        disk.close(handle)
    if segment_name(header.segment_id) != name:
        raise Corrupt(f"the file holds segment {header.segment_id}", file=path, offset=0)
    if header.shard != shard:
        raise Corrupt(f"the file belongs to shard {header.shard}, not to {shard}", file=path, offset=0)
    return Segment(name, header, size)


def _open_manifest(disk: Disk, directory: str, shard: int) -> Manifest:
    path = f"{directory}/{MANIFEST}"
    try:
        manifest = unpack_manifest(read_file(disk, path))
    except Newer as fault:
        raise OtherFormat(str(fault), file=path) from None
    except Malformed as fault:
        raise Corrupt(str(fault), file=path, offset=0) from None
    if manifest.shard != shard:
        raise Corrupt(f"the manifest belongs to shard {manifest.shard}, not to {shard}", file=path, offset=0)
    return manifest


def _check_manifest(disk: Disk, directory: str, manifest: Manifest | None, segments: list[Segment]) -> None:
    """The segment that the manifest names must be there: it was, before the first batch in it was answered."""
    if manifest is None:  # only before the very first opening has returned
        for segment in segments:
            data = read_file(disk, f"{directory}/{segment.name}")
            if segment.header.first_position != 1 or used_end(data, BLOCK_BYTES) > BLOCK_BYTES:
                raise Gap("the manifest is missing, but there are batches", file=f"{directory}/{MANIFEST}")
        return
    for segment in segments:
        header = segment.header
        if header.segment_id == manifest.segment_id:
            if (header.first_position, header.prev_chain) != (manifest.first_position, manifest.prev_chain):
                raise Corrupt("this is not the segment that the manifest names", file=f"{directory}/{segment.name}")
            return
    name = segment_name(manifest.segment_id)
    raise Gap("the newest segment is missing", file=f"{directory}/{name}", position=manifest.first_position)


def _choose_snapshot(
    disk: Disk, directory: str, names: list[str], shard: int
) -> tuple[list[str], snapshot.Checked | None, list[tuple[str, str]]]:
    """(names up to the newest good one, ascending; that one; newer ones that are not good, with the reason)."""
    snapshot_names = [name for name in names if snapshot.position_of(name) >= 0]
    damaged = []
    while snapshot_names:
        try:
            good = snapshot.check(disk, directory, snapshot_names[-1], shard)
            if good.head.position != snapshot.position_of(snapshot_names[-1]):
                raise Malformed(f"it holds position {good.head.position}")
        except Newer as fault:
            raise OtherFormat(str(fault), file=f"{directory}/{snapshot_names[-1]}") from None
        except Malformed as fault:
            damaged.append((snapshot_names.pop(), str(fault)))
        else:
            return snapshot_names, good, damaged
    return [], None, damaged
