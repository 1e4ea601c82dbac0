"""The whole daemon on a virtual clock: 20 seeds, each with faults of its own; see `tests.simulation.world`. `make
torture` plays ten thousand.

A seed that fails names the command that repeats it. Seeds that found something once are kept in `FOUND`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.calls import COMMANDS
from tests.simulation.campaign import campaign, command_of, outcome_of
from tests.simulation.run import play, world_of

SEEDS, AT_ONCE = 30, 15
KINDS = 15  # of faults that fire in so many seeds, at least: half of what there is

FOUND = {  # seed -> what it was; each bug is also a row of `tests.simulation.faulty`, which does not age with the draws
    14: "a cutoff left before what caused it was durable, because an older one of the account was in the outbox",
    1046: "power took the record of a called cutoff, a clock set back brought its instant again, a debit came first",
    11: "shards that were being drained stayed for ever, where the daemon crashed meanwhile",
    277: "an orderly end waited for a minute, and the shard was held because its owner was not gone yet",
    115: "a peer's request was applied while the last snapshot was made: the next start refused with 65",
    793: "a restart after seconds of rest, in which a hold's expiry saved an account that ran dry again",
    2195: "rot of the last batch, cut off as torn before the start refused: the disk was not mended",
    1122: "a snapshot that stood just before an orderly end asked the closed journal to trim: 74",
    2080: "a quiet point while the last word of a move was on its way",
    3781: "a bucket moved by hand to a shard that was being drained kept it for ever",
    8042: "the same, while that shard was retired: an assignment to a shard that is gone, and no start after that",
    7837: "what waited for a moved bucket was applied while the last snapshot was made: the next start refused with 65",
    9911: "a shard was drained, and the power failed before the map forgot it: it stayed for ever",
}


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_seeds(first: int) -> None:
    outcomes = [outcome_of(seed) for seed in range(first, first + AT_ONCE)]
    failed = [outcome for outcome in outcomes if not outcome["ok"]]
    assert not failed, "\n".join(f"{command_of(outcome['seed'])}   # {outcome['error']}" for outcome in failed)
    fired = {kind for outcome in outcomes for kind in outcome["fired"]}
    assert len(fired) >= KINDS, fired


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None:
    assert outcome_of(seed)["ok"], command_of(seed)


def test_a_seed_is_repeated_exactly() -> None:
    once = [play(seed) for seed in (3, 11)]
    assert [play(seed) for seed in (3, 11)] == once
    assert once[0].digest != once[1].digest


def test_every_procedure_is_called_and_answered() -> None:
    log: list[str] = []
    for seed in range(4):
        play(seed, log)
    text = "\n".join(log)
    for method in [*COMMANDS, "get_account", "history"]:
        assert f"'{method}'" in text, method
        assert any(f"'{method}'" in line and "(None, " in line for line in log), method


def test_worlds_differ() -> None:
    worlds = [world_of(seed) for seed in range(40)]
    assert {world.workers for world in worlds} >= {1, 2, 3}
    assert {world.buckets for world in worlds} >= {3, 6, 8}
    assert {world.auditor.accrues for world in worlds} == {True, False}
    for world in worlds:
        world.close()


def test_a_campaign_goes_on_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    first = campaign(0, 2, path=path)
    assert first["failed"] == []
    assert len(path.read_text().splitlines()) == 2
    whole = campaign(0, 3, path=path)
    assert whole["seeds"] == 3
    assert whole["entries"] > first["entries"] > 0
    assert len(path.read_text().splitlines()) == 3
