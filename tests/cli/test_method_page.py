"""What `billing methods NAME` says, of every procedure of the table and in a narrow terminal."""

from __future__ import annotations

from typing import Any

import pytest

from billing.api.methods import METHODS, describe
from billing.cli.method_page import described

ROWS: dict[str, Any] = {str(row["name"]): row for row in describe()}


def test_a_procedure_as_a_person_reads_it() -> None:
    lines = described(ROWS["bucket_id"], None)
    assert lines[0] == "bucket_id user_id"
    assert lines[2:] == [
        *("", "Takes:", "  user_id  text of 1-128 bytes, or integer", "", "Answers: integer.", ""),
        f"Refuses with {', '.join(ROWS['bucket_id']['errors'])}.",
    ]


def test_options_and_the_fields_of_the_answer_have_a_line_each() -> None:
    lines = described(ROWS["top_up"], None)
    assert lines[:2] == [
        "top_up user_id, amount, {expires_at_ns, kind, request_id, message}",
        "Adds money; creates the account if it is new. Role: top_up.",
    ]
    assert any(line.split() == ["state", "active", "or", "exhausted"] for line in lines)
    assert any(line.endswith("instant, or nil; when it runs out if nothing else happens") for line in lines)
    assert "Answers a map:" in lines
    assert "Answers an array of maps:" in described(ROWS["accounts"], None)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_it_fits_the_terminal_and_names_every_field(name: str, width: int) -> None:
    lines = described(ROWS[name], width)
    assert max(map(len, lines)) <= width
    row = ROWS[name]
    page_words = " ".join(lines).split()
    for field in (*row["params"], *row["options"], *row["reply"].get("fields", ())):
        assert field["name"] in page_words, field["name"]
