"""Rows of settings, in short: the two of one host that are most unlike; `python -m tests.torture.pairs` is the long
form. And the rows themselves: they have every pair, break no rule, and what a rule says is what the configuration says.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from tests.shards.journal.nats_cluster import BINARY, MISSING
from tests.torture.covering import Rule, cover, most_unlike, pairs_in
from tests.torture.pair_settings import SharedFiles
from tests.torture.pairs import Campaign, refused, rows_of

ROWS = 2
FACTORS = {"a": ("1", "2", "3"), "b": ("1", "2"), "c": ("1", "2", "3"), "d": ("1", "2")}
FORBIDDEN = (
    Rule({"a": frozenset("1"), "b": frozenset("2")}),
    Rule({"a": frozenset("23"), "c": frozenset("3"), "d": frozenset("1")}),
    Rule({"b": frozenset("1"), "c": frozenset("3"), "d": frozenset("2")}),
)


def test_every_pair_that_the_rules_allow_is_in_a_row_and_no_row_breaks_one() -> None:
    covering = cover(FACTORS, FORBIDDEN)
    pairs_covered = set().union(*(pairs_in(row, list(FACTORS)) for row in covering.rows))
    all_pairs = {
        ((factor, level), (other, other_level))
        for factor, other in combinations(FACTORS, 2)
        for level in FACTORS[factor]
        for other_level in FACTORS[other]
    }
    assert pairs_covered | set(covering.impossible) == all_pairs
    assert covering.covered == len(pairs_covered)
    assert covering.impossible == [(("a", "1"), ("b", "2"))]
    assert not [row for row in covering.rows for rule in FORBIDDEN if rule.is_broken(row)]
    assert cover(FACTORS, FORBIDDEN).rows == covering.rows


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_each_combination_that_cannot_be_is_refused_with_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    assert refused(tmp_path, SharedFiles.make(tmp_path / "files")) > 20


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_rows_of_settings_that_are_most_unlike_each_other_hold(data_dir: Path) -> None:
    campaign = Campaign(data_dir, in_process=True)
    all_rows = rows_of(with_network=False, candidates=1).rows
    cheap = [
        row for row in all_rows if row["log"] in ("files", "servers") and row["workers"] == "one"
    ]  # starts cost most
    rows = sorted(cheap, key=lambda row: row["log"] != "servers")
    try:
        for number, row in enumerate(most_unlike(rows, ROWS)):
            assert campaign.play(number, row) == ""
    finally:
        campaign.close()
    assert campaign.counts["rows"] == ROWS
    assert min(campaign.counts[name] for name in ("doors", "cutoffs", "reloads", "workers killed", "hosts killed")) >= 2
