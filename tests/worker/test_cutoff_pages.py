"""Pages of owed cutoffs: every row is on exactly one page, in order, and no piece of the walk grows with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.ledger import Ledger, Rules
from billing.worker.machine import BillingMachine
from billing.worker.pages import SLICE_EXTRAS, cutoff_page, joined_cutoffs
from shards.machine import Later

Rows = list[dict[str, Any]]


def owing(users: dict[bytes, int], buckets: int = 5, seed: int = 1) -> Ledger:
    """A ledger in which each user owes so many cutoffs: run out once, and a line raised from zero for each other."""
    draw = random.Random(seed)
    ledger = Ledger(Rules(False, 10, True), lambda ref, due_ns: due_ns)
    for bucket_id in range(1, buckets + 1):
        ledger.create(bucket_id)
    for user_id, count in draw.sample(sorted(users.items()), len(users)):
        bucket_id = draw.randrange(buckets) + 1
        ledger.apply(bucket_id, 1, (ops.TOP_UP, user_id, 5, 0, 0, b"", b"", b"", b"", b""))
        limit = (ops.SET_CREDIT_LIMIT, user_id, 5, 0, 0, b"", b"", b"", b"", b"")  # else nothing rare
        ledger.apply(bucket_id, 2, limit)
        for number in range(count):
            if number == 0:
                ledger.apply(bucket_id, 3, (ops.DEBIT, user_id, 10, 0, 0, b"", b"", b"", b"", b""))
            else:
                line = (ops.SET_RATE, user_id, 1, -1, -1, b"vm-%d" % number, b"", b"", b"", b"")
                ledger.apply(bucket_id, 3 + number, line)
    return ledger


def is_held(bucket_id: int, user_id: bytes) -> bool:
    """One user of three waits for an operator."""
    return bucket_id > 0 and user_id[-1] % 3 == 0


def page_of(ledger: Ledger, after: bytes, limit: int, between: Callable[[int], None] = lambda turn: None) -> Rows:
    """The page; `between` is called with 0, 1, ... between its slices."""
    slices: Generator[None, None, Rows] = cutoff_page(ledger.books, after, limit, is_held)
    turn = 0
    while True:
        try:
            next(slices)
        except StopIteration as end:
            page: Rows = end.value
            return page
        between(turn)
        turn += 1


def walk(ask: Callable[[bytes, int], Rows], limit: int) -> tuple[list[tuple[str, int]], list[int]]:
    """What a client sees that goes on until a page is not full: (user, seq) of all rows, and the pages' lengths."""
    rows: list[tuple[str, int]] = []
    lengths: list[int] = []
    while not lengths or lengths[-1] >= limit:
        page = ask(rows[-1][0].encode() if rows else b"", limit)
        lengths.append(len(page))
        rows += [(row["user_id"], row["seq"]) for row in page]
        assert all(row["held"] == is_held(1, row["user_id"].encode()) for row in page)
    return rows, lengths


def rows_of(users: dict[bytes, int]) -> list[tuple[str, int]]:
    return [(user.decode(), seq) for user in sorted(users) for seq in range(1, users[user] + 1)]


SEVERAL = {b"user-%03d" % number: (3, 0, 1, 1, 7)[number % 5] for number in range(100)}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50, 239, 240, 241, 1000])
def test_pages_one_behind_the_other_are_all_rows_in_order(limit: int) -> None:
    ledger = owing(SEVERAL)
    rows, lengths = walk(lambda after, limit: page_of(ledger, after, limit), limit)
    assert rows == rows_of(SEVERAL)
    assert len(rows) == 240
    assert max(lengths) <= limit + 6, "longer only by the rows of the user who fills it"


def test_no_row_of_a_user_is_lost_at_the_end_of_a_page() -> None:
    ledger = owing({b"a": 1, b"b": 5, b"c": 1})
    page = page_of(ledger, b"", 3)
    assert [(row["user_id"], row["seq"]) for row in page] == rows_of({b"a": 1, b"b": 5})
    assert [row["user_id"] for row in page_of(ledger, b"b", 3)] == ["c"]
    assert [row["event_id"] for row in page_of(ledger, b"a", 1)] == [f"b:{seq}:{seq + 2}" for seq in range(1, 6)]


def test_a_page_starts_behind_the_user_id_named_whether_there_is_one_or_not() -> None:
    ledger = owing({b"a": 1, b"c": 1})
    assert [row["user_id"] for row in page_of(ledger, b"b", 9)] == ["c"]
    assert page_of(ledger, b"c", 9) == page_of(ledger, b"\xff", 9) == []


def test_no_slice_looks_at_more_rare_parts_than_its_number_however_they_lie() -> None:
    users = {b"%05d" % number: number % 2 for number in range(3 * SLICE_EXTRAS + 10)}
    for buckets in (1, 7):
        ledger = owing(users, buckets)
        turns: list[int] = []
        assert len(page_of(ledger, b"", 10, turns.append)) == 10
        assert turns == [0, 1, 2]
    ledger.books = {}
    assert page_of(ledger, b"", 10) == []


def test_who_owes_all_the_while_is_on_the_page_while_buckets_and_cutoffs_come_and_go() -> None:
    users = {b"%05d" % number: 1 for number in range(4 * SLICE_EXTRAS)}
    ledger = owing(users, buckets=4)
    arriving = owing({b"arrived": 2}, buckets=1).books[1]
    leaves = set(ledger.books[4].slots)
    paid = sorted(ledger.books[3].slots)[-1]

    def between(turn: int) -> None:
        if turn == 0:
            ledger.apply(3, 9, (ops.TOP_UP, paid, 100, 0, 0, b"", b"", b"", b"", b""))
            ledger.apply(2, 9, (ops.TOP_UP, b"new", 100, 0, 0, b"", b"", b"", b"", b""))
            del ledger.books[4]
            ledger.books[77] = arriving

    names = [row["user_id"].encode() for row in page_of(ledger, b"", 10_000, between)]
    assert names == sorted(names)
    assert users.keys() - leaves - {paid} <= set(names)
    assert names.count(b"arrived") == 2
    assert paid not in names


def test_pages_of_all_shards_are_one_page() -> None:
    """Also where a bucket is on its way and two shards tell of it."""
    users = [dict(list(SEVERAL.items())[start::3]) for start in range(3)]
    shards = [owing(part, seed=number) for number, part in enumerate(users)]
    shards.append(shards[0])

    def ask(after: bytes, limit: int) -> Rows:
        return joined_cutoffs([page_of(ledger, after, limit) for ledger in shards], limit)

    for limit in (1, 5, 100, 1000):
        assert walk(ask, limit)[0] == rows_of(SEVERAL)


def test_the_machine_answers_a_page_later_and_merges_what_the_shards_say() -> None:
    machine = BillingMachine(Rules(False, 10, True))
    query = ("pending_cutoffs", b"", 2)
    later = machine.survey(query, 0)
    assert type(later) is Later
    assert later.query == query
    of_b, of_a = (page_of(owing({user: 2}), b"", 2) for user in (b"b", b"a"))
    assert machine.merge(query, [of_b, of_a]) == of_a
