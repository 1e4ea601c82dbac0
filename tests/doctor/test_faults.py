"""Entries that are wrong behind right checksums: each fault is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billing.doctor.report import Report
from billing.ledger import commands as ops
from billing.ledger.entry import CROSSED, EXHAUSTED, OPENED, REFUSED, RESTORED, Entry
from tests.doctor.builder import COIN, HOUR_NS, START_NS, DataDirectoryBuilder
from tests.doctor.forge import forge_entries
from tests.doctor.story import USER, findings_of, scene


def changed(data_dir: Path, which: Callable[[Entry], bool], **fields: int) -> Report:
    """The report on the scene with these fields of exactly one entry moved by so much."""
    builder = scene(data_dir)

    def change(entry: Entry) -> Entry | None:
        if not which(entry) or entry.user_id != USER:
            return None
        return entry._replace(**{name: getattr(entry, name) + by for name, by in fields.items()})

    assert forge_entries(builder, 1, change) == 1
    return builder.examine()


def is_debit(entry: Entry) -> bool:
    return entry.op == ops.DEBIT and entry.request_id == b"second"


def is_exhaustion(entry: Entry) -> bool:
    return entry.op == ops.EXHAUST


def is_restoring(entry: Entry) -> bool:
    return entry.op == ops.TOP_UP and entry.flags & RESTORED != 0


def test_the_scene_is_right_and_full(data_dir: Path) -> None:
    builder = scene(data_dir)
    entries: list[Entry] = []
    forge_entries(builder, 1, lambda entry: entries.append(entry))
    report = builder.examine()
    assert report.findings == []
    assert {entry.op for entry in entries if entry.user_id == USER} == {
        *(ops.TOP_UP, ops.SET_RATE, ops.DEBIT, ops.HOLD, ops.ADJUST, ops.SET_THRESHOLDS),
        *(ops.EXHAUST, ops.HOLD_EXPIRED, ops.THRESHOLD),
        *(ops.CUTOFF_STARTED, ops.CUTOFF_DELIVERED, ops.RESTORE_STARTED, ops.RESTORE_DELIVERED),
    }
    assert report.counts["snapshots"] == {"parts": 8, "parts compared": 8}


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("entry_id", "entry_id"),
        ("amount_nanos", "amount"),
        ("accrued_nanos", "accrued"),
        ("accrued_frac", "accrued"),
        ("balance_nanos", "balance"),
        ("balance_frac", "balance"),
        ("rate", "rate"),
        ("credit_limit_nanos", "credit limit"),
        ("holds_nanos", "holds"),
        ("exhausts_at_ns", "exhausts_at_ns"),
        ("exhaustion_seq", "exhaustion_seq"),
        ("overrun_nanos", "overrun"),
        ("refusal", "refusal"),
    ],
)
def test_each_number_of_an_entry_is_worked_out_again(data_dir: Path, field: str, names: str, by: int) -> None:
    which = is_restoring if field in ("refusal", "overrun_nanos", "accrued_nanos", "accrued_frac") else is_debit
    only_up = ("refusal", "accrued_nanos", "accrued_frac", "balance_frac")  # they are zero
    report = changed(data_dir, which, **{field: 1 if field in only_up else by})
    findings = findings_of(report, "accounts")
    assert findings[0].account == "7"
    assert findings[0].position > 0
    assert findings[0].file.endswith("/shard-1")
    assert f" says {names} " in findings[0].text or f"; {names} " in findings[0].text


@pytest.mark.parametrize("flag", [EXHAUSTED, CROSSED, RESTORED, OPENED])
@pytest.mark.parametrize("which", [is_debit, is_exhaustion, is_restoring])
def test_each_flag_of_an_entry_is_worked_out_again(data_dir: Path, flag: int, which: Callable[..., Any]) -> None:
    builder = scene(data_dir)

    def change(entry: Entry) -> Entry | None:
        return entry._replace(flags=entry.flags ^ flag) if which(entry) and entry.user_id == USER else None

    assert forge_entries(builder, 1, change) == 1
    assert " flags " in findings_of(builder.examine(), "accounts")[0].text


def test_a_changed_amount_is_one_finding_not_one_for_each_entry_after_it(data_dir: Path) -> None:
    report = changed(data_dir, is_debit, amount_nanos=-1)
    (wrong,) = findings_of(report, "accounts")
    assert "says amount -1000000001 nanos, worked out -1000000000 nanos" in wrong.text
    assert "its entries sum up to" in findings_of(report, "conservation")[0].text
    assert report.summary().endswith(f": {report.fault_count} faults")


def test_a_changed_command_does_not_give_its_outcome(data_dir: Path) -> None:
    report = changed(data_dir, is_debit, a=1)
    assert "amount -1000000000 nanos, worked out -1000000001 nanos" in findings_of(report, "accounts")[0].text


def test_a_command_that_no_door_lets_in(data_dir: Path) -> None:
    report = changed(data_dir, is_debit, a=-2 * COIN)
    assert f"a is {-COIN}" in findings_of(report, "accounts")[0].text


def test_a_changed_instant_changes_what_accrued(data_dir: Path) -> None:
    assert "overrun" in findings_of(changed(data_dir, is_restoring, at_ns=1), "accounts")[0].text


def test_instants_that_go_back(data_dir: Path) -> None:
    report = changed(data_dir, is_restoring, at_ns=-4 * HOUR_NS)
    assert "an entry at" in findings_of(report, "accounts")[0].text


def test_an_entry_that_was_left_out(data_dir: Path) -> None:
    builder = scene(data_dir)
    assert forge_entries(builder, 1, lambda entry: [] if entry.op == ops.ADJUST else None) == 1
    (finding,) = findings_of(builder.examine(), "accounts")
    assert "entry_id 13, worked out 12" in finding.text


def test_an_entry_that_is_there_twice(data_dir: Path) -> None:
    builder = scene(data_dir)
    assert forge_entries(builder, 1, lambda entry: [entry, entry] if is_debit(entry) else None) == 1
    report = builder.examine()
    assert "the request_id 'second' stands for two entries" in findings_of(report, "requests")[0].text
    assert "entry_id 4, worked out 5" in findings_of(report, "accounts")[0].text


def test_a_request_id_on_two_entries(data_dir: Path) -> None:
    builder = scene(data_dir)
    forge_entries(builder, 1, lambda entry: entry._replace(request_id=b"first") if is_debit(entry) else None)
    (finding,) = findings_of(builder.examine(), "requests")[:1]
    assert finding.account == "7"
    assert finding.text == f"the request_id 'first' stands for two entries, at {START_NS} and at {START_NS}"


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (ops.EXHAUST, "no entry of the exhaustion that was due at"),
        (ops.HOLD_EXPIRED, "no entry of the expiry of a hold that was due at"),
        (ops.THRESHOLD, "no entry of the crossed threshold that was due at"),
    ],
)
def test_what_time_causes_must_have_its_entry(data_dir: Path, op: int, text: str) -> None:
    builder = scene(data_dir)
    assert forge_entries(builder, 1, lambda entry: [] if entry.op == op else None) > 0
    assert findings_of(builder.examine(), "accounts")[0].text.startswith(text)


def test_each_of_the_holds_that_expire_together_must_have_its_entry(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(USER, 10 * COIN)
    for name in (b"a", b"b", b"c"):
        builder.do((ops.HOLD, USER, COIN, HOUR_NS, 0, b"", name, b"", b"", b""))
    builder.thresholds(USER, (ops.BY_AMOUNT, 5 * COIN))
    builder.wait(HOUR_NS)
    builder.pay(USER, COIN)
    builder.close()
    assert forge_entries(builder, 1, lambda entry: [] if entry.key == b"r:b" else None) == 1
    assert findings_of(builder.examine(), "accounts")[0].text == "no entry of the expiry of a hold 'r:b'"


def test_a_threshold_that_a_command_crossed_must_have_its_entry(data_dir: Path) -> None:
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(USER, 10 * COIN)
    builder.thresholds(USER, (ops.BY_AMOUNT, 5 * COIN))
    builder.debit(USER, 6 * COIN)
    builder.pay(USER, COIN)
    builder.close()
    assert forge_entries(builder, 1, lambda entry: [] if entry.op == ops.THRESHOLD else None) == 1
    findings = findings_of(builder.examine(), "accounts")
    assert findings[0].text == f"no entry of the crossed threshold (0, {5 * COIN})"


def test_an_exhaustion_that_never_came(data_dir: Path) -> None:
    """Nothing of this account follows; but its shard went on for hours."""
    builder = DataDirectoryBuilder(data_dir, shards=1)
    builder.pay(USER, COIN)
    builder.rate(USER, COIN)
    builder.wait(HOUR_NS)
    for _ in range(3):
        builder.wait(HOUR_NS)
        builder.pay(b"other", COIN)
    builder.close()
    without = forge_entries(
        builder,
        1,
        lambda entry: [] if entry.op == ops.EXHAUST else None,
        lambda position: START_NS + position * HOUR_NS,
    )
    assert without == 1
    (finding,) = findings_of(builder.examine(), "accounts")
    assert finding.account == "7"
    assert finding.text == f"nothing came of what was due at {START_NS + HOUR_NS}, though the shard went on for 21600 s"


def test_an_exhaustion_that_time_did_not_cause(data_dir: Path) -> None:
    builder = scene(data_dir)

    def change(entry: Entry) -> list[Entry] | None:
        early = entry._replace(
            op=ops.EXHAUST, a=0, b=0, c=0, key=b"", request_id=b"", message=b"", entry_id=entry.entry_id + 1
        )
        return [entry, early] if is_debit(entry) else None

    forge_entries(builder, 1, change)
    assert "an entry of the exhaustion at" in findings_of(builder.examine(), "accounts")[0].text


def test_a_refusal_that_nothing_justifies(data_dir: Path) -> None:
    builder = scene(data_dir)

    def change(entry: Entry) -> Entry | None:
        return entry._replace(flags=entry.flags | REFUSED, refusal=201) if entry.op == ops.ADJUST else None

    assert forge_entries(builder, 1, change) == 1
    assert "refusal 201, worked out 0; flags " in findings_of(builder.examine(), "accounts")[0].text


def test_a_delivery_that_nothing_justifies(data_dir: Path) -> None:
    builder = scene(data_dir)
    forge_entries(builder, 1, lambda entry: [] if entry.op == ops.CUTOFF_STARTED else None)
    report = builder.examine()
    assert findings_of(report, "cutoffs")[0].text == "an outcome of cutoff 1, of which no attempt began"


def test_an_account_in_the_wrong_bucket(data_dir: Path) -> None:
    builder = scene(data_dir)
    forge_entries(builder, 1, lambda entry: entry._replace(user_id=b"8") if entry.user_id == USER else None)
    assert "for a user who belongs to bucket" in findings_of(builder.examine(), "accounts")[0].text
