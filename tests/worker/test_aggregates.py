"""The census against the ledger's own answers, account by account."""

from __future__ import annotations

import sys
from types import FrameType

from billing.ledger import commands as ops
from billing.ledger.classes import CutoffClass
from billing.worker.aggregates import EXTRA_WORK, ROUND_NS, WORK_MAX, Aggregates
from tests.ledger.driver import BUCKET, HOUR, LedgerDriver

EXTRAS = WORK_MAX // EXTRA_WORK // 2  # in a bucket: a step comes through one, and half of the next


def ran_dry(count: int) -> LedgerDriver:
    """`count` users whose money ran out at 10, 11, …, each spending a nano a nanosecond; and one who has plenty."""
    driver = LedgerDriver()
    for number in range(count):
        driver.top_up(f"u{number}", 10 + number, at=0)
        driver.set_rate(f"u{number}", HOUR, at=0)
        driver.debit(f"u{number}", 1, at=10 + number, mode="partial")
    driver.top_up("rich", 10**9, at=0)
    driver.set_rate("rich", HOUR, at=0)
    return driver


def test_overrun_is_what_the_accounts_show_now() -> None:
    driver = ran_dry(5)
    census = Aggregates(driver.ledger.books)
    census.step(1000)
    figures = census.figures(1000)
    users = [f"u{number}" for number in range(5)]
    overruns = [driver.ledger.view(BUCKET, user.encode(), 1000)["overrun_nanos"] for user in users]
    assert figures["overrun_nanos"] == sum(overruns) == sum(1000 - (10 + number) for number in range(5))
    assert figures["overrun_nanos_per_hour"] == 5 * HOUR
    assert figures["overrun_accounts"] == 5
    assert figures["oldest_owed_ns"] == 1000 - 10
    assert figures["overrun_dearest"][0] == HOUR


def test_what_is_held_back_is_not_the_oldest_that_is_owed() -> None:
    driver = ran_dry(3)
    held = {(BUCKET, b"u0"), (BUCKET, b"u1")}
    census = Aggregates(driver.ledger.books, is_held=lambda bucket_id, user_id: (bucket_id, user_id) in held)
    census.step(1000)
    assert census.figures(1000)["oldest_owed_ns"] == 1000 - 12
    held.add((BUCKET, b"u2"))
    census.step(1000 + ROUND_NS)
    assert census.figures(1000 + ROUND_NS)["oldest_owed_ns"] == -1


def test_whose_overrun_grows_fastest_is_named() -> None:
    driver = ran_dry(3)
    census = Aggregates(driver.ledger.books)
    driver.set_rate("u1", 2 * HOUR, at=900)
    driver.set_rate("rich", 9 * HOUR, at=900)  # has money
    census.step(1000)
    assert census.figures(1000)["overrun_dearest"] == (2 * HOUR, "u1")
    driver.set_rate("u1", 0, at=1000)
    for user in ("u0", "u2"):
        driver.set_rate(user, 0, at=1000)
    census.step(1000)
    assert census.figures(1000)["overrun_dearest"] == (0, "")


def test_a_rate_at_zero_ends_it_and_what_there_was_stays() -> None:
    driver = ran_dry(1)
    driver.set_rate("u0", 0, at=30)
    census = Aggregates(driver.ledger.books)
    census.step(1000)
    assert census.figures(1000)["overrun_nanos"] == 20
    assert census.figures(1000)["overrun_nanos_per_hour"] == 0


def test_a_step_is_short_however_many_there_are_and_a_round_counts_all() -> None:
    books = {bucket_id: ran_dry(EXTRAS).ledger.books[BUCKET] for bucket_id in range(1, 6)}
    census = Aggregates(books)
    census.step(10**6)
    part = census.figures(10**6)["overrun_accounts"]
    assert 0 < part < 5 * EXTRAS
    for _ in range(5):
        census.step(10**6)
    assert census.figures(10**6)["overrun_accounts"] == 5 * EXTRAS
    del books[3]
    for _ in range(6):
        census.step(10**6)
    assert census.figures(10**6)["overrun_accounts"] == 4 * EXTRAS


def test_nothing_owed_is_told_apart_from_owed_just_now() -> None:
    driver = LedgerDriver()
    census = Aggregates(driver.ledger.books)
    census.step(5)
    assert census.figures(5)["oldest_owed_ns"] == -1


def test_accounts_in_a_class_that_is_gone_are_counted() -> None:
    driver = LedgerDriver(classes={b"gold": CutoffClass(grace_ns=50), b"slow": CutoffClass()})
    for user, name in (("a", "gold"), ("b", "gold"), ("c", "slow"), ("d", "")):
        driver.top_up(user, 10, at=0)
        driver.set_class(user, name, at=0)
    for configured, count in ((driver.rules.classes, 0), ({b"slow": CutoffClass()}, 2), ({}, 3)):
        census = Aggregates(driver.ledger.books, configured)
        census.step(5)
        assert census.figures(5)["unknown_class_accounts"] == count


