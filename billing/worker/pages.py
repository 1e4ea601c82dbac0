"""Pages of what a shard holds, in order of user_id, put together in slices: accounts, and the cutoffs owed.

The accounts lie in the shard's buckets in no order. Each bucket keeps its user_ids in order once they were asked for
(`Book.ordered`, until one is opened or closed), so a page of accounts costs one search in each bucket and a merge of
what it found instead of a walk over every account. Where only some are asked for (a state, or those that run out
within a time), accounts are looked at in order until enough of them are found, or all were looked at.

What is owed lies in the rare parts of accounts; a page of it walks over those of the buckets that owe anything. Between
slices the worker serves others: none is longer than `SLICE_BUCKETS` buckets, whose order may have to be made, than
`SLICE_ACCOUNTS` accounts, or than `SLICE_EXTRAS` rare parts (and one account's rows).

A page names users, and the next one begins behind its last user. So all rows of a user are on one page: a page of
cutoffs ends with the user who fills it, so it is longer than asked for where that user has several.

A page shows what is there all the while it is made. An account that is opened or closed meanwhile may be in it or not,
and a cutoff that becomes owed or is settled meanwhile likewise; a bucket that arrives meanwhile is looked at, too. It
never changes anything and waits for nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable
from heapq import nsmallest
from typing import Any, Final, NamedTuple

from billing.ledger.account import Account
from billing.ledger.book import Book
from billing.ledger.entry import PENDING
from billing.ledger.ledger import Ledger
from billing.ledger.views import account_row, pending_rows

SLICE_BUCKETS: Final = 16
SLICE_ACCOUNTS: Final = 2_000
SLICE_EXTRAS: Final = 1_000
SORTED_AT_ONCE: Final = 3  # pages full of users
LINES_SHOWN_MAX: Final = 50_000  # rate lines and holds on one page; more are refused

Row = dict[str, Any]
OfUser = tuple[bytes, list[Row]]


class Selection(NamedTuple):
    """Which accounts are asked for, and how much of each."""

    state: str = ""  # "": whatever theirs is
    within_ns: int = -1  # only those that run out within so long; -1: all
    shown: tuple[str, ...] = ()  # of "rates" and "holds"
    class_name: bytes = b""  # empty: whatever theirs is
    overrunning: int = 0  # 1: only those that have no money left and still have a rate

    @property
    def is_picky(self) -> bool:
        """Whether only some accounts are asked for."""
        return bool(self.state or self.class_name or self.overrunning) or self.within_ns >= 0

    def takes(self, row: Row, now_ns: int) -> bool:
        """Whether an account that stands so is asked for."""
        if self.state and row["state"] != self.state:
            return False
        if self.class_name and row["class"].encode() != self.class_name:
            return False
        if self.overrunning and (row["state"] != "exhausted" or not row["rate_nanos_per_hour"]):
            return False
        runs_out_ns = row["exhausts_at_ns"]
        return self.within_ns < 0 or (runs_out_ns is not None and runs_out_ns <= now_ns + self.within_ns)


def account_page(
    ledger: Ledger, now_ns: int, after: bytes, limit: int, selection: Selection
) -> Generator[None, None, list[Row] | str]:
    """Returns the rows of the first `limit` accounts above `after` that are asked for, ascending, or why it cannot;
    yields between slices.
    """
    rows: list[Row] = []
    lines = 0
    while len(rows) < limit:
        wanted = limit - len(rows)
        if selection.is_picky:
            picked = yield from _picked(ledger, now_ns, after, wanted, selection)
        else:
            users = yield from named_page(ledger.books, after, wanted)
            picked = [(user_id, _row_of(ledger, user_id, bucket_id, now_ns, selection)) for user_id, bucket_id in users]
        for user_id, row in picked:
            after = user_id
            if row is not None:  # it was not closed meanwhile
                rows.append(row)
                lines += sum(len(row[name]) for name in selection.shown)
        if lines > LINES_SHOWN_MAX:
            return f"more than {LINES_SHOWN_MAX} rate lines and holds are on one page: ask for fewer accounts at once"
        if len(picked) < wanted:
            break
    return rows


def _row_of(ledger: Ledger, user_id: bytes, bucket_id: int, now_ns: int, selection: Selection) -> Row | None:
    book = ledger.books.get(bucket_id)
    slot = None if book is None else book.slots.get(user_id)
    if book is None or slot is None:
        return None
    account = Account(book, slot, user_id)
    return account_row(account, now_ns, selection.shown, ledger.call_at_ns(account))


def _picked(
    ledger: Ledger, now_ns: int, after: bytes, limit: int, selection: Selection
) -> Generator[None, None, list[tuple[bytes, Row | None]]]:
    """The first `limit` accounts above `after` that are asked for, with their rows."""
    books = ledger.books
    page: list[tuple[bytes, Row | None]] = []
    looked_at = 0
    visited: set[int] = set()
    while (bucket_id := next((candidate for candidate in books if candidate not in visited), None)) is not None:
        visited.add(bucket_id)
        order = books[bucket_id].ordered()
        of_bucket: list[tuple[bytes, Row | None]] = []
        for index in range(bisect_right(order, after), len(order)):
            user_id = order[index]
            if len(of_bucket) == limit or (len(page) == limit and user_id > page[-1][0]):
                break
            row = _row_of(ledger, user_id, bucket_id, now_ns, selection)
            if row is not None and selection.takes(row, now_ns):
                of_bucket.append((user_id, row))
            looked_at += 1
            if looked_at % SLICE_ACCOUNTS == 0:
                yield
        if of_bucket:
            page = sorted(page + of_bucket, key=_first)[:limit]
    return page


def named_page(books: dict[int, Book], after: bytes, limit: int) -> Generator[None, None, list[tuple[bytes, int]]]:
    """Returns (user_id, bucket id) of the first `limit` accounts above `after`, ascending; yields between slices.

    Users are spread over the buckets evenly, so each is first asked for few; then those that may have more below the
    page's last.
    """
    assert limit >= 1
    few = limit // max(1, len(books)) + 2
    page: list[tuple[bytes, int]] = []
    rest: list[tuple[int, list[bytes], int]] = []  # (bucket id, its users, which of them comes next)
    visited: set[int] = set()
    while waiting := [bucket_id for bucket_id in books if bucket_id not in visited]:
        for at in range(0, len(waiting), SLICE_BUCKETS):
            for bucket_id in waiting[at : at + SLICE_BUCKETS]:
                visited.add(bucket_id)
                book = books.get(bucket_id)
                if book is not None:
                    order = book.ordered()
                    first = bisect_right(order, after)
                    page += [(user_id, bucket_id) for user_id in order[first : first + few]]
                    if first + few < len(order):
                        rest.append((bucket_id, order, first + few))
            if len(page) > SORTED_AT_ONCE * limit:
                page = sorted(page)[:limit]
            yield
    page = sorted(page)[:limit]
    if len(page) == limit:
        end_id = page[-1][0]
        rest = [(bucket_id, order, first) for bucket_id, order, first in rest if order[first] < end_id]
    for at in range(0, len(rest), SLICE_BUCKETS):
        last_id = page[-1][0] if len(page) == limit else None
        for bucket_id, order, first in rest[at : at + SLICE_BUCKETS]:
            last = first + limit if last_id is None else bisect_left(order, last_id, first)
            page += [(user_id, bucket_id) for user_id in order[first:last]]
        page = sorted(page)[:limit]
        yield
    return page


def cutoff_page(
    books: dict[int, Book], after: bytes, limit: int, is_held: Callable[[int, bytes], bool]
) -> Generator[None, None, list[Row]]:
    """Returns the owed cutoffs of the first users above `after`, users ascending, each user's by seq: `limit` rows, or
    more where the last user has several; yields between slices. `is_held(bucket_id, user_id)`: see `held` of the row.
    """
    assert limit >= 1
    page: list[OfUser] = []
    full = False
    slice_left = SLICE_EXTRAS
    visited: set[int] = set()
    while waiting := [bucket_id for bucket_id in books if bucket_id not in visited]:
        visited.update(waiting)
        for bucket_id in waiting:
            book = books.get(bucket_id)
            slots = list(book.extras) if book is not None and book.pending_cutoffs else []
            while slots and book is not None:
                looked_at, slots = slots[:slice_left], slots[slice_left:]
                owed = _owed_of(book, looked_at, after, page[-1][0] if full else None, is_held)
                if owed:
                    page, full = _cut(page + owed, limit)
                slice_left -= len(looked_at)
                if slice_left == 0:
                    slice_left = SLICE_EXTRAS
                    yield
    return [row for _, rows in page for row in rows]


def joined_cutoffs(pages: Iterable[list[Row]], limit: int) -> list[Row]:
    """One page out of all shards' pages. Of a bucket on its way two shards may tell."""
    by_user: dict[bytes, list[Row]] = {}
    for page in pages:
        of_page: dict[bytes, list[Row]] = {}
        for row in page:
            of_page.setdefault(row["user_id"].encode(), []).append(row)
        by_user |= of_page
    return [row for _, rows in _cut(by_user.items(), limit)[0] for row in rows]


