"""A page of all accounts of a shard, in order of user_id, put together in slices.

The accounts lie in the shard's buckets in no order. Each bucket keeps its user_ids in order once they were asked for
(`Book.ordered`, until one is opened or closed), so a page costs one search in each bucket and a merge of what it found
instead of a walk over every account. Between slices the worker serves others: none is longer than `SLICE_BUCKETS`
buckets, whose order may have to be made.

A page shows accounts that are there all the while it is made. One that is opened or closed meanwhile may be in it or
not; one whose bucket arrives meanwhile is looked at, too. It never changes anything and waits for nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator
from typing import Final

from billing.ledger.book import Book

SLICE_BUCKETS: Final = 16


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