def test_a_cutoff_is_owed_since_the_end_of_its_grace() -> None:
    driver = LedgerDriver(classes={b"gold": CutoffClass(grace_ns=50)})
    driver.top_up("u", 10, at=0)
    driver.set_class("u", "gold", at=0)
    driver.debit("u", 10, at=5)
    census = Aggregates(driver.ledger.books)
    for now_ns, owed_ns in ((54, -1), (55, 0), (60, 5)):
        driver.view("u", at=now_ns)
        census.step(now_ns)
        assert census.figures(now_ns)["oldest_owed_ns"] == owed_ns


def test_what_overrun_grew_by_never_falls_and_begins_with_the_process() -> None:
    driver = ran_dry(2)
    census = Aggregates(driver.ledger.books)
    census.step(1000)  # the first round: what there was before this process counts for nobody
    assert census.figures(1000)["overrun_grown_nanos"] == 0
    census.step(1000)
    census.step(1400)
    assert census.figures(1400)["overrun_grown_nanos"] == 2 * 400
    for user in ("u0", "u1"):
        driver.set_rate(user, 0, at=1500)
    (seq,) = (row["seq"] for row in driver.pending() if row["user_id"] == "u0")
    for op in (ops.CUTOFF_STARTED, ops.CUTOFF_DELIVERED):
        driver.report(op, "u0", seq, at=1550)
    driver.close("u0", at=1600)
    for _ in range(2):
        census.step(1700)
    closed = census.figures(1700)
    assert closed["overrun_nanos"] < 1000 * 2
    assert closed["overrun_grown_nanos"] >= 2 * 400


def test_the_first_overrun_of_a_bucket_that_was_looked_at_before_counts_whole() -> None:
    driver = LedgerDriver()
    driver.top_up("rich", 10**9, at=0)
    census = Aggregates(driver.ledger.books)
    for _ in range(2):
        census.step(5)
    driver.top_up("u", 10, at=10)
    driver.set_rate("u", HOUR, at=10)
    driver.debit("u", 1, at=20, mode="partial")
    for _ in range(2):
        census.step(120)
    assert census.figures(120)["overrun_grown_nanos"] == census.figures(120)["overrun_nanos"] == 100


def test_a_round_in_which_nothing_happened_makes_no_sum_anew() -> None:
    books = {bucket_id: ran_dry(3).ledger.books[BUCKET] for bucket_id in range(1, 41)}
    census = Aggregates(books)
    while not census.step(1000):
        continue
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name[0] != "<":
            called.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        while not census.step(1400):
            continue
    finally:
        sys.setprofile(None)
    assert set(called) == {"step", "_count"}, "a bucket that only grows on is compared with what was known of it"
    assert called.count("_count") == len(books)
    assert census.figures(1400)["overrun_grown_nanos"] == len(books) * 3 * 400
    assert census.figures(1500)["overrun_nanos"] == len(books) * sum(1500 - (10 + number) for number in range(3))


def test_a_round_follows_the_one_before_after_a_while_and_is_gone_through_at_once() -> None:
    books = {bucket_id: ran_dry(EXTRAS).ledger.books[BUCKET] for bucket_id in range(1, 4)}
    census = Aggregates(books)
    now_ns = 10**6
    assert census.is_due(now_ns)
    while not census.step(now_ns):
        assert census.is_due(now_ns)
    assert not census.is_due(now_ns + ROUND_NS - 1)
    assert census.is_due(now_ns + ROUND_NS)


def test_restores_are_owed_until_their_2xx_and_not_by_who_ran_out_again() -> None:
    driver = LedgerDriver(restore=True)
    for user in ("a", "b", "c"):
        driver.top_up(user, 10, at=0)
        driver.debit(user, 10, at=1)
        driver.report(ops.CUTOFF_STARTED, user, 1, at=2)
    census = Aggregates(driver.ledger.books)

    def owed(now_ns: int) -> object:
        census.step(now_ns)
        return census.figures(now_ns)["restores_owed"]

    assert owed(3) == 0
    for user in ("a", "b", "c"):
        driver.top_up(user, 10, at=4)
    assert owed(5) == 3
    driver.report(ops.RESTORE_STARTED, "a", 1, at=6)
    driver.report(ops.RESTORE_DELIVERED, "a", 1, at=7)
    driver.debit("b", 10, at=8)
    assert owed(9) == 1
