"""Faults that only a second implementation can see: journals written anew by the real code, all checksums right.

`forge` reads a closed, untrimmed journal, lets a test change its records and the parts of its snapshots, and writes a
new journal with the same positions in its place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from billing.ledger.entry import Entry, pack, unpack
from shards.batch import ENTRY, ENVELOPE, LENGTH, split_batch
from shards.journal.file.journal import FileJournal, FileSettings
from shards.journal.file.snapshot import Reader, position_of
from tests.doctor.builder import DISK, SEGMENT_BYTES, DataDirectoryBuilder

Record = tuple[int, int, int, bytes]  # kind, bucket id, generation, body
OnRecords = Callable[[int, list[Record]], list[Record]]  # position, records of the batch -> those to write
OnEntry = Callable[[Entry], Entry | list[Entry] | None]  # None: as it is


def open_journal(path: str, shard: int, now_ns: Callable[[], int] = lambda: 0) -> FileJournal:
    """The journal as the real code opens it."""
    journal = FileJournal(path, DISK, FileSettings(segment_bytes=SEGMENT_BYTES), now_ns=now_ns, salt=lambda: 5)
    journal.open(shard, "forge")
    return journal


def joined(records: list[Record]) -> bytes:
    """A batch of these records."""
    parts = [LENGTH.pack(len(records))]
    for kind, bucket_id, generation, body in records:
        parts += [LENGTH.pack(ENVELOPE.size + len(body)), ENVELOPE.pack(kind, bucket_id, generation), body]
    return b"".join(parts)


def forge(
    builder: DataDirectoryBuilder,
    shard: int,
    on_records: OnRecords = lambda position, records: records,
    on_part: Callable[[bytes], bytes | None] = lambda part: part,
    time_of: Callable[[int], int] = lambda position: 0,
) -> None:
    """Writes the journal of a closed shard anew. `on_part`: None leaves a part of a snapshot out."""
    path = f"{builder.path}/shard-{shard}"
    snapshots: dict[int, list[bytes]] = {}
    for name in DISK.listdir(path):
        if position_of(name) >= 0:
            reader = Reader(DISK, f"{path}/{name}")
            snapshots[position_of(name)] = list(reader.chunks())
            reader.close()
    old = open_journal(path, shard)
    payloads = list(old.replay(1))
    old.close()
    shutil.rmtree(path)
    position = 0
    new = open_journal(path, shard, lambda: time_of(position))
    for position, payload in payloads:
        new.append(joined(on_records(position, list(split_batch(payload)))))
        reached = [snapshot for snapshot in snapshots if max_position(snapshots[snapshot], snapshot) == position]
        for snapshot in sorted(reached):
            parts = [changed for part in snapshots.pop(snapshot) if (changed := on_part(part)) is not None]
            new.save_snapshot(snapshot, parts)
    assert not snapshots
    new.close()


def max_position(parts: list[bytes], position: int) -> int:
    """The newest position that a snapshot's parts stand for."""
    return max([position, *(int.from_bytes(part[7:15], "little") for part in parts)])


def forge_entries(
    builder: DataDirectoryBuilder, shard: int, change: OnEntry, time_of: Callable[[int], int] = lambda position: 0
) -> int:
    """Writes the journal anew with `change`d entries, packed by the real code; how many were changed."""
    count = 0

    def on_records(position: int, records: list[Record]) -> list[Record]:
        nonlocal count
        written: list[Record] = []
        for record in records:
            kind, bucket_id, generation, body = record
            changed: Any = change(Entry._make(unpack(body))) if kind == ENTRY else None
            if changed is None:
                written.append(record)
                continue
            count += 1
            entries = changed if isinstance(changed, list) else [changed]
            written += [(kind, bucket_id, generation, pack(entry)) for entry in entries]
        return written

    forge(builder, shard, on_records, time_of=time_of)
    return count
