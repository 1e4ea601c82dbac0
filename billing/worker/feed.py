"""Makes a page of the feed of all entries, in the worker that gets the query.

If this host has the files of all shards, `FeedQuestion` asks every shard how far its history is, and reads the page
from the files; to keep the order of an account's entries over all files, it asks once or twice (see
`billing.history.entries`). If hosts share the log, `SharedFeedQuestion` asks all shards for their rows, on whichever
hosts these are, and joins the page here (see `billing.history.feed_part`). Both are callers of the worker's `operate`.

If a shard cannot be asked, the reply is UNAVAILABLE, because the entries of its accounts may have to come first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

from billing.history.cursor import Place, decode, encode
from billing.history.link import FeedPage, HistoryLink
from billing.ledger.errors import Refused
from shards.machine import Command

REACHED: Final = "history_reached"  # the survey: (shard, number of its newest row in the file) of each shard
PART: Final = "feed_part"  # the survey: `billing.history.feed_part.Part` of each shard
WHERE: Final = "feed_where"  # the survey: entries and their places, of each shard
ROWS_A_SHARD_MIN: Final = 32  # rows to ask each shard for at least: some shards have had more entries than others
ROWS_A_SLICE: Final = 100  # rows of a page between two turns of other work

Slices = Generator[None, None, object]
Places = dict[int, Place | None]  # by shard; None: before its first row


def place_in(cursor: bytes, shard: int) -> Place | None:
    """The shard's place in a cursor; None for the beginning. Raises NoCursor."""
    return decode(cursor.decode()).get(shard)


class FeedQuestion:
    """The query for one page. It is a caller of `operate` and gets the answers of all shards."""

    mode = 0

    def __init__(
        self,
        history: HistoryLink,
        operate: Callable[[Any, None, Command], None],
        cursor: str,
        limit: int,
        done: Callable[[object], None],
    ) -> None:
        """`operate`: as of a worker; `done` gets the rows, or the refusal."""
        self._history = history
        self._operate = operate
        self._cursor = cursor
        self._limit = limit
        self._done = done
        self._bounds: tuple[tuple[int, int], ...] = ()
        self._rounds = 0

    def ask(self) -> None:
        """Asks all shards how far their histories are."""
        self._rounds += 1
        self._operate(self, None, (REACHED,))

    def answer(self, token: None, reply: object) -> None:
        """Takes the answer: how far the files of all shards are, or the reply of one that cannot be asked."""
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


class SharedFeedQuestion:
    """The query for one page, joined from the parts of all shards. It is a caller of `operate`, too."""

    mode = 0

    def __init__(
        self,
        operate: Callable[[Any, None, Command], None],
        cursor: str,
        limit: int,
        shards: int,
        go_on: Callable[[Slices, Callable[[object], None]], None],
        done: Callable[[object], None],
    ) -> None:
        """`operate`: as of a worker; `shards`: how many there are; `go_on` runs a generator in slices, with pauses, and
        calls back with its result; `done` gets the rows, or the refusal.
        """
        self._operate = operate
        self._cursor = cursor.encode()
        self._limit = limit
        self._rows_a_shard = min(limit, max(ROWS_A_SHARD_MIN, 2 * limit // shards))
        self._go_on = go_on
        self._done = done
        self._parts: list[Any] | None = None

    def ask(self) -> None:
        """Asks all shards for their rows."""
        self._operate(self, None, (PART, self._cursor, self._rows_a_shard))

    def answer(self, token: None, reply: object) -> None:
        """Takes the answer: first the parts of all shards, then the places of entries that must come before some rows
        of these; or the reply of a shard that cannot be asked.
        """
        if not isinstance(reply, list):
            self._done(reply)
        elif self._parts is None:
            self._parts = reply
            wanted = [
                (user_id, shown["entry_id"] - 1)
                for _, _, rows, _ in reply
                for _, _, follows, user_id, shown in rows
                if follows
            ]
            if wanted:
                self._operate(self, None, (WHERE, wanted))
            else:
                self._go_on(merged(reply, {}, self._limit), self._done)
        else:
            self._go_on(merged(self._parts, places_of(reply), self._limit), self._done)

    def flush(self) -> None:
        """Nothing waits here."""

    def refuse(self, token: None, reply: object) -> None:
        """A shard cannot be asked."""
        self._done(reply)


# (user_id, entry_id) -> the shard that has it, the place behind it
EntryPlaces = dict[tuple[bytes, int], tuple[int, Place]]


def places_of(answers: Iterable[Any]) -> EntryPlaces:
    """The places of entries, from the shards' answers to WHERE."""
    return {
        (user_id, entry_id): (shard, Place(*place))
        for shard, entries in answers
        for user_id, entry_id, place in entries
    }


def merged(parts: list[Any], entry_places: EntryPlaces, limit: int) -> Slices:
    """Joins a page, in slices; returns its rows. A row may follow an entry of another shard; `entry_places` has the
    places of these entries. An entry that is not in `entry_places` is lost, and no row waits for it.
    """
    places: Places = {shard: None if begins is None else Place(*begins) for shard, begins, _, _ in parts}
    queues = {shard: iter(rows) for shard, _, rows, _ in parts}
    ends = {shard: end for shard, *_, end in parts}
    heads = {shard: row for shard, queue in queues.items() if (row := next(queue, None)) is not None}
    complete = {shard for shard, end in ends.items() if end is not None}  # shards whose parts have all of their rows
    page: list[dict[str, Any]] = []
    while len(page) < limit and heads.keys() | complete == places.keys():
        ready = [(row[0], shard) for shard, row in heads.items() if _may_go(row, entry_places, places)]
        if not ready:
            break
        _, shard = min(ready)
        _, place, _, _, shown = heads.pop(shard)
        places[shard] = Place(*place)
        page.append({"cursor": _text(places), **shown})
        if (row := next(queues[shard], None)) is not None:
            heads[shard] = row
        if not len(page) % ROWS_A_SLICE:
            yield
    if page:  # behind all rows of a shard the reader misses nothing if rows are trimmed later: its place is the end
        places |= {shard: Place(*ends[shard]) for shard in complete - heads.keys()}
        page[-1]["cursor"] = _text(places)
    return page


def _may_go(row: Any, entry_places: EntryPlaces, places: Places) -> bool:
    """Whether the entry before this one of the same account is already on the page, or on one before."""
    _, _, follows, user_id, shown = row
    if not follows or (before := entry_places.get((user_id, shown["entry_id"] - 1))) is None:
        return True
    shard, needed = before
    reached = places[shard]
    return reached is not None and _order(reached) >= _order(needed)


def _order(place: Place) -> tuple[bool, int, int]:
    """The order of places: those in a file's rows come before those in the log."""
    return place.is_of_log, place.sequence, place.rows


def _text(places: Places) -> str:
    return encode({shard: place for shard, place in places.items() if place is not None})
