"""Draws tables that fit the terminal. No number or instant is ever broken.

If a table is too wide, its texts are folded; if that is not enough, the least important columns are left out, and
`Drawn.left_out` names them. The decimal points of a column's amounts are aligned. Pure: takes columns and a width,
returns lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len

GAP: Final = "  "
FOLDED_CELLS_MIN: Final = 12  # the least width to which a column of text is folded

TEXT: Final = "text"  # left, may be folded
WHOLE: Final = "whole"  # left, never folded
NUMBER: Final = "number"  # right, never folded
COINS: Final = "coins"  # right by its point, never folded


class Column(NamedTuple):
    """A column: its heading, the kind of its cells, and the cells. Less important columns are left out first."""

    heading: str
    kind: str
    cells: Sequence[str]
    importance: int = 0  # 0: the most important
    style: Sequence[str] = ()  # an ANSI prefix for each cell, "" for none


class Drawn(NamedTuple):
    """The lines of a table, and the headings of the columns that were left out."""

    lines: list[str]
    left_out: list[str]


def draw(columns: Sequence[Column], width: int | None) -> Drawn:
    """Draws a table at most `width` cells of the terminal wide; None for any width."""
    ready = [column._replace(cells=_by_point(column.cells)) if column.kind == COINS else column for column in columns]
    widths = [max(cell_len(text) for text in (column.heading, *column.cells)) for column in ready]
    if width is None:
        return Drawn(_lines(ready, widths), [])
    left_out: list[str] = []
    while True:
        fitted = _fitted(ready, widths, width)
        if fitted is not None or len(ready) == 1:
            return Drawn(_lines(ready, fitted or widths), left_out)
        least = max(range(len(ready)), key=lambda index: (ready[index].importance, index))
        left_out.insert(0, ready[least].heading)
        del ready[least], widths[least]


def fold(text: str, width: int) -> list[str]:
    """Breaks a text into lines of at most `width` cells, at spaces where possible."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if cell_len(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def _fitted(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int] | None:
    """The widths after folding texts; None if the table is too wide even then."""
    fitted = list(widths)
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    while over > 0:
        texts = [index for index, column in enumerate(columns) if column.kind == TEXT]
        widest = max(texts, key=lambda index: fitted[index], default=None)
        if widest is None or fitted[widest] <= FOLDED_CELLS_MIN:
            return None
        fitted[widest] -= 1
        over -= 1
    return fitted


def _lines(columns: Sequence[Column], widths: Sequence[int]) -> list[str]:
    lines = _row([(column.heading, column.kind, "") for column in columns], widths)
    for index in range(len(columns[0].cells)):
        styled = [(column.cells[index], column.kind, column.style[index] if column.style else "") for column in columns]
        lines += _row(styled, widths)
    return lines


def _row(cells: Sequence[tuple[str, str, str]], widths: Sequence[int]) -> list[str]:
    folded = [
        fold(text, width) if kind == TEXT else [text] for (text, kind, _), width in zip(cells, widths, strict=True)
    ]
    lines = []
    for level in range(max(map(len, folded))):
        parts = []
        for (_, kind, style), texts, width in zip(cells, folded, widths, strict=True):
            text = texts[level] if level < len(texts) else ""
            space = " " * (width - cell_len(text))
            shown = f"{style}{text}\x1b[0m" if style and text else text
            parts.append(space + shown if kind in (NUMBER, COINS) else shown + space)
        lines.append(GAP.join(parts).rstrip())
    return lines


def _by_point(cells: Sequence[str]) -> list[str]:
    """Amounts padded on the right, so that their decimal points are aligned."""
    behind = [len(text) - text.index(".") if "." in text else 0 for text in cells]
    most = max(behind, default=0)
    return [text + " " * (most - length) for text, length in zip(cells, behind, strict=True)]
