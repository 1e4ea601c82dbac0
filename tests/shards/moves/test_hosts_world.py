"""Moves between hosts that die, pause and are taken over at any step: no command is lost; faulty rules are caught."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from shards.buckets import BucketMap
from shards.control import MoveAbort
from shards.supervisor.far_side import Arrivals
from shards.supervisor.placement import Shares, Voice
from shards.supervisor.registry import may_commit
from tests.shards.moves.hosts_world import InvariantBroken, Rules, World

SEEDS = 40
SEEDS_MAX = 1000  # until a faulty rule is caught


def test_no_command_is_lost_or_doubled_and_nobody_guesses() -> None:
    counts: dict[str, int] = {}
    for seed in range(SEEDS):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        counts = {key: counts.get(key, 0) + count for key, count in world.seen.items()}
    assert all(counts[key] for key in ("moved", "aborted", "refused", "dropped", "carried")), counts


def test_a_host_that_opens_a_journal_too_late_never_serves() -> None:
    World(1).story_of_a_late_opening()
    with pytest.raises(InvariantBroken):  # where the life is recorded before the opening
        World(1, Rules(confirms_life=False)).story_of_a_late_opening()


def _without(part: str) -> Rules:
    def faulty(bucket_map: BucketMap, shares: Shares, record: list[Any], voices: Mapping[int, Voice]) -> bool:
        target = record[2]
        if part == "life":
            voices_owned = {shard: shares.owns[shard].voice for shard in voices}
            is_same = all(voices_owned[shard].number == voice.number for shard, voice in voices.items())
            return is_same and may_commit(bucket_map, shares, record, voices_owned)
        voices_left = {shard: voice for shard, voice in voices.items() if (shard == target) != (part == "target")}
        return may_commit(bucket_map, shares, record, voices_left)

    return Rules(may_commit=faulty)


class Rash(Arrivals):
    """Drops what arrives at once where the map knows another life of the source: it may know an earlier one."""

    def aborted(self, bucket_map: BucketMap, shares: Shares) -> list[tuple[int, MoveAbort]]:
        aborts = []
        for (shard, number), arrival in list(self._arriving.items()):
            if (
                bucket_map.generation[arrival.bucket_id] < arrival.generation
                and shares.owns[arrival.source].voice != arrival.voice
            ):
                del self._arriving[shard, number]
                aborts.append((shard, MoveAbort(number, arrival.bucket_id)))
        return aborts


class Doubting(Arrivals):
    """Drops what is not decided by what the map says now."""

    def aborted(self, bucket_map: BucketMap, shares: Shares) -> list[tuple[int, MoveAbort]]:
        aborts = [(shard, MoveAbort(number, arrival.bucket_id)) for (shard, number), arrival in self._arriving.items()]
        self._arriving.clear()
        return aborts


@pytest.mark.parametrize(
    ("rules", "known_seed"),  # the seed that is known to catch it
    [
        pytest.param(_without("source"), 40, id="whatever became of the source"),
        pytest.param(_without("target"), 158, id="whatever became of the target"),
        pytest.param(_without("life"), 47, id="whichever life of the worker"),
        pytest.param(Rules(asks_again=False), 0, id="takes silence of the log for a no"),
        pytest.param(Rules(awaits_stored=False), 0, id="says stored before it is"),
        pytest.param(Rules(carries_on=False), 0, id="forgets what a driver that died was doing"),
        pytest.param(Rules(arrivals=Rash), 44, id="drops by a map that is behind"),
        pytest.param(Rules(arrivals=Doubting), 1, id="drops what is not decided yet"),
    ],
)
def test_a_faulty_rule_is_caught(rules: Rules, known_seed: int) -> None:
    def hunt() -> None:
        for seed in (known_seed, *range(SEEDS_MAX)):
            World(seed, rules).run()

    with pytest.raises(InvariantBroken):
        hunt()
