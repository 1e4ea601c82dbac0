"""Pages of a shard's accounts, and of its owed cutoffs, in order of user_id, made in slices.

The accounts of a bucket are in no order. Each bucket keeps a sorted list of its user_ids after the first use
(`Book.ordered`, until an account is opened or closed). So a page of accounts costs one search in each bucket and a
merge of the results, not a walk over every account. If only some accounts are wanted (of one state, or those that run
out within a time), the accounts are examined in order until enough of them are found, or all were examined.

Cutoffs are in the `Extra` of accounts; a page of owed cutoffs walks over those of the buckets that owe any. Between
slices the worker does other work: a slice is no longer than `SLICE_BUCKETS` buckets, which may have to be sorted,
`SLICE_ACCOUNTS` accounts, or `SLICE_EXTRAS` extras (and the rows of one account).

The next page begins behind the last user of a page. So all rows of a user have to be on one page: a page of cutoffs
ends with the user who fills it, and is longer than the limit if that user has several.

A page contains everything that exists during the whole time in which it is made. An account that is opened or closed
meanwhile, or a cutoff that becomes owed or is settled meanwhile, may be on the page or not; a bucket that arrives
meanwhile is included. A page never changes anything and never waits.
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
    """Which accounts a page shows, and which columns."""

    state: str = ""  # "": any state
    within_ns: int = -1  # only accounts that run out within this time; -1: all
    shown: tuple[str, ...] = ()  # of "rates" and "holds"
    class_name: bytes = b""  # empty: any class
    overrunning: int = 0  # 1: only accounts that are exhausted and have a rate above zero

    @property
    def is_picky(self) -> bool:
        """Whether only some accounts are wanted."""
        return bool(self.state or self.class_name or self.overrunning) or self.within_ns >= 0

    def takes(self, row: Row, now_ns: int) -> bool:
        """Whether the account with this row is wanted."""
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
    """Returns the rows of the first `limit` wanted accounts above `after`, ascending, or the text of a refusal if they
    have more than `LINES_SHOWN_MAX` rate lines and holds; yields between slices.
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
            if row is not None:  # the account was not closed meanwhile
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
    """The first `limit` wanted accounts above `after`, with their rows; yields between slices."""
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

    Users are spread over the buckets evenly, so the first pass takes a few users of each bucket, and the second pass
    takes more from the buckets that may have further users below the last one of the page.
    """
    assert limit >= 1
    few = limit // max(1, len(books)) + 2
    page: list[tuple[bytes, int]] = []
    rest: list[tuple[int, list[bytes], int]] = []  # (bucket id, its users, index of the next one)
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
    more if the last user has several; yields between slices. `is_held(bucket_id, user_id)` gives `held` of a row.
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
    """Joins the pages of all shards into one. Two shards may both show a bucket that is moving: its users come once."""
    by_user: dict[bytes, list[Row]] = {}
    for page in pages:
        of_page: dict[bytes, list[Row]] = {}
        for row in page:
            of_page.setdefault(row["user_id"].encode(), []).append(row)
        by_user |= of_page
    return [row for _, rows in _cut(by_user.items(), limit)[0] for row in rows]


def joined_accounts(pages: Iterable[list[Row]], limit: int) -> list[Row]:
    """Joins the pages of all shards into one. Two shards may both show a bucket that is moving: its users come once."""
    by_user = {row["user_id"].encode(): row for page in pages for row in page}
    return [by_user[user_id] for user_id in nsmallest(limit, by_user)]


def _first(user_and_row: tuple[bytes, Row | None]) -> bytes:
    return user_and_row[0]


def _owed_of(
    book: Book, slots: list[int], after: bytes, before: bytes | None, is_held: Callable[[int, bytes], bool]
) -> list[OfUser]:
    """The users in these slots, above `after` and below `before`, that have owed cutoffs, with their rows."""
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
    """The first users, ascending, that together have `limit` rows or more; and whether there are so many rows."""
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
