"""Recovery asked for again, at a quiet point: from a copy of the disk, by the real code, in every way there is (I10).

What comes out, from the newest snapshot and the tail, and from each older one, must be what the living workers hold,
bucket by bucket and byte for byte; and once more after what the first recovery itself wrote.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.journal import backends
from shards.shard import Shard
from shards.system.host import Host
from shards.worker.recover import recover
from tests.simulation.disk import Medium, SimDisk
from tests.simulation.medium import Directory, Node

if TYPE_CHECKING:
    from tests.simulation.world import World


def copy_of(medium: Medium, path_wanted: str) -> Medium:
    """Another disk on which this directory has the same files, all of them durable, and the others have none."""
    other = Medium()
    other.boots = medium.boots
    other.modes = dict(medium.modes)
    for path, directory in medium.directories.items():
        directory_copy = other.directories[path] = Directory()
        if path == path_wanted:
            directory_copy.names = {name: Node(node.content) for name, node in directory.names.items()}
            directory_copy.stable = dict(directory_copy.names)
    return other


def _run(coroutine: Any) -> None:
    """To the end; it waits for nothing."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        return


def recovered(world: World, medium: Medium, shard_id: int) -> dict[int, bytes]:
    """bucket -> its dump, by a recovery from this disk."""
    settings = world.settings()
    disk = SimDisk(medium, random.Random(1))
    host: Any = Host(world.machine.clocks, disk, *(None,) * 6, lambda: 1, random.Random(2).getrandbits, None)  # type: ignore[arg-type]
    cutoff = world.config.cutoff
    ids_max = world.config.ledger.request_ids_per_bucket
    rules = Rules(cutoff.after_exhaustion == "accrue", ids_max, bool(cutoff.restore_url))
    shard = Shard(shard_id, BillingMachine(rules))
    journal = backends.open(settings.journal, host).journal(shard_id, lambda: 0)
    journal.open(shard_id, "again")
    _run(recover(shard, journal, lambda blocks_done, total: None, world.machine.clocks.boot_ns))
    shard.machine.ledger.replayed()  # type: ignore[attr-defined]
    disk.kill()
    return {bucket_id: shard.machine.dump(bucket_id) for bucket_id in sorted(shard.held)}


def check_recovery(world: World) -> None:
    """Raises where a recovery comes to something else than what lives."""
    for process in world.live():
        worker = process.worker
        assert worker is not None
        shard = worker.shard
        expected = {bucket_id: shard.machine.dump(bucket_id) for bucket_id in sorted(shard.held)}
        directory = f"{world.settings().data_dir}/shard-{shard.shard_id}"
        medium = copy_of(world.machine.medium, directory)
        _compare(world, shard.shard_id, expected, recovered(world, medium, shard.shard_id), "a recovery")
        _compare(world, shard.shard_id, expected, recovered(world, medium, shard.shard_id), "a second recovery")
        stored = world.machine.medium.directories[directory].names
        names = sorted(name for name in stored if name.startswith("snapshot-"))
        if len(names) > 1:
            medium = copy_of(world.machine.medium, directory)
            del medium.directories[directory].names[names[-1]]
            _compare(world, shard.shard_id, expected, recovered(world, medium, shard.shard_id), "the older snapshot")


def _compare(
    world: World, shard_id: int, expected: dict[int, bytes], actual: dict[int, bytes], way_of_reading: str
) -> None:
    different = [bucket for bucket in expected.keys() | actual.keys() if expected.get(bucket) != actual.get(bucket)]
    if different:
        world.auditor.wrong(
            f"shard {shard_id}: {way_of_reading} comes to other contents of buckets {sorted(different)} (I10)"
        )
