"""A page of the feed of all entries, from the worker that is asked; it stands among the worker's callers meanwhile.

Where this host has the files of all shards, it asks how far every shard's history is, and reads the page out of the
files (`FeedQuestion`): the order of an account's entries over all files needs one or two rounds of asking (see
`billing.history.entries`). Where hosts share the log, it asks all shards for their rows, wherever these are, and puts
the page together here (`SharedFeedQuestion`, see `billing.history.feed_part`).

A shard that cannot be asked makes the answer UNAVAILABLE: what its accounts did may have to come first.
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
ROWS_A_SHARD_MIN: Final = 32  # so many are asked for at least: shards have not done the same of late
ROWS_A_SLICE: Final = 100  # of a page; between two slices others are served

Slices = Generator[None, None, object]
Places = dict[int, Place | None]  # by shard; None: in front of its first row


def place_in(cursor: bytes, shard: int) -> Place | None:
    """The shard's place in a cursor; None for the beginning. Raises NoCursor."""
    return decode(cursor.decode()).get(shard)


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


class SharedFeedQuestion:
    """One page out of all shards' parts. As a caller, it takes their answers."""

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
        """`operate` as a worker has it; `shards`: how many there are; `go_on` carries out slices, with pauses, and
        calls back with what they return; `done` gets the rows, or why there are none.
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
        """The parts of all shards, or where the rows are that go before some of these; or that one cannot be asked."""
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
    """Where entries are, out of the shards' answers to WHERE."""
    return {
        (user_id, entry_id): (shard, Place(*place))
        for shard, entries in answers
        for user_id, entry_id, place in entries
    }


def merged(parts: list[Any], entry_places: EntryPlaces, limit: int) -> Slices:
    """Puts a page together, in slices; returns its rows. A row may say that it follows an entry of another shard;
    `entry_places` has these entries, by place. An entry that is not in `entry_places` is lost, and no row waits for it.
    """
    places: Places = {shard: None if begins is None else Place(*begins) for shard, begins, _, _ in parts}
    queues = {shard: iter(rows) for shard, _, rows, _ in parts}
    ends = {shard: end for shard, *_, end in parts}
    heads = {shard: row for shard, queue in queues.items() if (row := next(queue, None)) is not None}
    complete = {shard for shard, end in ends.items() if end is not None}  # whose parts have all rows that there are
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
    if page:  # where there is nothing more, the reader has all of it: what is trimmed by and by is not missed
        places |= {shard: Place(*ends[shard]) for shard in complete - heads.keys()}
        page[-1]["cursor"] = _text(places)
    return page


def _may_go(row: Any, entry_places: EntryPlaces, places: Places) -> bool:
    """Whether the account's entry before this one is out."""
    _, _, follows, user_id, shown = row
    if not follows or (before := entry_places.get((user_id, shown["entry_id"] - 1))) is None:
        return True
    shard, needed = before
    reached = places[shard]
    return reached is not None and _order(reached) >= _order(needed)


def _order(place: Place) -> tuple[bool, int, int]:
    """Places in a file's rows come before those in the log."""
    return place.is_of_log, place.sequence, place.rows


def _text(places: Places) -> str:
    return encode({shard: place for shard, place in places.items() if place is not None})
