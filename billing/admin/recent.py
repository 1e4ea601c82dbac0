"""The last records of level warning or above that a process has logged, kept for the dashboard.

A row is plain data, so that a worker can send it with its figures: (number, wall ns, level, text, what to do). Numbers
rise by one. Private data are taken out of the text before a row is kept.
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
    """The log handler that keeps the rows. `discretion(text)`: the text without private data; `advice(record)`: what
    an operator should do about the record.
    """

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
        except Exception:  # a record that cannot be formatted must not end the code that logged it
            self.handleError(record)
