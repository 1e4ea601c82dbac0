"""Parses the records of the map's journal a second time, and compares the owners of buckets with the shards' data.

["create", count, hash, [shard…]]   buckets dealt out evenly in order, each at generation 1
["assign", bucket, shard, generation]   the commit of a move: one generation more
["pin", bucket] ["unpin", bucket] ["weight", shard, weight] ["retire", shard] ["founded", shard]
["uneven", bool]   whether buckets should still move until the load is even; does not change owners
["claim", node, host id, number, epoch]  which of several hosts serves; does not change owners
["settled", shard, position]   up to which batch no outside call is owed; another host begins there
["restored", taken_at_ns, first_served_ns, restored_at_ns] ["released", taken_at_ns]   does not change owners
["anchor", 48 bytes]   "BCA1" | slew_ppm u32 | boot_id 16 | boot_ns, billing_ns, correction_ns i64
["host", host id, node, workers] ["own", shard, number, node, host id] ["at", shard, number, links, direct]
["life", shard, number, life] ["wish", shard, number, host id] ["drained", node, bool] ["gone", node]   which host
serves which shard, where several serve at once, and how often its worker has opened the journal
["wanted", bucket, shard, generation] ["unwanted", bucket, generation, reason]   a move still to be made
["clock", host id, 48 bytes]   the anchor of that host
["map", block]   in snapshots: (count, hash, [[shard, weight]…], [owner…], [generation…], [pinned…])
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack
from crc32c import crc32c

from billing.doctor.log import Log, Snapshot, base_of
from billing.doctor.report import Report
from billing.doctor.segment import Unreadable

HASH: Final = "crc32c-noxor"
SLEW_PPM_MAX: Final = 500
_ANCHOR = struct.Struct("<4sI16sqqq")
_OF_HOSTS: Final = {
    "host": [str, str, int],
    "own": [int, int, str, str],
    "at": [int, int, str, str],
    "life": [int, int, int],
    "wish": [int, int, str],
    "drained": [str, bool],
    "gone": [str],
    "wanted": [int, int, int],
    "unwanted": [int, int, str],
}


def _check_anchor(block: bytes) -> None:
    magic, slew_ppm, _, boot_ns, billing_ns, _ = _ANCHOR.unpack(block)
    if magic != b"BCA1" or slew_ppm > SLEW_PPM_MAX or boot_ns < 0 or billing_ns < 0:
        raise Unreadable(f"an anchor of {slew_ppm} ppm, {boot_ns}, {billing_ns} cannot be")


class OwnerMap:
    """The map, built from its records. `apply_all` raises Unreadable for a record that contradicts the map."""

    def __init__(self) -> None:
        self.bucket_count = 0
        self.hash_name = ""
        self.weights: dict[int, int] = {}
        self.owner: dict[int, tuple[int, int]] = {}  # bucket id -> (shard id, generation)
        self.pinned: set[int] = set()
        self.founded: set[int] = set()

    def bucket_of(self, user_id: bytes) -> int:
        """The bucket that a user hashes to."""
        return (crc32c(user_id) ^ 0xFFFFFFFF) % self.bucket_count + 1

    def facts(self) -> tuple[object, ...]:
        """The whole state of the map, for comparing."""
        return self.bucket_count, self.hash_name, self.weights, self.owner, self.pinned, self.founded

    def apply_all(self, packed: bytes) -> int:
        """Applies the records of one batch, or of a snapshot; returns their number. Raises Unreadable."""
        try:
            records = msgpack.unpackb(packed, strict_map_key=False)
        except (ValueError, msgpack.UnpackException) as reason:
            raise Unreadable(f"the batch holds no records: {reason}") from None
        if not isinstance(records, list):
            raise Unreadable("the batch holds no list of records")
        for record in records:
            try:
                self._apply(record)
            except (TypeError, ValueError, IndexError, KeyError, struct.error) as reason:
                raise Unreadable(f"the record {record!r:.100} makes no sense: {reason!r}") from None
        return len(records)

    def _apply(self, record: list[Any]) -> None:  # noqa: C901 - a case for each kind of record
        kind, *fields = record
        if kind == "create":
            count, self.hash_name, shards = fields
            if self.bucket_count:
                raise Unreadable("the map is created a second time")
            self.bucket_count = count
            self.weights = {shard: 1 for shard in shards}
            self.owner = {bucket: (shards[(bucket - 1) * len(shards) // count], 1) for bucket in range(1, count + 1)}
        elif kind == "assign":
            bucket, shard, generation = fields
            if generation != self.owner[bucket][1] + 1 or shard not in self.weights:
                text = f"bucket {bucket}, now {self.owner[bucket]}, is given to shard {shard} at {generation}"
                raise Unreadable(text)
            self.owner[bucket] = shard, generation
        elif kind == "pin":
            self.pinned.add(fields[0])
        elif kind == "unpin":
            self.pinned.discard(fields[0])
        elif kind == "weight":
            shard, weight = fields
            self.weights[shard] = weight
        elif kind == "retire":
            if any(shard == fields[0] for shard, _ in self.owner.values()):
                raise Unreadable(f"shard {fields[0]} is retired, which owns buckets")
            self.weights.pop(fields[0], None)
        elif kind == "founded":
            self.founded.add(fields[0])
        elif kind == "uneven":
            if not isinstance(fields[0], bool):
                raise Unreadable(f"uneven is yes or no, not {fields[0]!r}")
        elif kind == "settled":
            shard, position = fields
            if shard < 1 or position < 0:
                raise Unreadable(f"shard {shard} cannot have settled batch {position}")
        elif kind in ("restored", "released"):
            if len(fields) != (3 if kind == "restored" else 1) or not all(type(field) is int for field in fields):
                raise Unreadable(f"of a backup: {kind} {fields!r} cannot be")
        elif kind == "claim":
            node, host_id, number, epoch = fields
            if not isinstance(node, str) or not isinstance(host_id, str) or number < 1 or epoch < 0:
                raise Unreadable(f"a claim of host {node!r}, {host_id!r}, {number!r}, {epoch!r} cannot be")
        elif kind in _OF_HOSTS:
            if [type(field) for field in fields] != _OF_HOSTS[kind]:
                raise Unreadable(f"of hosts that serve at once: {kind} {fields!r} cannot be")
            if kind in ("own", "at", "life", "wish") and (fields[0] not in self.weights or fields[1] < 1):
                raise Unreadable(f"{kind} names shard {fields[0]!r}, number {fields[1]!r}")
            if kind in ("wanted", "unwanted") and fields[0] not in self.owner:
                raise Unreadable(f"{kind} names bucket {fields[0]!r}")
        elif kind == "anchor":
            _check_anchor(fields[0])
        elif kind == "clock":
            host_id, block = fields
            if not isinstance(host_id, str):
                raise Unreadable(f"a clock of host {host_id!r} cannot be")
            _check_anchor(block)
        elif kind == "map":
            count, self.hash_name, weights, owner, generation, pinned = msgpack.unpackb(fields[0])
            self.bucket_count = count
            self.weights = {shard: weight for shard, weight in weights}
            self.owner = {bucket: (owner[bucket], generation[bucket]) for bucket in range(1, count + 1)}
            self.pinned = set(pinned)
        else:
            raise Unreadable(f"a record of the unknown kind {kind!r}")


def examine_map(log: Log, report: Report) -> OwnerMap | None:
    """Reads the map's journal to its end, and compares its snapshots; None if the owners cannot be known."""
    owners = OwnerMap()
    base = base_of(log.first_position, log.snapshots)
    if base is None and log.first_position > 1:
        text = f"positions 1 to {log.first_position - 1} are missing, and no snapshot stands for them"
        report.fault("owners", text, file=log.path)
        return None
    if base is not None:
        owners = _of_snapshot(log, base)
    start = base.position if base is not None else 0
    later = {snapshot.position: snapshot for snapshot in log.snapshots if snapshot.position > start}
    for batch in log.batches():
        if batch.position > start:
            try:
                report.count("owners", "records of the map", owners.apply_all(batch.payload))
            except Unreadable as reason:
                report.fault("owners", str(reason), file=log.path, position=batch.position)
                return None
        snapshot = later.pop(batch.position, None)
        if snapshot is not None:
            report.count("snapshots", "parts")
            if _of_snapshot(log, snapshot).facts() != owners.facts():
                text = "the map in the snapshot is not what its journal says"
                report.fault("snapshots", text, file=f"{log.path}/{snapshot.name}", position=batch.position)
    if not owners.bucket_count:
        if log.damage is None:
            report.fault("owners", "the map's journal does not say how many buckets there are", file=log.path)
        return None
    if owners.hash_name != HASH:
        text = f"the buckets are hashed with {owners.hash_name!r}, not with {HASH!r}"
        report.fault("owners", text, file=log.path)
    if log.damage is not None:
        report.not_checked("owners", "the map's journal is damaged: what it said last is not known")
    report.count("owners", "buckets", owners.bucket_count)
    return owners


