"""The second opinion and the forecast: they agree with the wheel, and what does not is found and healed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from billing.expirationd.coming import SECOND_NS, forecast, merged
from billing.expirationd.wheel_scrubber import ROUND_NS, WheelScrubber
from billing.ledger import commands as ops
from billing.ledger.extra import NEVER_NS
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine

HOUR_NS = 3600 * SECOND_NS
BUCKETS = (1, 2, 3)


@pytest.fixture
def machine() -> BillingMachine:
    """Three buckets with a few thousand accounts of all sorts, at instant 1000."""
    rng = random.Random(11)
    billing = BillingMachine(Rules(accrue=False, request_ids_per_bucket=10, restore=False))
    for bucket_id in BUCKETS:
        billing.create(bucket_id)
    billing.start(0)
    for bucket_id in BUCKETS:
        billing.arm(bucket_id)
    for number in range(3000):
        user, bucket_id = b"u%d" % number, rng.choice(BUCKETS)
        command(billing, bucket_id, ops.TOP_UP, user, rng.randrange(1, 5000))
        if rng.random() < 0.8:
            command(billing, bucket_id, ops.SET_RATE, user, rng.randrange(1, 10_000), -1, -1)
        if rng.random() < 0.2:
            thresholds = ops.pack_thresholds([(ops.BY_AMOUNT, rng.randrange(4000))])
            command(billing, bucket_id, ops.SET_THRESHOLDS, user, 1, key=thresholds)
        if rng.random() < 0.2:
            command(billing, bucket_id, ops.HOLD, user, rng.randrange(1, 500), rng.randrange(1, HOUR_NS))
        if rng.random() < 0.1:
            command(billing, bucket_id, ops.CHANGE_RATE, user, 77, 0, 0, key=b"disk")
    return billing


def command(machine: BillingMachine, bucket_id: int, op: int, user: bytes, *rest: int, key: Any = b"") -> None:
    a, b, c = (*rest, 0, 0, 0)[:3]
    machine.apply(bucket_id, (op, user, a, b, c, key, b"", b"", b"", b""), 1000)


def whole_round(opinion: WheelScrubber, machine: BillingMachine, now_ns: int) -> int:
    """Mismatches of one round, all of it at one instant."""
    rounds, differences = opinion.rounds, 0
    while opinion.rounds == rounds:
        differences += opinion.step(now_ns, machine.next_due_ns())
    return differences


def opinion_of(machine: BillingMachine) -> WheelScrubber:
    return WheelScrubber(machine.ledger.books, machine.ledger.tick, machine.ledger.call_at_ns)


def pass_time(machine: BillingMachine, now_ns: int) -> None:
    while machine.due(now_ns, 100):
        pass


def test_it_agrees_with_the_wheel_whatever_the_time(machine: BillingMachine) -> None:
    opinion = opinion_of(machine)
    for now_ns in range(1000, 3 * HOUR_NS, HOUR_NS // 7):
        pass_time(machine, now_ns)
        assert whole_round(opinion, machine, now_ns) == 0
    assert opinion.checked >= 3000 * opinion.rounds
    assert machine.fired > 500


def test_what_the_wheel_is_about_to_fire_is_no_mismatch(machine: BillingMachine) -> None:
    assert whole_round(opinion_of(machine), machine, HOUR_NS) == 0, "the wheel knows that it is behind"


def test_a_filing_that_lies_too_late_is_found_and_healed(machine: BillingMachine) -> None:
    opinion = opinion_of(machine)
    book = machine.ledger.books[2]
    planted = [slot for slot, armed_ns in enumerate(book.armed_ns) if armed_ns != NEVER_NS][5:8]
    for slot in planted:
        book.armed_ns[slot] = NEVER_NS
    assert whole_round(opinion, machine, 2000) == 3
    assert opinion.mismatches == 3
    assert whole_round(opinion, machine, 2000 + ROUND_NS) == 0
    assert all(book.armed_ns[slot] != NEVER_NS for slot in planted)


def test_an_account_that_the_wheel_lost_is_found_once_it_is_due_and_still_fires_at_its_true_instant(
    machine: BillingMachine,
) -> None:
    book = machine.ledger.books[1]
    slot = next(slot for slot in range(len(book.users)) if book.armed_ns[slot] != NEVER_NS and slot not in book.extras)
    user = book.users[slot]
    due_ns = machine.ledger.view(1, user, 1000)["exhausts_at_ns"]
    assert isinstance(due_ns, int)
    assert machine._wheel is not None
    fired = machine._wheel.advance  # the wheel loses it: it comes out, and nobody is told

    def losing(now_ns: int, due_of: Any, moved: Any, limit: int) -> list[int]:
        return [ref for ref in fired(now_ns, due_of, moved, limit) if ref != 1 << 32 | slot]

    machine._wheel.__class__ = type(
        "Losing", (type(machine._wheel),), {"__slots__": (), "advance": staticmethod(losing)}
    )
    pass_time(machine, due_ns + 5)
    machine.records.clear()
    opinion = opinion_of(machine)
    assert whole_round(opinion, machine, due_ns + 5) == 1
    view = machine.ledger.view(1, user, due_ns + 5)
    assert view["state"] == "exhausted"
    assert view["cutoff"]["exhausted_at_ns"] == due_ns
    assert whole_round(opinion, machine, due_ns + 5 + ROUND_NS) == 0


def test_a_round_does_not_begin_before_its_time_and_survives_buckets_that_come_and_go(machine: BillingMachine) -> None:
    opinion = opinion_of(machine)
    assert whole_round(opinion, machine, 2000) == 0
    checked = opinion.checked
    assert opinion.step(2001, machine.next_due_ns()) == 0
    assert opinion.checked == checked
    opinion.step(2000 + ROUND_NS, machine.next_due_ns())
    machine.disarm(2)
    machine.drop(2)
    machine.create(4)
    machine.arm(4)
    while opinion.rounds == 1:
        assert opinion.step(2000 + ROUND_NS, machine.next_due_ns()) == 0
    opinion.begin_again()
    assert whole_round(opinion, machine, 2000 + 3 * ROUND_NS) == 0


def expected_seconds(machine: BillingMachine, until_ns: int) -> dict[int, int]:
    counts: dict[int, int] = {}
    for bucket_id, book in machine.ledger.books.items():
        for user in book.slots:
            instant = machine.ledger.view(bucket_id, user, 1000)["exhausts_at_ns"]
            if isinstance(instant, int) and instant < until_ns:
                counts[instant // SECOND_NS] = counts.get(instant // SECOND_NS, 0) + 1
    return counts


def first_call(machine: BillingMachine) -> tuple[int, bytes]:
    views = [
        (machine.ledger.view(bucket_id, user, 1000)["exhausts_at_ns"], user)
        for bucket_id, book in machine.ledger.books.items()
        for user in book.slots
    ]
    return min((instant, user) for instant, user in views if isinstance(instant, int))


def test_the_forecast_counts_every_account_in_its_second_and_so_does_the_second_opinion(
    machine: BillingMachine,
) -> None:
    slices = forecast(machine.ledger.books, machine.ledger.call_at_ns, 1000, HOUR_NS)
    yields = 0
    try:
        while True:
            next(slices)
            yields += 1
    except StopIteration as end:
        part = end.value
    assert yields >= 3
    wanted = expected_seconds(machine, HOUR_NS)
    assert dict(part["seconds"]) == wanted
    assert part["next"] == first_call(machine)
    assert sum(wanted.values()) > 500
    opinion = opinion_of(machine)
    whole_round(opinion, machine, 1000)
    assert {second: count for second, count in opinion.coming(1000) if second < 3600} == {
        second: count for second, count in wanted.items() if second >= 1
    }


def test_parts_of_several_shards_are_one_answer() -> None:
    parts = [
        {
            "from_ns": 10 * SECOND_NS + 5,
            "seconds": [(10, 3), (75, 1)],
            "next": (10_700_000_000, b"u"),
            "takes_per_second": 100,
        },
        {
            "from_ns": 10 * SECOND_NS + 7,
            "seconds": [(11, 1), (75, 4), (500, 2)],
            "next": [10_600_000_000, b"late"],
            "takes_per_second": 40,
        },
        {"from_ns": 10 * SECOND_NS + 8, "seconds": [], "next": None, "takes_per_second": -1},
    ]
    assert merged(parts, HOUR_NS, 60 * SECOND_NS) == {
        "from_ns": 10 * SECOND_NS,
        "within_ns": HOUR_NS,
        "step_ns": 60 * SECOND_NS,
        "cutoffs": 11,
        "next_at_ns": 10_600_000_000,
        "next_user_id": "late",
        "peak_at_ns": 75 * SECOND_NS,
        "peak_per_second": 5,
        "endpoint_takes_per_second": 140,
        "steps": [
            {"at_ns": 10 * SECOND_NS, "cutoffs": 4, "most_in_a_second": 3},
            {"at_ns": 70 * SECOND_NS, "cutoffs": 5, "most_in_a_second": 5},
            {"at_ns": 490 * SECOND_NS, "cutoffs": 2, "most_in_a_second": 2},
        ],
    }
    parts[1]["takes_per_second"] = -1  # the sum over some shards would be less than the endpoint takes
    assert merged(parts, HOUR_NS, 60 * SECOND_NS)["endpoint_takes_per_second"] is None
    empty = merged([{"from_ns": 5, "seconds": [], "next": None, "takes_per_second": -1}], HOUR_NS, SECOND_NS)
    assert (empty["next_at_ns"], empty["next_user_id"]) == (None, None)
    assert (empty["cutoffs"], empty["peak_at_ns"], empty["endpoint_takes_per_second"], empty["steps"]) == (
        0,
        None,
        None,
        [],
    )
