"""The last warnings and worse that a process has logged, kept for the page that shows them.

Rows are plain data, so that a worker can tell them with its figures: (number, wall ns, level, text, what to do).
Numbers rise. What is private is taken out before a row is kept.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

ROWS_MAX: Final = 20
CHARACTERS_MAX: Final = 300

Row = tuple[int, int, str, str, str]


class Recent(logging.Handler):
    """Keeps them. `discretion` makes a text fit to be shown, `advice` says what to do about a record."""

    def __init__(self, discretion: Callable[[str], str], advice: Callable[[logging.LogRecord], str]) -> None:
        super().__init__(logging.WARNING)
        self.rows: deque[Row] = deque(maxlen=ROWS_MAX)
        self._discretion = discretion
        self._advice = advice
        self._number = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._number += 1
            text = self._discretion(record.getMessage())[:CHARACTERS_MAX]
            at_ns = int(record.created * 1e9)
            self.rows.append((self._number, at_ns, record.levelname.lower(), text, self._advice(record)))
        except Exception:  # a record that cannot be formatted must not end what logged it
            self.handleError(record)
