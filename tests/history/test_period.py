"""Periods of an account: parts sum to the whole to the internal unit, lines to the account, whatever is asked."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from billing.history.history_reader import HistoryReader
from billing.history.page import record_of_older_row
from billing.history.period import MISSING, NOTHING, Interval, Period, Point, Tally, missing
from billing.history.period_reader import (
    Chain,
    Standing,
    Steps,
    TooLong,
    balance_at,
    bounded_statement,
    shown,
    statement,
)
from billing.history.store import Store
from billing.ledger.entry import ACCRUING, EXHAUSTED, Entry, unpack
from billing.ledger.money import INT64_MAX, NANO
from shards.batch import ENTRY
from tests.history.books import AccountLife, check, lives, run
from tests.history.tampering import rewritten, rows
from tests.history.test_store import batch_of, opened, reader_of
from tests.ledger.driver import HOUR, LedgerDriver

USER = b"u"


def life_of(driver: LedgerDriver, user: str = "u") -> AccountLife:
    driver.entries()
    entries = [(packed, Entry._make(unpack(packed))) for packed in driver.journal]
    return AccountLife([packed for packed, entry in entries if entry.entry_id and entry.user_id == user.encode()])


def lines_of(period: Period) -> dict[bytes | None, int]:
    assert period.lines is not None
    return {line.resource: line.accrued for line in period.lines}


# -- the arithmetic ----------------------------------------------------------------------------------------------------


def test_pieces_of_random_lives_sum_to_the_whole_at_25_000_cuts() -> None:
    """`python -m tests.history.books` cuts a million times."""
    cut_counts = run(25_000, seed=1, each=250)
    assert cut_counts.cuts >= 25_000
    for name in (
        *("credit_expired", "lease_expired", "hold_expired", "capture", "release", "close_account", "opened again"),
        *("exhausted and accruing", "exhausted and clamped", "threshold", "change_rate", "adjust", "debit"),
    ):
        assert cut_counts.counts[name] >= 5, f"{name} was not tried"


def test_a_machine_that_ran_through_a_period_without_an_entry_is_in_it() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1000, at=0)
    driver.set_rate("u", HOUR, at=100, resource="vm")
    driver.set_rate("u", 0, at=900, resource="vm")
    period = life_of(driver).period(200, 700)
    assert (period.opening_nanos, period.accrued_nanos, period.closing_nanos) == (900, 500, 400)
    assert (period.entries, period.first_id) == (0, 0)
    assert lines_of(period) == {b"vm": 500 * NANO}


def test_an_entry_at_an_edge_is_in_the_period_that_begins_there() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1000, at=0)
    driver.set_rate("u", HOUR, at=100)
    driver.debit("u", 50, at=300)
    life = life_of(driver)
    before, behind = life.period(0, 300), life.period(300, 301)
    assert (before.debits_nanos, before.accrued_nanos, before.closing_nanos) == (0, 200, 800)
    assert (behind.opening_nanos, behind.debits_nanos, behind.accrued_nanos, behind.closing_nanos) == (800, 50, 1, 749)


def test_at_the_exhaustion_lines_share_what_was_left_in_the_order_of_their_names() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", 2 * HOUR, at=0, resource="b")
    driver.set_rate("u", HOUR, at=0, resource="a")
    driver.view("u", at=1000)  # 100 / 3 ns: exhausted at 34, when 2 nanos of the last nanosecond's 3 could not be paid
    life = life_of(driver)
    assert driver.operations("u")[-1] == ("exhaust", 34)
    whole_period = life.period(0, 500)
    assert (whole_period.accrued, whole_period.closing) == (100 * NANO, 0)
    third = 100 * NANO // 3
    assert lines_of(whole_period) == {b"a": third, b"b": 100 * NANO - third}
    last = life.period(33, 500)
    assert lines_of(last) == {b"a": third - 33 * NANO, b"b": 34 * NANO - third}
    assert life.period(34, 500).accrued == 0, "nothing accrues while it is exhausted"


def test_with_arrears_what_accrues_behind_the_exhaustion_is_in_its_period() -> None:
    driver = LedgerDriver(accrue=True)
    driver.top_up("u", 100, at=0)
    driver.set_rate("u", HOUR, at=0)
    driver.view("u", at=500)
    period = life_of(driver).period(200, 400)
    assert (period.opening_nanos, period.accrued_nanos, period.closing_nanos) == (-100, 200, -300)


def test_fractions_of_a_nano_are_neither_lost_nor_made() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 10**6, at=0)
    driver.set_rate("u", 3600, at=0)  # one nano a second
    life = life_of(driver)
    thirds = [life.period(number * 333_333_333, (number + 1) * 333_333_333) for number in range(3000)]
    assert {piece.accrued for piece in thirds} == {333_333_333 * 3600}
    assert {piece.accrued_nanos for piece in thirds} == {0, 1}
    assert sum(piece.accrued_nanos for piece in thirds) == life.period(0, 3000 * 333_333_333).accrued_nanos == 1000


def test_twelve_months_are_the_year() -> None:
    month = 30 * 24 * 3600 * 10**9
    driver = LedgerDriver()
    driver.top_up("u", 10**15, at=5)
    for number in range(40):
        driver.set_rate("u", 7 * 10**9 + number, at=5 + number * month // 3, resource=f"vm-{number % 4}")
    life = life_of(driver)
    check(life, [number * month for number in range(13)])


def test_credit_that_expired_stands_among_the_debits_and_alone() -> None:
    tally = Tally(0, 10, NOTHING)
    tally.take(Point(1, 1, "top_up", 9 * NANO, 9 * NANO, 0, 9 * NANO))
    tally.take(Point(2, 2, "credit_expired", -4 * NANO, 5 * NANO, 0, 5 * NANO))
    tally.take(Point(3, 3, "an operation to come", -NANO, 4 * NANO, 0, 4 * NANO))
    period = tally.close(None)
    assert (period.credits_nanos, period.debits_nanos, period.expired_nanos, period.closing_nanos) == (9, 5, 4, 4)


def test_a_line_whose_rate_was_not_recorded_is_told_from_the_account_s() -> None:
    former = Point(1, 0, "set_rate", 0, 100 * NANO, 5, 100 * NANO, b"a", 5)
    tally = Tally(0, 20, former, {b"a": 5})
    tally.take(Point(2, 10, "change_rate", 0, 100 * NANO - 50, 8, 100 * NANO - 50, b"b", None))
    period = tally.close(None)
    assert lines_of(period) == {b"a": 100, b"b": 30}


def test_what_lies_in_a_gap_is_bridged_and_said() -> None:
    former = Point(1, 0, "top_up", 100, 100, 5, 100)
    after = Point(5, 10, "debit", -20, 30, 2, 30)
    tally = Tally(0, 20, former, {b"a": 5})
    gap = missing(former, after)
    tally.take(gap)
    tally.take(after)
    period = tally.close(None)
    assert (gap.operation, period.opening, period.debits, period.closing) == (MISSING, 100, 70, 10)
    assert (period.entries, period.whole_from_ns) == (1, 10)
    assert lines_of(period) == {None: 20}


def test_without_a_rate_what_accrued_is_spread_evenly() -> None:
    former = Point(1, 0, "top_up", 100, 100, None, 0, is_exact=False)
    interval = Interval(former, 10, Point(2, 10, "debit", 0, 60, 1, 60))
    assert [interval.balance_at(at_ns) for at_ns in (0, 5, 9, 10)] == [100, 80, 64, 60]
    assert not interval.is_exact


# -- out of the file ---------------------------------------------------------------------------------------------------


def answer_of(steps: Steps) -> tuple[dict[str, Any], bool]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def standing_of(life: AccountLife) -> Standing:
    entry = life.timeline.entries[-1]
    flags = entry.flags & (EXHAUSTED | ACCRUING)
    money = entry.balance_nanos, entry.balance_frac
    limits = entry.credit_limit_nanos, entry.holds_nanos
    return Standing(entry.entry_id, entry.at_ns, *money, entry.rate, *limits, flags)


class File:
    """A history file with the rows of one account."""

    def __init__(self, home: Path, life: AccountLife, user: bytes, rows: list[Any] | None = None) -> None:
        self.life, self.user = life, user
        self.store = opened(home)
        self.reader: HistoryReader = reader_of(home, self.store)
        for position, row in enumerate(life.packed if rows is None else rows, 1):
            self.store.take(position, batch_of((ENTRY, 1, 1, row)))
        self.store.flush()

    def chain(self, newest: Standing | None = None) -> Chain:
        return Chain(self.reader, 1, self.user, standing_of(self.life) if newest is None else newest)

    def statement(self, from_ns: int, to_ns: int, *, by: bool = True, limit: int = 1000) -> dict[str, Any]:
        answer, is_whole = answer_of(statement(self.chain(), self.user, from_ns, to_ns, by, limit, INT64_MAX))
        assert is_whole
        return answer

    def balance_at(self, at_ns: int) -> dict[str, Any]:
        return answer_of(balance_at(self.chain(), self.user, at_ns, INT64_MAX))[0]


@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_a_statement_out_of_the_file_is_that_of_all_points(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    life = max(lives(seed, 600), key=lambda life: len(life.points))
    file = File(tmp_path, life, life.timeline.entries[0].user_id)
    for _ in range(100):
        from_ns, to_ns = sorted(life.cuts(draw, 2))
        answer = file.statement(from_ns, to_ns)
        inside = [number for number, at_ns in enumerate(life.instants, 1) if from_ns <= at_ns < to_ns]
        assert [row["entry_id"] for row in answer.pop("entries")] == inside
        wanted = shown(file.user, life.period(from_ns, to_ns), False, [])
        del wanted["entries"]
        assert answer == wanted
        at_ns = draw.choice([from_ns, to_ns])
        then = file.balance_at(at_ns)
        behind = life.period(at_ns, at_ns + 1)
        assert int(then["exact_balance"]) == behind.opening + behind.credits - behind.debits


def test_a_statement_whose_sums_are_beyond_a_message_is_refused_and_its_parts_join(tmp_path: Path) -> None:
    driver = LedgerDriver()
    for at in (1, 2):
        driver.top_up("u", INT64_MAX, at=at)
        driver.debit("u", INT64_MAX, at=at)
    file = File(tmp_path, life_of(driver), USER)
    answer, _ = answer_of(bounded_statement(file.chain(), USER, 0, 2, True, 9, 9))
    assert (answer["credits_nanos"], answer["debits_nanos"], answer["closing_nanos"]) == (INT64_MAX, INT64_MAX, 0)
    with pytest.raises(TooLong, match=r"credits_nanos of this period is more than 2\*\*63-1; shorter periods join"):
        answer_of(bounded_statement(file.chain(), USER, 0, 3, True, 9, 9))


def test_a_statement_far_back_in_a_long_history_reads_little_of_it(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 10**9, at=0)
    driver.set_rate("u", HOUR // 1000, at=1, resource="vm")
    for number in range(5000):
        driver.top_up("u", 1, at=10 + number)
    file = File(tmp_path, life_of(driver), USER)
    statements_run: list[str] = []
    file.store.db.set_trace_callback(statements_run.append)
    answer = file.statement(1000, 1100, limit=3)
    file.store.db.set_trace_callback(None)
    assert (answer["entries_count"], [row["entry_id"] for row in answer["entries"]]) == (100, [993, 994, 995])
    assert (answer["first_entry_id"], answer["last_entry_id"]) == (993, 1092)
    assert [line["resource"] for line in answer["resources"]] == ["vm"]
    assert len(statements_run) < 100


def test_the_past_of_an_account_that_was_closed_and_opened_again(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=10)
    driver.set_credit_limit("u", 7, at=20)
    driver.hold("u", 5, at=30, request_id="h")
    driver.release("u", "r:h", at=40)
    driver.set_rate("u", HOUR, at=50)
    driver.set_rate("u", 0, at=60)
    driver.close("u", at=70)
    driver.top_up("u", 3, at=80)
    file = File(tmp_path, life_of(driver), USER)
    keys = ("state", "balance_nanos", "credit_limit_nanos", "holds_nanos", "available_nanos", "rate_nanos_per_hour")
    then = {at_ns: tuple(file.balance_at(at_ns)[key] for key in keys) for at_ns in (9, 10, 25, 30, 55, 65, 70, 79, 80)}
    assert then == {
        9: ("unopened", 0, 0, 0, 0, 0),
        10: ("active", 100, 0, 0, 100, 0),
        25: ("active", 100, 7, 0, 107, 0),
        30: ("active", 100, 7, 5, 102, 0),
        55: ("active", 95, 7, 0, 102, HOUR),
        65: ("active", 90, 7, 0, 97, 0),
        70: ("closed", 0, 0, 0, 0, 0),
        79: ("closed", 0, 0, 0, 0, 0),
        80: ("active", 3, 0, 0, 3, 0),
    }
    assert file.statement(0, 10)["entries_count"] == 0
    whole_period = file.statement(0, 100)
    assert (
        whole_period["credits_nanos"],
        whole_period["debits_nanos"],
        whole_period["accrued_nanos"],
        whole_period["closing_nanos"],
    ) == (*(103, 90, 10, 3),)


def test_a_period_to_come_goes_up_to_now(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=10)
    driver.set_rate("u", HOUR, at=20)
    file = File(tmp_path, life_of(driver), USER)
    answer, _ = answer_of(statement(file.chain(), USER, 0, 10**6, False, 9, 50))
    assert (answer["to_ns"], answer["up_to_now"], answer["closing_nanos"], answer["resources"]) == (50, True, 70, None)
    ahead, _ = answer_of(statement(file.chain(), USER, 60, 10**6, False, 9, 50))
    assert (ahead["from_ns"], ahead["to_ns"], ahead["opening_nanos"], ahead["closing_nanos"]) == (50, 50, 70, 70)
    past, _ = answer_of(statement(file.chain(), USER, 0, 50, False, 9, 50))
    assert not past["up_to_now"]
    then, _ = answer_of(balance_at(file.chain(), USER, 10**6, 50))
    assert (then["at_ns"], then["balance_nanos"], then["up_to_now"]) == (50, 70, True)
    then, _ = answer_of(balance_at(file.chain(), USER, 50, 50))
    assert (then["at_ns"], then["balance_nanos"], then["up_to_now"]) == (50, 70, False)


def test_rows_that_are_lost_are_bridged_and_said(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1000, at=10)
    driver.set_rate("u", HOUR, at=20, resource="vm")
    driver.debit("u", 5, at=30)
    driver.top_up("u", 7, at=40)
    driver.debit("u", 9, at=50)
    life = life_of(driver)
    file = File(tmp_path, life, USER, life.packed[:2] + life.packed[4:])
    answer, is_whole = answer_of(statement(file.chain(), USER, 0, 60, True, 9, INT64_MAX))
    assert not is_whole
    assert (answer["whole_from_ns"], answer["entries_count"], answer["closing_nanos"]) == (50, 3, 953)
    assert (answer["credits_nanos"], answer["debits_nanos"], answer["accrued_nanos"]) == (1000, 28 + 9, 10)
    columns = ("entry_id", "at_ns", "operation", "balance_before_nanos", "amount_nanos", "balance_after_nanos")
    assert [tuple(row[name] for name in columns) for row in answer["entries"]] == [
        (1, 10, "top_up", 0, 1000, 1000),
        (2, 20, "set_rate", 1000, 0, 1000),
        (3, 50, "missing", 1000, -28, 972),
        (5, 50, "debit", 972, -9, 963),
    ]
    late, is_whole = answer_of(statement(file.chain(), USER, 51, 60, True, 9, INT64_MAX))
    assert (is_whole, late["whole_from_ns"], late["accrued_nanos"]) == (True, None, 9)
    assert [line["resource"] for line in late["resources"]] == [None]


def test_newest_rows_that_are_lost_are_bridged_by_what_the_ledger_knows(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1000, at=10)
    driver.set_rate("u", HOUR, at=20, resource="vm")
    driver.debit("u", 5, at=30)
    life = life_of(driver)
    file = File(tmp_path, life, USER, life.packed[:2])
    answer, is_whole = answer_of(statement(file.chain(), USER, 0, 60, False, 9, INT64_MAX))
    assert not is_whole
    assert (answer["closing_nanos"], answer["whole_from_ns"]) == (955, 30)
    then, is_whole = answer_of(balance_at(file.chain(), USER, 40, INT64_MAX))
    assert (then["balance_nanos"], then["state"], is_whole) == (975, "active", False)


def with_record(record: bytes, older: int, _: bytes) -> tuple[int, bytes]:
    """The link of a row as it was, and another record."""
    return older, record


def as_older_version(store: Store, last_id: int = INT64_MAX) -> None:
    """Makes its rows, up to this entry, what an older version of the file had."""
    for row in rows(store.db):
        if row.entry_id > last_id:
            return
        record = record_of_older_row((*row[2:11], *[None] * 5, b"", 0, 0, 0))
        rewritten(store.db, row.seq, partial(with_record, record))


def test_rows_of_an_older_version_are_summed_and_said(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 1000, at=10)
    driver.set_rate("u", HOUR, at=20, resource="vm")
    driver.debit("u", 5, at=40)
    file = File(tmp_path, life_of(driver), USER)
    as_older_version(file.store)
    answer, is_whole = answer_of(statement(file.chain(), USER, 0, 30, True, 9, INT64_MAX))
    assert (is_whole, answer["accrued_nanos"], answer["closing_nanos"], answer["whole_from_ns"]) == (True, 10, 990, 30)
    now, _ = answer_of(statement(file.chain(), USER, 41, 61, True, 9, INT64_MAX))
    assert (now["opening_nanos"], now["accrued_nanos"], now["whole_from_ns"]) == (974, 20, None)
    assert file.balance_at(30)["state"] is None
    assert file.balance_at(50)["available_nanos"] == 965


def test_lines_from_before_an_upgrade_are_those_that_the_ledger_knows(tmp_path: Path) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 10**6, at=10)
    for number, name in enumerate(("kept", "ended", "changed", "late")):
        driver.set_rate("u", (number + 1) * HOUR, at=20, resource=name)
    driver.debit("u", 5, at=40)
    driver.set_rate("u", 0, at=50, resource="ended")
    driver.set_rate("u", 9 * HOUR, at=60, resource="changed")
    driver.debit("u", 5, at=70)
    file = File(tmp_path, life_of(driver), USER)
    as_older_version(file.store, last_id=4)
    newest = standing_of(file.life)._replace(lines=[(b"kept", HOUR), (b"changed", 9 * HOUR), (b"late", 4 * HOUR)])

    def resources(from_ns: int, to_ns: int) -> dict[str | None, tuple[int, int]]:
        steps = statement(file.chain(newest), USER, from_ns, to_ns, True, 9, INT64_MAX)
        answer, _ = answer_of(steps)
        assert sum(line["accrued_nanos"] for line in answer["resources"]) == answer["accrued_nanos"]
        return {
            line["resource"]: (line["accrued_nanos"], line["line_rate_nanos_per_hour"] // HOUR)
            for line in answer["resources"]
        }

    # what ended or changed since then had a rate that nobody knows: both together
    assert resources(41, 45) == {None: (20, 5), "kept": (4, 1), "late": (16, 4)}
    assert resources(61, 65) == {"kept": (4, 1), "changed": (36, 9), "late": (16, 4)}
    assert resources(0, 80)["kept"] == (60, 1), "from the first entry on that says a rate"


def test_a_period_of_too_many_entries_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = File(tmp_path, life_of_one(), USER)

    class Long(Chain):
        def newest_id_before(self, at_ns: int) -> int:
            return 2_000_000 if at_ns else 0

    chain = Long(file.reader, 1, USER, standing_of(file.life))
    with pytest.raises(TooLong, match="2000000 entries; at most 1000000 in one answer: shorter periods join"):
        answer_of(statement(chain, USER, 0, 9, False, 9, INT64_MAX))


def life_of_one() -> AccountLife:
    driver = LedgerDriver()
    driver.top_up("u", 1, at=1)
    return life_of(driver)
