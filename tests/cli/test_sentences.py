"""What a person is told of an account, in sentences."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest

from billing.cli.sentences import called, closing_told, explained, lease_told
from billing.cli.values import Look

LOOK = Look(UTC, exact=False)
AT_NS = 1_767_225_600_000_000_000
ACCOUNT = {
    "user_id": "alice",
    "state": "active",
    "available_nanos": 12_373_720_000_000,
    "rate_nanos_per_hour": 410_000_000,
    "rates": {"vm-web-1": 410_000_000},
    "exhausts_at_ns": AT_NS,
    "cutoff": None,
    "owes": None,
    "outbox": None,
    "holds_nanos": 0,
    "holds": [],
    "credit_limit_nanos": 0,
}
CUTOFF = {"exhausted_at_ns": AT_NS, "status": "delivered", "attempts": 1, "last_error": None}


def sentences_of(**changes: object) -> str:
    return " ".join(explained({**ACCOUNT, **changes}, LOOK))


def test_who_has_money() -> None:
    assert sentences_of() == (
        "alice has 12,373.72 coins available and spends 0.41 per hour on vm-web-1; the money lasts until "
        "2026-01-01 00:00:00 UTC. No call is owed to the cutoff URL."
    )
    assert sentences_of(
        shard_id=2, bucket_id=354, timer={"state": "armed in a slot", "level": 2, "slot_width_ns": 1}
    ).endswith("No call is owed to the cutoff URL. Shard 2 has it, in bucket 354; its timer is set.")
    assert sentences_of(shard_id=2, bucket_id=354, timer={"state": "not armed"}).endswith(
        "bucket 354; no timer is set for it."
    )
    assert "the money does not run out before the year 2262." in sentences_of(exhausts_at_ns=None)
    assert "spends nothing, so the money does not run out." in sentences_of(rate_nanos_per_hour=0, exhausts_at_ns=None)


def test_what_is_held_and_lent() -> None:
    holds = [{"hold_id": "e:1", "amount_nanos": 10**11, "expires_at_ns": AT_NS}]
    assert "100 coins are held in one hold until 2026-01-01 00:00:00 UTC" in sentences_of(
        holds_nanos=10**11, holds=holds
    )
    two = [*holds, {"hold_id": "e:2", "amount_nanos": 1, "expires_at_ns": None}]
    assert "in 2 holds, the first of them until 2026-01-01" in sentences_of(holds_nanos=10**11, holds=two)
    assert "A credit limit of 5 coins is part of that." in sentences_of(credit_limit_nanos=5 * 10**9)


def test_who_has_none() -> None:
    gone = sentences_of(
        state="exhausted", exhausts_at_ns=None, available_nanos=0, cutoff=CUTOFF, overrun_nanos=3 * 10**9
    )
    assert gone.startswith(
        "alice has no money left: it ran out at 2026-01-01 00:00:00 UTC, cut off at the first attempt. Its rate of "
        "0.41 per hour is still reported, and is counted as overrun until somebody sets it to 0 or adds money: "
        "3 coins since the account was opened."
    )
    assert sentences_of(state="exhausted", exhausts_at_ns=None, rate_nanos_per_hour=0).startswith(
        "alice has no money left. "
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "cut off at the first attempt"),
        ({"status": "effective", "attempts": 3}, "cut off after 3 attempts"),
        ({"delivered_at_ns": AT_NS + 512_000}, "cut off 0.512 ms later"),
        ({"delivered_at_ns": AT_NS + 148 * 10**9}, "cut off 00:02:28 later"),
        ({"status": "pending", "attempts": 0}, "not cut off yet"),
        (
            {"status": "pending", "attempts": 2, "last_error": "refused\x1b[0m"},
            "not cut off yet: 2 attempts, none with a 2xx so far; the last error: refused\N{REPLACEMENT CHARACTER}[0m",
        ),
        ({"status": "pending", "attempts": 1}, "not cut off yet: 1 attempt, none with a 2xx so far"),
        ({"status": "superseded"}, "not cut off, since money came before the call"),
    ],
)
def test_what_became_of_the_call(changes: dict[str, Any], text: str) -> None:
    assert called({**CUTOFF, **changes}) == text


def test_who_has_money_again_was_cut_off_and_restored() -> None:
    back = {**CUTOFF, "delivered_at_ns": AT_NS + 512_000, "restored_at_ns": AT_NS + 5 * 10**9}
    assert (
        "It last ran out at 2026-01-01 00:00:00 UTC, cut off 0.512 ms later; its restore had its 2xx at 2026-01-01 "
        "00:00:05 UTC."
    ) in sentences_of(cutoff=back)
    assert "cut off 0.512 ms later. No call" in sentences_of(cutoff={**back, "restored_at_ns": None})


def test_an_owed_call_waits_for_what_its_worker_says() -> None:
    owes, why = {"call": "cutoff", "seq": 2, "attempts": 1}, "http://h:1 has taken no calls for 6 s (refused)."
    assert sentences_of(owes=owes, why=why).endswith(f"A cutoff call (seq 2) is owed, after 1 attempt. {why}")
    assert sentences_of(owes=owes, why=None).endswith("is owed, after 1 attempt; its worker has not taken it up yet.")


def test_which_class_it_is_in_and_when_its_call_comes() -> None:
    assert "cutoff class" not in sentences_of(**{"class": "default", "cutoff_at_ns": AT_NS})
    assert "It is in the cutoff class gold." in sentences_of(**{"class": "gold", "cutoff_at_ns": AT_NS})
    later = {"class": "gold", "cutoff_at_ns": AT_NS + 3600 * 10**9}
    assert "gold: the cutoff URL is called at 2026-01-01 01:00:00 UTC, after its grace." in sentences_of(**later)
    in_grace = sentences_of(**later, state="exhausted", exhausts_at_ns=None, cutoff={**CUTOFF, "status": "in_grace"})
    assert "gold, whose grace is running: the cutoff URL is called at 2026-01-01 01:00:00 UTC." in in_grace
    assert "not cut off yet: its grace is running" in in_grace


def test_what_a_closing_pays_out_and_what_it_forfeits() -> None:
    assert closing_told("u", {"paid_out_nanos": 1_500 * 10**9, "forfeited_nanos": 0}) == (
        "u has 1,500 coins, which are paid out."
    )
    assert closing_told("u\33", {"paid_out_nanos": 0, "forfeited_nanos": 5 * 10**8}) == (
        "u\N{REPLACEMENT CHARACTER} has 0 coins, which are paid out, and 0.5 that would expire are forfeited."
    )


def test_when_a_rate_with_a_time_to_live_ends() -> None:
    minutes = 90 * 60 * 10**9
    assert lease_told({}, minutes) == "This rate goes to 0 after 01:30:00, unless it is reported again."
    assert lease_told({}, None) == ""
    assert lease_told({"replayed": True}, minutes) == "", "it counts from the first"
