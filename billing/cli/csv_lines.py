"""The lines of a CSV file: a row that is written is one row for every reader, and of those that are read a broken row
takes one line, since a quote that is not closed swallows no line behind it.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator


def csv_line(cells: Iterable[str]) -> str:
    """The line of a row, with its end. The writer quotes what is in its own line end; so it is told the longer one, and
    a carriage return alone, which readers take for the end of a row, is quoted, too.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue().removesuffix("\r\n") + "\n"


class Lines:
    """Iterates over the lines of a file, and can give back the lines of a CSV row except the first. An unclosed quote
    makes the reader consume all following lines; only the line with the quote is broken, so the others are read again.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self._of_row: list[str] = []
        self.row_line = 1  # the number of the first line of the row

    @property
    def row_length(self) -> int:
        """The number of lines of the current row that were read."""
        return len(self._of_row)

    def begin_row(self) -> None:
        """Begins a row: the lines read from here on belong to it."""
        self.row_line += len(self._of_row)
        self._of_row.clear()

    def give_back(self) -> None:
        """Reduces the current row to its first line; its other lines will be read again."""
        self._again.extendleft(reversed(self._of_row[1:]))
        del self._of_row[1:]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._of_row.append(line)
        return line
