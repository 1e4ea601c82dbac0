"""Reads a directory of journal files and judges whether they are valid. Writes nothing; `file.journal` acts on it.

The result is the whole sequence from a good snapshot (or from position 1) to the head, or an exception. Recovery passes
over one thing only, a *torn tail*: the last batch, whose write was cut off by a loss of power or a kill, and which was
never acknowledged. Everything else that is wrong was durable once, and is refused. The rules for the first offset at
which no good batch begins:

1. Corrupt, if a later batch with a good header was written only after a sync of all before it (`record.is_proof`), or
   another segment follows. Under sync=always each batch was written so; there, any byte behind the end of a batch whose
   header is good is enough.
2. Corrupt, if the journal was closed cleanly.
3. Corrupt, if the machine has not rebooted since, so that the kernel still has every byte that was written, and the
   batch is not simply cut short (its rest zeros).
4. Otherwise it is a torn tail.
5. A read error is an error of its own (OSError), never the end of the log.

Zeros to the end of the segment are the end of the log. A segment ends where the next one begins: bytes that recovery
wrote anew into the next one count, and those of the old file behind that position do not.

Batches at the end that nothing proves durable (`suspects`) may have been read from a cache that holds more than the
disk. The caller must write them anew before anybody is told of them. A later batch proves those before it; the manifest
proves that the name of its segment is durable. A segment newer than the manifest's comes from an opening or a switch
that did not finish; all batches in it are suspects, even where it looks whole.
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
TEMPORARY = ".tmp"  # the ending of unfinished files; the next opening removes them
PREFIX = "segment-"


class Suspect(NamedTuple):
    """A batch that may be in a cache only. Its payload lies in `data` from `start` to `end`."""

    time_ns: int
    data: bytes
    start: int
    end: int


class Log(NamedTuple):
    """The log from a base (a snapshot, or position 0) to its head, read whole, every link verified."""

    head: int
    chain: int
    durable: int  # the position up to which batches are proven durable
    durable_chain: int
    last_time_ns: int
    suspects: list[Suspect]  # positions durable + 1 … head
    live_end: int  # offset in the newest segment behind the last proven batch
    torn: Torn | None


class Recovery(NamedTuple):
    """What opening needs to know of a directory."""

    epoch: int  # the highest of all files; 0: the directory is empty
    segments: list[Segment]  # that hold the log, ascending
    replaced: list[Segment]  # of which a newer one has taken over every batch
    named_segment_id: int  # of the segment that the manifest names; 0: there is no manifest
    log: Log
    snapshots: list[str]  # names of snapshots to keep, ascending; the last one is whole
    damaged: list[str]  # names of newer, damaged snapshots


def segment_name(segment_id: int) -> str:
    """Returns the file name of a segment. Names sort as ids do."""
    return f"{PREFIX}{segment_id:010d}"


def examine(disk: Disk, directory: str, shard: int, boot_id: bytes) -> Recovery:
    """Reads and judges the whole directory. Raises Corrupt, Gap; OSError where something cannot be read."""
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
    """Reads the log from the base on (None: from position 1) to the head. Raises Corrupt, Gap, OSError."""
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
    """Returns the bytes of the suspects as they will stand behind the first block of a new segment, and of a barrier
    behind them.

    The caller must sync that whole segment before it gives it its name. Then the barrier's proof holds for whoever sees
    the segment.
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
    """Returns (last position, its chain, the batches) of a segment that another one follows: all of it, up to where
    that one begins, must be good.
    """
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
    """Reads the newest segment: batches, then zeros or a torn tail."""
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
        head, chain, end = batch.position, batch.chain, aligned(batch.end, header.align)
        time_ns = max(time_ns, batch.time_ns)  # one written again has the stamp it had
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
    """Applies the rules at the top of this module to bytes other than zero behind the last good batch of the newest
    segment.
    """
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
    """Returns whether a file of this name is a segment."""
    digits = name[len(PREFIX) :]
    return name.startswith(PREFIX) and len(digits) == 10 and digits.isdecimal()


def open_segment(disk: Disk, directory: str, name: str, shard: int) -> Segment:
    """Reads the first block of a segment. Raises Corrupt where the block is damaged, or that of another segment or
    shard; OtherFormat, OSError.
    """
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
    """Checks that the segment which the manifest names is there: it was, before the first batch in it was
    acknowledged.
    """
    if manifest is None:  # that is right only before the very first opening has returned
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
    """Returns (names of the snapshots up to the newest good one, ascending; that one; the newer, bad ones, each with
    the reason).
    """
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
