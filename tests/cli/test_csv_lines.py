"""What is written as one row of CSV is read as one row."""

from __future__ import annotations

import csv
import io

import pytest

from billing.cli.csv_lines import csv_line


@pytest.mark.parametrize("text", ["a\rb", "\r", "a\r\nb", "\n", 'a"b', "a,b", " a ", "", "\u2028"])
def test_a_row_is_one_row_whatever_is_in_it(text: str) -> None:
    """A carriage return alone had not been quoted: a user id or message with one made two rows."""
    lines = csv_line(["user", "message"]) + csv_line([text, "ok"]) + csv_line(["next", "1"])
    assert list(csv.reader(io.StringIO(lines, newline=""))) == [["user", "message"], [text, "ok"], ["next", "1"]]
    assert lines.endswith("next,1\n")
