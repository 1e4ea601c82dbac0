"""Tables in which nothing that is whole is broken, however narrow the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from billing.cli.tables import COINS, FOLDED_CELLS_MIN, NUMBER, TEXT, WHOLE, Column, draw, fold

ROWS = [
    Column("entry", NUMBER, ["8", "1024"], 3),
    Column("at", WHOLE, ["2026-11-28 13:24:50 UTC", "2026-11-28 13:24:51 UTC"], 0),
    Column("amount", COINS, ["-5", "12,373.77836746"], 1),
    Column("message", TEXT, ["the invoice of november, paid by somebody", ""], 2),
]


def test_as_wide_as_it_comes_the_points_stand_below_each_other() -> None:
    assert draw(ROWS, None).lines == [
        "entry  at                                amount  message",
        "    8  2026-11-28 13:24:50 UTC      -5           the invoice of november, paid by somebody",
        " 1024  2026-11-28 13:24:51 UTC  12,373.77836746",
    ]


def test_text_is_folded_first() -> None:
    drawn = draw(ROWS, 70)
    assert drawn.left_out == []
    assert drawn.lines[:3] == [
        "entry  at                                amount  message",
        "    8  2026-11-28 13:24:50 UTC      -5           the invoice of",
        "                                                 november, paid by",
    ]


def test_then_the_least_important_columns_are_left_out() -> None:
    drawn = draw(ROWS, 42)
    assert drawn.left_out == ["message", "entry"]
    assert drawn.lines[-1] == "2026-11-28 13:24:51 UTC  12,373.77836746"


@given(st.integers(1, 120), st.lists(st.integers(-(2**70), 2**70), min_size=2, max_size=2))
def test_no_number_is_ever_broken(width: int, numbers: list[int]) -> None:
    columns = [*ROWS, Column("balance", COINS, [f"{number:,}" for number in numbers], 4)]
    drawn = draw(columns, width)
    text = "\n".join(drawn.lines)
    for column in columns:
        if column.heading not in drawn.left_out and column.kind != TEXT:
            assert all(cell in text for cell in column.cells)
    if len(columns) - len(drawn.left_out) > 1:
        assert max(map(cell_len, drawn.lines)) <= width


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60), st.integers(FOLDED_CELLS_MIN, 40))
def test_a_folded_text_keeps_every_character(text: str, width: int) -> None:
    lines = fold(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [("", [""]), ("short", ["short"]), ("one two three", ["one two", "three"]), ("0123456789", ["01234567", "89"])],
)
def test_texts_are_folded_at_spaces(text: str, lines: list[str]) -> None:
    assert fold(text, 8) == lines
