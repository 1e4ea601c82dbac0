"""A count of one is followed by the singular, also of what is counted in thousands or has a plural of its own."""

from __future__ import annotations

from shards.counting import counted


def test_a_count_and_its_noun_agree() -> None:
    assert [counted(number, "user") for number in (0, 1, 2, 1_000)] == ["0 users", "1 user", "2 users", "1,000 users"]
    assert [counted(number, "entry", "entries") for number in (1, 11)] == ["1 entry", "11 entries"]
