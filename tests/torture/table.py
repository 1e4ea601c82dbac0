"""The table of tests/TORTURE.md, out of what the pieces said."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.torture.pieces import CAMPAIGNS, Piece

BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def lines(pieces: list[Piece], outcomes: dict[str, dict[str, Any]]) -> list[str]:
    """A row per campaign: what it is, how many pieces held, what they counted, the time they took together."""
    rows = ["| campaign | pieces that held | counted | minutes |", "| --- | --- | --- | --- |"]
    for campaign, text in CAMPAIGNS.items():
        own_pieces = [piece for piece in pieces if piece.campaign == campaign]
        own_outcomes = [outcomes[key_of(piece)] for piece in own_pieces if key_of(piece) in outcomes]
        if own_pieces:
            held_count = sum(outcome["ok"] for outcome in own_outcomes)
            minutes = sum(outcome["seconds"] for outcome in own_outcomes) / 60
            rows.append(f"| {text} | {held_count} of {len(own_pieces)} | {counted(own_outcomes)} | {minutes:.1f} |")
    return rows


def counted(outcomes: list[dict[str, Any]]) -> str:
    """The sums of all figures, maps of them flattened, lists by their length."""
    sums: Counter[str] = Counter()
    for outcome in outcomes:
        _add(sums, outcome["figures"])
    return ", ".join(f"{name} {value:,}" for name, value in sums.items() if value)


def _add(sums: Counter[str], figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            _add(sums, value)
        elif isinstance(value, list):
            sums[name] += len(value)
        elif isinstance(value, bool | int):
            sums[name] += value


def key_of(piece: Piece) -> str:
    """What a piece is known by, its size included."""
    return " ".join(piece.arguments)


def write(file: Path, rows: list[str], headline: str) -> None:
    """Puts the table between its marks."""
    text = file.read_text()
    assert text.count(BEGIN) == text.count(END) == 1, f"{file} has no place for the table"
    table = "\n".join([BEGIN, headline, "", *rows, END])
    file.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: table, text, flags=re.DOTALL))
