"""A page of the feed of all entries, from the worker that is asked: how far every shard's history is, then the page.

The order of an account's entries over all files needs one or two rounds of asking (see `billing.history.entries`). One
page is one `FeedQuestion`; it stands among the worker's callers while it asks the other shards. A shard that cannot be
asked makes the answer UNAVAILABLE: what its accounts did may have to come first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from billing.history.link import FeedPage, HistoryLink
from billing.ledger.errors import Refused
from shards.machine import Command

REACHED: Final = "history_reached"  # the survey: (shard, number of its newest row in the file) of each shard


class FeedQuestion:
    """One page. As a caller, it takes the answers of all shards."""

    mode = 0

    def __init__(
        self,
        history: HistoryLink,
        operate: Callable[[Any, None, Command], None],
        cursor: str,
        limit: int,
        done: Callable[[object], None],
    ) -> None:
        """`operate` as a worker has it; `done` gets the rows, or why there are none."""
        self._history = history
        self._operate = operate
        self._cursor = cursor
        self._limit = limit
        self._done = done
        self._bounds: tuple[tuple[int, int], ...] = ()
        self._rounds = 0

    def ask(self) -> None:
        """Asks all shards how far they are."""
        self._rounds += 1
        self._operate(self, None, (REACHED,))

    def answer(self, token: None, reply: object) -> None:
        """How far all shards' files are, or that one cannot be asked."""
        if not isinstance(reply, list):
            self._done(reply)
            return
        if self._rounds == 1:
            self._bounds = tuple((shard, sequence) for shard, sequence in reply)
        self._history.entries(self._cursor, self._limit, self._bounds, self._rounds > 1, self._on_page)

    def _on_page(self, page: FeedPage | Refused) -> None:
        if isinstance(page, FeedPage) and page.waits and not page.rows and self._rounds == 1:
            self._bounds = page.bounds
            self.ask()
        else:
            self._done(page.rows if isinstance(page, FeedPage) else page)

    def flush(self) -> None:
        """Nothing waits here."""

    def refuse(self, token: None, reply: object) -> None:
        """A shard cannot be asked."""
        self._done(reply)