def _of_snapshot(log: Log, snapshot: Snapshot) -> OwnerMap:
    owners = OwnerMap()
    count = sum(1 for _ in log.heads(snapshot))
    owners.apply_all(b"".join(log.part(snapshot, index) for index in range(count)))
    return owners


def compare_owners(
    owners: OwnerMap, held: dict[int, dict[int, int]], untouched: dict[int, set[int]], report: Report
) -> None:
    """Compares the map with the buckets that each shard's own data hold: `held` is shard id -> bucket id -> generation.

    A shard that is missing in `held` could not be read to its end, and nothing is reported about its buckets. Besides
    its owner, a bucket's last owner, or the target of a move that was never decided, may still hold a copy. Both give
    it up at their next start. Such copies differ from the owner's in their generation. If another target has received
    the same generation since, a copy is recognised by being `untouched` (shard id -> bucket ids): no entry followed.
    """
    copies: dict[int, list[tuple[int, int]]] = {}
    for shard, buckets in held.items():
        for bucket, generation in buckets.items():
            if bucket in owners.owner:
                copies.setdefault(bucket, []).append((shard, generation))
            else:
                report.fault("owners", f"shard {shard} holds bucket {bucket}, which does not exist")
    for bucket, owner in owners.owner.items():
        shard, generation = owner
        says = f"the map says shard {shard} at generation {generation}"
        other_copies = [copy for copy in copies.get(bucket, ()) if copy != owner]
        for other, other_generation in other_copies:
            undecided = other_generation == generation and bucket in untouched.get(other, ())
            if other != shard and (other_generation < generation or other_generation == generation + 1 or undecided):
                text = f"shard {other} has a copy of bucket {bucket} left over from a move"
                report.note(f"{text}, and gives it up at its next start")
            elif other != shard and other_generation == generation:
                text = f"bucket {bucket} has two owners at generation {generation}: shard {other}, and"
                report.fault("owners", f"{text} {says}")
            else:
                text = f"bucket {bucket} is held by shard {other} at generation {other_generation}"
                report.fault("owners", f"{text}, {says}: one of the two is an older backup")
        served = shard in held and (shard in owners.founded or held[shard])
        if served and all(holder != shard for holder, _ in copies.get(bucket, ())):
            report.fault("owners", f"bucket {bucket} is not held by its owner, {says}")
    for shard in owners.weights:
        if shard not in owners.founded:
            report.note(f"shard {shard} has never served")
