"""Pages of what a shard holds, in order of user_id, put together in slices: all accounts, and the cutoffs owed.

The accounts lie in the shard's buckets in no order. Each bucket keeps its user_ids in order once they were asked for
(`Book.ordered`, until one is opened or closed), so a page of accounts costs one search in each bucket and a merge of
what it found instead of a walk over every account. What is owed lies in the rare parts of accounts; a page of it walks
over those of the buckets that owe anything. Between slices the worker serves others: none is longer than
`SLICE_BUCKETS` buckets, whose order may have to be made, or than `SLICE_EXTRAS` rare parts (and one account's rows).

A page names users, and the next one begins behind its last user. So all rows of a user are on one page: a page of
cutoffs ends with the user who fills it, and may be longer than asked for by what he has more than one of.

A page shows what is there all the while it is made. An account that is opened or closed meanwhile may be in it or not,
and a cutoff that becomes owed or is settled meanwhile likewise; a bucket that arrives meanwhile is looked at, too. It
never changes anything and waits for nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable
from typing import Any, Final

from billing.ledger.book import Book
from billing.ledger.entry import PENDING
from billing.ledger.views import pending_rows

SLICE_BUCKETS: Final = 16
SLICE_EXTRAS: Final = 1_000

Row = dict[str, Any]
OfUser = tuple[bytes, list[Row]]


def account_page(books: dict[int, Book], after: bytes, limit: int) -> Generator[None, None, list[bytes]]:
    """Returns the first `limit` user_ids above `after`, ascending; yields between slices."""
    assert limit >= 1
    page: list[bytes] = []
    seen: set[int] = set()
    while waiting := [bucket_id for bucket_id in books if bucket_id not in seen][:SLICE_BUCKETS]:
        seen.update(waiting)
        found = []
        for bucket_id in waiting:
            order = books[bucket_id].ordered()
            first = bisect_right(order, after)
            last = bisect_left(order, page[-1], first) if len(page) == limit else first + limit
            found += order[first:last]
        if found:
            page = sorted(page + found)[:limit]
        yield
    return page


def cutoff_page(books: dict[int, Book], after: bytes, limit: int) -> Generator[None, None, list[Row]]:
    """Returns the owed cutoffs of the first users above `after`, users ascending, each user's by seq: `limit` rows, or
    more where the last user has several; yields between slices.
    """
    assert limit >= 1
    page: list[OfUser] = []
    full = False
    left = SLICE_EXTRAS
    seen: set[int] = set()
    while waiting := [bucket_id for bucket_id in books if bucket_id not in seen]:
        seen.update(waiting)
        for bucket_id in waiting:
            book = books.get(bucket_id)
            slots = list(book.extras) if book is not None and book.pending_cutoffs else []
            while slots and book is not None:
                looked_at, slots = slots[:left], slots[left:]
                found = _owed_of(book, looked_at, after, page[-1][0] if full else None)
                if found:
                    page, full = _cut(page + found, limit)
                left -= len(looked_at)
                if left == 0:
                    left = SLICE_EXTRAS
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


PAGES: Final = {"accounts": account_page, "pending_cutoffs": cutoff_page}


def _owed_of(book: Book, slots: list[int], after: bytes, before: bytes | None) -> list[OfUser]:
    """The rows of the users of these slots who owe cutoffs, above `after` and below `before`."""
    found = []
    for slot in slots:
        extra = book.extras.get(slot)
        if extra is not None and extra.cutoffs and extra.cutoffs[0].status == PENDING:
            user_id = book.users[slot]
            if user_id > after and (before is None or user_id < before):
                found.append((user_id, pending_rows(user_id, extra)))
    return found


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
