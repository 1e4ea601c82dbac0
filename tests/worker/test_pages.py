"""Pages of accounts: every account that stays is on exactly one page, in order, whatever comes and goes between."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator

import pytest

from billing.ledger import block
from billing.ledger.book import Book
from billing.worker.pages import SLICE_BUCKETS, account_page

Books = dict[int, Book]


def books_of(count: int, users: int, seed: int = 1) -> Books:
    """Buckets with users in no order."""
    draw = random.Random(seed)
    books = {bucket_id: Book(bucket_id) for bucket_id in range(1, count + 1)}
    for number in draw.sample(range(10 * users), users):
        books[draw.randrange(count) + 1].open_slot(b"%d" % number)
    return books


def page_of(books: Books, after: bytes, limit: int, between: Callable[[int], None] = lambda turn: None) -> list[bytes]:
    """The page; `between` is called with 0, 1, ... between its slices."""
    slices: Generator[None, None, list[bytes]] = account_page(books, after, limit)
    turn = 0
    while True:
        try:
            next(slices)
        except StopIteration as end:
            page: list[bytes] = end.value
            return page
        between(turn)
        turn += 1


def everyone(books: Books) -> list[bytes]:
    return sorted(user for book in books.values() for user in book.slots)


@pytest.mark.parametrize("limit", [1, 7, 100, 299, 300, 1000])
@pytest.mark.parametrize("count", [1, SLICE_BUCKETS, 3 * SLICE_BUCKETS + 1])
def test_pages_one_behind_the_other_are_all_accounts_in_order(count, limit):
    books = books_of(count, 300)
    walked: list[bytes] = []
    while page := page_of(books, walked[-1] if walked else b"", limit):
        assert len(page) <= limit
        walked += page
    assert walked == everyone(books)


def test_a_page_starts_behind_the_user_id_named_whether_there_is_one_or_not():
    books = books_of(5, 100)
    users = everyone(books)
    assert page_of(books, users[41], 10) == page_of(books, users[41] + b"\0", 10) == users[42:52]
    assert page_of(books, users[-1], 10) == page_of(books, b"\xff", 10) == []


def test_an_account_opened_or_closed_is_seen_by_the_next_page():
    books = books_of(5, 100)
    assert page_of(books, b"", 1000) == everyone(books)
    books[2].open_slot(b"0 first of all")
    books[3].close_slot(sorted(books[3].slots)[0])
    assert page_of(books, b"", 1000) == everyone(books)
    assert page_of(books, b"", 1) == [b"0 first of all"]


def test_no_slice_makes_the_order_of_more_than_its_buckets():
    books = books_of(100, 1000)
    made: list[int] = []
    page_of(books, b"", 50, lambda turn: made.append(sum(book.order is not None for book in books.values())))
    assert made == [*range(SLICE_BUCKETS, 100, SLICE_BUCKETS), 100]


def test_who_stays_is_on_the_page_while_buckets_and_accounts_come_and_go():
    books = books_of(6 * SLICE_BUCKETS, 600)
    stay = set(everyone(books)) - set(books[2].slots) - set(books[90].slots)
    arriving = books_of(1, 50, seed=2)[1]
    for user in [user for user in arriving.slots if user in stay]:
        arriving.close_slot(user)

    def between(turn: int) -> None:
        books[1].open_slot(b"new %d" % turn)
        if turn == 1:
            del books[2], books[90]
            books[1000] = arriving

    page = page_of(books, b"", 10_000, between)
    assert page == sorted(page)
    assert stay | set(arriving.slots) <= set(page)
    assert len(page) == len(set(page))


def test_the_order_that_is_kept_is_not_part_of_the_bucket_as_a_block():
    book = books_of(1, 30)[1]
    before = block.dump(book)
    assert book.ordered() == everyone({1: book})
    assert block.dump(book) == before
    assert block.load(1, before).order is None
