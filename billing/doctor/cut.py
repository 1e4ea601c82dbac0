"""The only order that writes: cuts the damaged tail off one journal, so that the shard can start without it.

It is never automatic. The tail may hold commands that were answered, so the cut is made only if a person accepts the
loss (`--accept-loss`), only from the exact position at which the damage begins, and only if the rest is consistent: the
damage is in the newest segment, and no snapshot is ahead of what remains. The steps, each durable before the next:

    1  the segment as it is, up to its last byte that is not zero, is copied to `segment-….cut-POSITION`
    2  an audit record, who and when and what, is written to `segment-….cut-POSITION.json`
    3  the data directory keeps the instant, for the numbers that are given out from now on (`shards.restored`)
    4  the mark of a clean stop is removed from the manifest
    5  everything from the damage on becomes zeros, which is how a log ends

A crash between two steps leaves a journal that is damaged as before, or cut.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Final

from billing.doctor.directory import MANIFEST, Directory
from billing.doctor.files import File
from billing.doctor.log import Damage
from billing.doctor.segment import write_manifest
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import Disk, write_all, write_file

REWOUND: Final = "rewound"  # in the data directory: see step 3
ZEROS: Final = bytes(1 << 20)


class CutRefused(Exception):
    """The cut is refused, and nothing was changed; the text says why."""


def damaged_journal(directories: dict[int, Directory], shard: int | None) -> Directory:
    """The journal to cut: the only damaged one, or the one of `shard` (0: the map's). Raises CutRefused."""
    damaged = {number: directory for number, directory in directories.items() if directory.damage is not None}
    if shard is None:
        if len(damaged) != 1:
            names = ", ".join(str(number) for number in sorted(damaged)) or "none"
            raise CutRefused(f"damaged journals of shards: {names}; say with --shard which one is meant")
        return next(iter(damaged.values()))
    if shard not in damaged:
        raise CutRefused(f"the journal of shard {shard} can be followed to its end: there is nothing to cut off")
    return damaged[shard]


def check(directory: Directory, position: int) -> Damage:
    """The damage that a cut at `position` would cut off. Raises CutRefused."""
    damage = directory.damage
    assert damage is not None, "only a damaged journal is cut"
    if position != damage.position:
        raise CutRefused(f"the damage in {damage.path} begins at position {damage.position}; only there can it be cut")
    if not damage.newest:
        raise CutRefused(f"{damage.path} is not the newest segment: what follows it would be lost. Restore a backup")
    if damage.offset == 0:
        raise CutRefused(f"the first block of {damage.path} is damaged: nothing of it can be kept. Restore a backup")
    newest = directory.segments[-1]
    if newest.block is None or newest.size != newest.block.length:
        raise CutRefused(f"{damage.path} has {newest.size} bytes and was made with more: cutting does not mend that")
    for snapshot in directory.snapshots:
        if max(snapshot.position, snapshot.reached) >= position:
            text = f"{snapshot.name} was made when position {max(snapshot.position, snapshot.reached)} was durable"
            raise CutRefused(f"{text}: a log that ends before that is not believed. Restore a backup")
    return damage


def cut(disk: Disk, directory: Directory, position: int) -> str:
    """Cuts off everything from `position` on; returns the path of the audit record. Raises CutRefused, OSError."""
    damage = check(directory, position)
    with File(disk, damage.path) as file:
        end = file.used_end(damage.offset)
        content = file.at(0, end)
    copy = f"{damage.path}.cut-{position}"
    audit = f"{copy}.json"
    write_file(disk, copy, content)
    manifest = directory.manifest
    record = {
        "what": "the damaged tail of a journal was cut off by order of an operator, accepting its loss",
        "wall_time_ns": MACHINE_CLOCKS.wall_ns(),
        "user": f"uid:{os.getuid()}",
        "shard": directory.shard,
        "segment": damage.path,
        "first_position_lost": position,
        "offset": damage.offset,
        "bytes_cut": end - damage.offset,
        "batches_recognised_behind_the_damage": damage.batches_behind,
        "blake2b_256_of_bytes_cut": hashlib.blake2b(content[damage.offset :], digest_size=32).hexdigest(),
        "copy": copy,
        "manifest": None if manifest is None else manifest._asdict(),
    }
    write_file(disk, audit, json.dumps(record, indent=2).encode() + b"\n")
    write_file(disk, f"{os.path.dirname(directory.path)}/{REWOUND}", b"%d\n" % MACHINE_CLOCKS.wall_ns())
    if manifest is not None and manifest.clean:
        unclean = manifest._replace(clean=0, head=0, head_chain=0)
        write_file(disk, f"{directory.path}/{MANIFEST}", write_manifest(unclean))
    handle = disk.open(damage.path, write=True)
    try:
        for offset in range(damage.offset, end, len(ZEROS)):
            write_all(disk, handle, ZEROS[: min(len(ZEROS), end - offset)], offset)
        disk.fsync(handle)
    finally:
        disk.close(handle)
    return audit
