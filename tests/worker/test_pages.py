"""Pages of accounts: every account that stays is on exactly one page, in order, whatever comes and goes between."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

import pytest

from billing.ledger import block
from billing.ledger.book import Book
from billing.worker.pages import (
    LINES_SHOWN_MAX,
    SLICE_ACCOUNTS,
    SLICE_BUCKETS,
    Selection,
    account_page,
    joined_accounts,
    named_page,
)
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver

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
    slices: Generator[None, None, list[tuple[bytes, int]]] = named_page(books, after, limit)
    turn = 0
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return [user_id for user_id, _ in end.value]
        between(turn)
        turn += 1


def everyone(books: Books) -> list[bytes]:
    return sorted(user for book in books.values() for user in book.slots)


@pytest.mark.parametrize("limit", [1, 7, 100, 299, 300, 1000])
@pytest.mark.parametrize("count", [1, SLICE_BUCKETS, 3 * SLICE_BUCKETS + 1])
def test_pages_one_behind_the_other_are_all_accounts_in_order(count: int, limit: int) -> None:
    books = books_of(count, 300)
    walked: list[bytes] = []
    while page := page_of(books, walked[-1] if walked else b"", limit):
        assert len(page) <= limit
        walked += page
    assert walked == everyone(books)


def test_a_page_starts_behind_the_user_id_named_whether_there_is_one_or_not() -> None:
    books = books_of(5, 100)
    users = everyone(books)
    assert page_of(books, users[41], 10) == page_of(books, users[41] + b"\0", 10) == users[42:52]
    assert page_of(books, users[-1], 10) == page_of(books, b"\xff", 10) == []


def test_an_account_opened_or_closed_is_seen_by_the_next_page() -> None:
    books = books_of(5, 100)
    assert page_of(books, b"", 1000) == everyone(books)
    books[2].open_slot(b"0 first of all")
    books[3].close_slot(sorted(books[3].slots)[0])
    assert page_of(books, b"", 1000) == everyone(books)
    assert page_of(books, b"", 1) == [b"0 first of all"]


def test_no_slice_makes_the_order_of_more_than_its_buckets() -> None:
    books = books_of(100, 1000)
    orders: list[int] = []
    page_of(books, b"", 50, lambda turn: orders.append(sum(book.order is not None for book in books.values())))
    assert orders == [*range(SLICE_BUCKETS, 100, SLICE_BUCKETS), *[100] * (len(orders) - 100 // SLICE_BUCKETS)]
    assert orders[-1] == 100


def test_who_stays_is_on_the_page_while_buckets_and_accounts_come_and_go() -> None:
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


def test_the_order_that_is_kept_is_not_part_of_the_bucket_as_a_block() -> None:
    book = books_of(1, 30)[1]
    before = block.dump(book)
    assert book.ordered() == everyone({1: book})
    assert block.dump(book) == before
    assert block.load(1, before).order is None


# -- rows --------------------------------------------------------------------------------------------------------------


ALL = Selection()


def rows_of(driver: LedgerDriver, now_ns: int, after: bytes = b"", limit: int = 100, selection: Selection = ALL) -> Any:
    """A page of rows of the one bucket."""
    slices = account_page(driver.ledger, now_ns, after, limit, selection)
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return end.value


def spending_driver() -> LedgerDriver:
    """`a` runs out at 100, `b` at 1000, `c` never, `d` did at 10."""
    driver = LedgerDriver()
    for user, amount, rate in (("a", 100, 1), ("b", 1000, 1), ("c", 50, 0), ("d", 10, 1)):
        driver.top_up(user, amount, at=0)
        driver.set_rate(user, rate * HOUR, at=0)
    driver.view("d", 20)
    return driver


def test_a_row_says_how_the_account_stands_at_that_instant() -> None:
    driver = spending_driver()
    shown = [
        (row["user_id"], row["state"], row["balance_nanos"], row["rate_nanos_per_hour"], row["exhausts_at_ns"])
        for row in rows_of(driver, 40)
    ]
    assert shown == [
        ("a", "active", 60, HOUR, 100),
        ("b", "active", 960, HOUR, 1000),
        ("c", "active", 50, 0, None),
        ("d", "exhausted", 0, HOUR, None),
    ]
    before = block.dump(driver.ledger.books[BUCKET])
    (row,) = rows_of(driver, 300, limit=1)  # nobody has noticed yet that it ran out at 100
    assert (row["state"], row["balance_nanos"], row["exhausts_at_ns"]) == ("exhausted", 0, None)
    assert block.dump(driver.ledger.books[BUCKET]) == before, "a question changes nothing"


def test_only_who_is_asked_for_is_on_the_page() -> None:
    driver = spending_driver()

    def names(selection: Selection, after: bytes = b"", limit: int = 100) -> list[str]:
        return [row["user_id"] for row in rows_of(driver, 40, after, limit, selection)]

    assert names(Selection("exhausted")) == ["d"]
    assert names(Selection("active")) == ["a", "b", "c"]
    assert names(Selection(within_ns=60)) == ["a"], "at 100, which is 60 from now"
    assert names(Selection(within_ns=59)) == []
    assert names(Selection("active", 10**6)) == ["a", "b"]
    assert names(Selection("active"), after=b"a", limit=1) == ["b"]


def test_only_who_ran_out_and_still_has_a_rate_overruns() -> None:
    driver = spending_driver()
    driver.top_up("e", 5, at=10)
    driver.debit("e", 5, at=20)  # has no money, and no rate either
    selection = Selection(overrunning=1)
    assert [row["user_id"] for row in rows_of(driver, 40, selection=selection)] == ["d"]
    assert [row["user_id"] for row in rows_of(driver, 100, selection=selection)] == ["a", "d"], "a ran out unnoticed"
    driver.set_rate("d", 0, at=100)
    assert [row["user_id"] for row in rows_of(driver, 100, selection=selection)] == ["a"]


def test_rates_and_holds_are_added_where_they_are_asked_for() -> None:
    driver = LedgerDriver()
    driver.top_up("a", 100, at=0)
    driver.set_rate("a", 7, at=0, resource="vm-1")
    driver.hold("a", 30, at=0, request_id="h")
    (row,) = rows_of(driver, 0)
    assert (row["available_nanos"], "rates" in row, "holds" in row) == (70, False, False)
    (row,) = rows_of(driver, 0, selection=Selection(shown=("rates", "holds")))
    assert row["rates"] == {"vm-1": 7}
    assert row["holds"] == [{"hold_id": "r:h", "amount_nanos": 30, "expires_at_ns": None}]


def test_filters_find_the_few_among_many_in_slices() -> None:
    driver = LedgerDriver()
    for number in range(2 * SLICE_ACCOUNTS + 10):
        driver.top_up(f"{number:06d}", 10, at=0)
    few = ["000003", f"{SLICE_ACCOUNTS + 1:06d}", f"{2 * SLICE_ACCOUNTS + 9:06d}"]
    for user in few:
        driver.debit(user, 10, at=1)
    slices = account_page(driver.ledger, 2, b"", 10, Selection("exhausted"))
    assert next(slices) is None
    assert next(slices) is None
    with pytest.raises(StopIteration) as end:
        next(slices)
    assert [row["user_id"] for row in end.value.value] == few


def test_a_page_of_too_many_lines_says_so() -> None:
    driver = LedgerDriver()
    for number in range(6):
        driver.top_up(str(number), 10**9, at=0)
        for line in range(LINES_SHOWN_MAX // 5):
            driver.set_rate(str(number), 1, at=0, resource=f"vm-{line}")
    assert len(rows_of(driver, 0, limit=5, selection=Selection(shown=("rates",)))) == 5
    assert "ask for fewer accounts" in rows_of(driver, 0, limit=6, selection=Selection(shown=("rates",)))


def test_one_page_is_made_of_all_shards() -> None:
    pages = [[{"user_id": "a"}, {"user_id": "d"}], [{"user_id": "b"}, {"user_id": "d"}]]
    assert [row["user_id"] for row in joined_accounts(pages, 3)] == ["a", "b", "d"]