def joined_accounts(pages: Iterable[list[Row]], limit: int) -> list[Row]:
    """One page out of all shards' pages. Of a bucket on its way two shards may tell."""
    by_user = {row["user_id"].encode(): row for page in pages for row in page}
    return [by_user[user_id] for user_id in nsmallest(limit, by_user)]


def _first(user_and_row: tuple[bytes, Row | None]) -> bytes:
    return user_and_row[0]


def _owed_of(
    book: Book, slots: list[int], after: bytes, before: bytes | None, is_held: Callable[[int, bytes], bool]
) -> list[OfUser]:
    """The rows of the users of these slots with owed cutoffs, above `after` and below `before`."""
    of_users = []
    for slot in slots:
        extra = book.extras.get(slot)
        if extra is not None and extra.cutoffs and extra.cutoffs[0].status == PENDING:
            user_id = book.users[slot]
            if user_id > after and (before is None or user_id < before):
                rows = pending_rows(user_id, extra)
                held = is_held(book.bucket_id, user_id)
                of_users.append((user_id, [row | {"held": held} for row in rows]))
    return of_users


def _cut(users: Iterable[OfUser], limit: int) -> tuple[list[OfUser], bool]:
    """The first users who have `limit` rows together, ascending; whether they have so many."""
    page: list[OfUser] = []
    rows = 0
    for user in sorted(users, key=_name):
        page.append(user)
        rows += len(user[1])
        if rows >= limit:
            return page, True
    return page, False


def _name(user: OfUser) -> bytes:
    return user[0]
