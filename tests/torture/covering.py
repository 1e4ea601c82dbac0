"""Rows of settings in which every pair of levels of two factors stands at least once: a covering array of strength two.

A **factor** is a name with its levels, a **row** gives each factor one of them, a **rule** names combinations that are
no row: it holds the levels of the factors that it names, and a row that has one of these at each of them breaks it.

The generator is greedy, with a fixed seed. A row begins with a pair that is not covered yet; each further factor, in
an order drawn at random, takes the level that covers most pairs that are still missing. Of several such rows the best
is taken. A pair that no row can have, by the rules, is told apart by trying: it is in `Covering.impossible`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

Row = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]  # (factor, level) twice, in the order of the factors

CANDIDATES = 20  # rows of which the best is taken
TRIES = 200  # rows that are begun with a pair before it counts as impossible


class Rule(NamedTuple):
    """A combination that is no row."""

    levels: Mapping[str, frozenset[str]]  # by factor
    path: str = ""  # the key of the configuration that is refused then; empty where the combination means nothing
    sentence: str = ""  # how the daemon refuses it

    def is_broken(self, row: Row) -> bool:
        """Whether a row, or the beginning of one, has it."""
        return all(row.get(factor) in levels for factor, levels in self.levels.items())


class Covering(NamedTuple):
    """What the generator made."""

    rows: list[Row]
    covered: int  # pairs
    impossible: list[Pair]


def pairs_in(row: Row, factors: Sequence[str]) -> set[Pair]:
    """All pairs of a row, which has a level for each of these factors."""
    return {((factor, row[factor]), (other, row[other])) for factor, other in combinations(factors, 2)}


def cover(
    factors: Mapping[str, Sequence[str]], rules: Sequence[Rule], candidates: int = CANDIDATES, seed: int = 1
) -> Covering:
    """Rows of all factors that have every pair that the rules allow."""
    return _Generator(factors, rules, candidates, seed).run()


def most_unlike(rows: Sequence[Row], count: int) -> list[Row]:
    """So many rows, each of which differs from those before it in as many factors as can be."""
    chosen = [rows[0]]
    while len(chosen) < min(count, len(rows)):
        chosen.append(max(rows, key=lambda row: min(_unlike(row, row_chosen) for row_chosen in chosen)))
    return chosen


def _unlike(row: Row, other: Row) -> int:
    return sum(row[factor] != other[factor] for factor in row)


class _Generator:
    def __init__(self, factors: Mapping[str, Sequence[str]], rules: Sequence[Rule], candidates: int, seed: int) -> None:
        self._factors = factors
        self._candidates = candidates
        self._names = list(factors)
        self._place = {name: index for index, name in enumerate(factors)}
        self._rules = {name: [rule for rule in rules if name in rule.levels] for name in factors}
        self._rng = random.Random(seed)
        self._missing = {
            ((factor, level), (other, other_level))
            for factor, other in combinations(self._names, 2)
            for level in factors[factor]
            for other_level in factors[other]
        }

    def run(self) -> Covering:
        rows: list[Row] = []
        impossible: list[Pair] = []
        whole = len(self._missing)
        while self._missing:
            pair = min(self._missing)
            rows_made = [row for _ in range(self._candidates) if (row := self._row_with(pair)) is not None]
            if not rows_made:
                rows_made = [row for _ in range(TRIES) if (row := self._row_with(pair)) is not None][:1]
            if not rows_made:
                impossible.append(pair)
                self._missing.remove(pair)
                continue
            best = max(rows_made, key=lambda row: len(pairs_in(row, self._names) & self._missing))
            self._missing -= pairs_in(best, self._names)
            rows.append(best)
        return Covering(rows, whole - len(impossible), impossible)

    def _row_with(self, pair: Pair) -> Row | None:
        """A whole row with this pair in it; None where the levels that were taken leave no room for the rest."""
        row = dict(pair)
        if any(self._is_broken(row, name) for name in row):
            return None
        rest = [name for name in self._names if name not in row]
        self._rng.shuffle(rest)
        for name in rest:
            levels = list(self._factors[name])
            self._rng.shuffle(levels)
            fitting = [level for level in levels if not self._is_broken(row | {name: level}, name)]
            if not fitting:
                return None
            row[name] = max(fitting, key=lambda level: self._gain(row, name, level))
        return {name: row[name] for name in self._names}

    def _is_broken(self, row: Row, name: str) -> bool:
        return any(rule.is_broken(row) for rule in self._rules[name])

    def _gain(self, row: Row, name: str, level: str) -> int:
        """How many missing pairs the level covers beside what the row has."""
        index, level_pair = self._place[name], (name, level)
        return sum(
            ((taken_pair, level_pair) if self._place[taken_pair[0]] < index else (level_pair, taken_pair))
            in self._missing
            for taken_pair in row.items()
        )
