"""Moves that were asked for and are not over, as the map's log has them: they do not end with whoever drives them.

    ["wanted", bucket, shard, generation]       the bucket, which is at this generation, is to go to that shard
    ["unwanted", bucket, generation, reason]    not any more; with a reason: it was given up, which is shown

Where several hosts serve at once, the host of a bucket's shard drives its move. It writes `wanted` before it begins,
and `unwanted` without a reason where the move comes to nothing, of which whoever asked is told. The record of the
decision (`assign`) ends what was wanted of a bucket. A host that takes the bucket's shard over, and one that starts
anew, finds what is still wanted, and carries it on; where it cannot, it writes why, since nobody waits for an answer.
What was given up is shown until the bucket moves, or is asked for again. Where one host serves all shards from some
point on (`claim`), nothing of this is known any more.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NamedTuple

from shards.buckets import BucketMap


class Wanted(NamedTuple):
    """A requested move: the target of a bucket."""

    shard: int
    generation: int  # of the bucket, when it was asked for
    given_up: str = ""  # why; "": it is to be carried on


class WantedMoves:
    """The requested moves by bucket; only records change them."""

    def __init__(self) -> None:
        self.of: dict[int, Wanted] = {}  # bucket id -> what

    def apply(self, record: Any) -> bool:
        """Applies a record; returns False for a record that other readers of the map apply as well."""
        match record:
            case ["wanted", int(bucket_id), int(shard), int(generation)]:
                self.of[bucket_id] = Wanted(shard, generation)
            case ["unwanted", int(bucket_id), int(generation), str(reason)]:
                known = self.of.get(bucket_id)
                if known is not None and known.generation == generation:
                    if reason:
                        self.of[bucket_id] = known._replace(given_up=reason)
                    else:
                        del self.of[bucket_id]
            case ["assign", int(bucket_id), _, _]:
                self.of.pop(bucket_id, None)
                return False
            case ["claim", *_]:
                self.of.clear()
                return False
            case _:
                return False
        return True

    def records(self) -> list[list[Any]]:
        """Records that stand for all records until now."""
        records: list[list[Any]] = [
            ["wanted", bucket_id, wanted.shard, wanted.generation] for bucket_id, wanted in self.of.items()
        ]
        given_up = ((bucket_id, wanted) for bucket_id, wanted in self.of.items() if wanted.given_up)
        return records + [["unwanted", bucket_id, wanted.generation, wanted.given_up] for bucket_id, wanted in given_up]

    def pending(self) -> dict[int, Wanted]:
        """The requested moves that were not given up, by bucket."""
        return {bucket_id: wanted for bucket_id, wanted in self.of.items() if not wanted.given_up}

    def to_carry_on(self, bucket_map: BucketMap, served: Container[int], running: Container[int]) -> list[int]:
        """The buckets whose moves this host has to carry on. `served`: the shards that it serves; `running`: the
        buckets that it is moving already.
        """
        pending = (bucket_id for bucket_id in self.pending() if bucket_id not in running)
        return [bucket_id for bucket_id in pending if bucket_map.owner[bucket_id] in served]
