"""Entries, ownership and snapshots that are wrong behind right checksums: each fault is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from billing.doctor.report import Finding, Report
from billing.ledger import commands as ops
from billing.ledger.book import ROW
from billing.ledger.entry import CROSSED, EXHAUSTED, OPENED, REFUSED, RESTORED, Entry
from billing.ledger.ledger import Rules
from billing.machine import BillingMachine
from shards.batch import LEAVE, OWN
from tests.doctor.forge import Record, forge, forge_entries
from tests.doctor.yard import COIN, HOUR_NS, SECOND_NS, START_NS, Yard

USER = b"7"


def scene(data_dir: Path) -> Yard:
    """One shard, one user with a story, in whose course nearly everything happens; a snapshot before its end."""
    yard = Yard(data_dir, shards=1, trims=False)
    yard.pay(USER, 10 * COIN, b"first")
    yard.thresholds(USER, (ops.BY_AMOUNT, 5 * COIN), (ops.BY_RUNWAY, HOUR_NS))
    yard.rate(USER, 5 * COIN + 7)
    yard.debit(USER, COIN, request_id=b"second")
    yard.wait(3 * HOUR_NS)  # both thresholds, and the exhaustion
    yard.report(ops.CUTOFF_STARTED, USER, 1)
    yard.report(ops.CUTOFF_DELIVERED, USER, 1)
    yard.pay(USER, 40 * COIN)
    yard.report(ops.RESTORE_STARTED, USER, 1)
    yard.report(ops.RESTORE_DELIVERED, USER, 1)
    yard.do((ops.HOLD, USER, 3 * COIN, SECOND_NS, 0, b"", b"hold", b""))
    yard.wait(2 * SECOND_NS)
    with pytest.raises(Exception, match="INSUFFICIENT_FUNDS"):
        yard.debit(USER, 1000 * COIN)
    yard.workers[1].snapshot()
    yard.rate(USER, 0)
    yard.do((ops.ADJUST, USER, -COIN, 0, 0, b"", b"", b"a mistake"))
    yard.debit(USER, 100 * COIN, ops.PARTIAL)
    return yard.close()


def told(report: Report, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]


def changed(data_dir: Path, which: Callable[[Entry], bool], **fields: int) -> Report:
    """The report on the scene with these fields of exactly one entry moved by so much."""
    yard = scene(data_dir)

    def change(entry: Entry) -> Entry | None:
        if not which(entry) or entry.user_id != USER:
            return None
        return entry._replace(**{name: getattr(entry, name) + by for name, by in fields.items()})

    assert forge_entries(yard, 1, change) == 1
    return yard.examine()


def is_debit(entry: Entry) -> bool:
    return entry.op == ops.DEBIT and entry.request_id == b"second"


def is_exhaustion(entry: Entry) -> bool:
    return entry.op == ops.EXHAUST


def is_restoring(entry: Entry) -> bool:
    return entry.op == ops.TOP_UP and entry.flags & RESTORED != 0


def test_the_scene_is_right_and_full(data_dir):
    yard = scene(data_dir)
    seen: list[Entry] = []
    forge_entries(yard, 1, lambda entry: seen.append(entry))
    report = yard.examine()
    assert report.findings == []
    assert {entry.op for entry in seen if entry.user_id == USER} == {
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
def test_each_number_of_an_entry_is_worked_out_again(data_dir, field, names, by):
    which = is_restoring if field in ("refusal", "overrun_nanos", "accrued_nanos", "accrued_frac") else is_debit
    only_up = ("refusal", "accrued_nanos", "accrued_frac", "balance_frac")  # they are zero
    report = changed(data_dir, which, **{field: 1 if field in only_up else by})
    found = told(report, "accounts")
    assert found[0].account == "7"
    assert found[0].position > 0
    assert found[0].file.endswith("/shard-1")
    assert f" says {names} " in found[0].text or f"; {names} " in found[0].text


@pytest.mark.parametrize("flag", [EXHAUSTED, CROSSED, RESTORED, OPENED])
@pytest.mark.parametrize("which", [is_debit, is_exhaustion, is_restoring])
def test_each_flag_of_an_entry_is_worked_out_again(data_dir, flag, which):
    yard = scene(data_dir)

    def change(entry: Entry) -> Entry | None:
        return entry._replace(flags=entry.flags ^ flag) if which(entry) and entry.user_id == USER else None

    assert forge_entries(yard, 1, change) == 1
    assert " flags " in told(yard.examine(), "accounts")[0].text


def test_a_changed_amount_is_one_finding_not_one_for_each_entry_after_it(data_dir):
    report = changed(data_dir, is_debit, amount_nanos=-1)
    (wrong,) = told(report, "accounts")
    assert "says amount -1000000001 nanos, worked out -1000000000 nanos" in wrong.text
    assert "its entries sum up to" in told(report, "conservation")[0].text
    assert report.summary().endswith(f": {report.fault_count} faults")


def test_a_changed_command_does_not_give_its_outcome(data_dir):
    report = changed(data_dir, is_debit, a=1)
    assert "amount -1000000000 nanos, worked out -1000000001 nanos" in told(report, "accounts")[0].text


def test_a_command_that_no_door_lets_in(data_dir):
    report = changed(data_dir, is_debit, a=-2 * COIN)
    assert f"a is {-COIN}" in told(report, "accounts")[0].text


def test_a_changed_instant_changes_what_accrued(data_dir):
    assert "overrun" in told(changed(data_dir, is_restoring, at_ns=1), "accounts")[0].text


def test_instants_that_go_back(data_dir):
    report = changed(data_dir, is_restoring, at_ns=-4 * HOUR_NS)
    assert "an entry at" in told(report, "accounts")[0].text


def test_an_entry_that_was_left_out(data_dir):
    yard = scene(data_dir)
    assert forge_entries(yard, 1, lambda entry: [] if entry.op == ops.ADJUST else None) == 1
    (found,) = told(yard.examine(), "accounts")
    assert "entry_id 13, worked out 12" in found.text


def test_an_entry_that_is_there_twice(data_dir):
    yard = scene(data_dir)
    assert forge_entries(yard, 1, lambda entry: [entry, entry] if is_debit(entry) else None) == 1
    report = yard.examine()
    assert "the request_id 'second' stands for two entries" in told(report, "requests")[0].text
    assert "entry_id 4, worked out 5" in told(report, "accounts")[0].text


def test_a_request_id_on_two_entries(data_dir):
    yard = scene(data_dir)
    forge_entries(yard, 1, lambda entry: entry._replace(request_id=b"first") if is_debit(entry) else None)
    (found,) = told(yard.examine(), "requests")[:1]
    assert found.account == "7"
    assert found.text == f"the request_id 'first' stands for two entries, at {START_NS} and at {START_NS}"


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (ops.EXHAUST, "no entry of the exhaustion that was due at"),
        (ops.HOLD_EXPIRED, "no entry of the expiry of a hold that was due at"),
        (ops.THRESHOLD, "no entry of the crossed threshold that was due at"),
    ],
)
def test_what_time_causes_must_have_its_entry(data_dir, op, text):
    yard = scene(data_dir)
    assert forge_entries(yard, 1, lambda entry: [] if entry.op == op else None) > 0
    assert told(yard.examine(), "accounts")[0].text.startswith(text)


def test_a_threshold_that_a_command_crossed_must_have_its_entry(data_dir):
    yard = Yard(data_dir, shards=1)
    yard.pay(USER, 10 * COIN)
    yard.thresholds(USER, (ops.BY_AMOUNT, 5 * COIN))
    yard.debit(USER, 6 * COIN)
    yard.pay(USER, COIN)
    yard.close()
    assert forge_entries(yard, 1, lambda entry: [] if entry.op == ops.THRESHOLD else None) == 1
    found = told(yard.examine(), "accounts")
    assert found[0].text == f"no entry of the crossed threshold (0, {5 * COIN})"


def test_an_exhaustion_that_never_came(data_dir):
    """Nothing of this account follows; but its shard went on for hours."""
    yard = Yard(data_dir, shards=1)
    yard.pay(USER, COIN)
    yard.rate(USER, COIN)
    yard.wait(HOUR_NS)
    for _ in range(3):
        yard.wait(HOUR_NS)
        yard.pay(b"other", COIN)
    yard.close()
    without = forge_entries(
        yard, 1, lambda entry: [] if entry.op == ops.EXHAUST else None, lambda position: START_NS + position * HOUR_NS
    )
    assert without == 1
    (found,) = told(yard.examine(), "accounts")
    assert found.account == "7"
    assert found.text == f"nothing came of what was due at {START_NS + HOUR_NS}, though the shard went on for 21600 s"


def test_an_exhaustion_that_time_did_not_cause(data_dir):
    yard = scene(data_dir)

    def change(entry: Entry) -> list[Entry] | None:
        early = entry._replace(
            op=ops.EXHAUST, a=0, b=0, c=0, key=b"", request_id=b"", message=b"", entry_id=entry.entry_id + 1
        )
        return [entry, early] if is_debit(entry) else None

    forge_entries(yard, 1, change)
    assert "an entry of the exhaustion at" in told(yard.examine(), "accounts")[0].text


def test_a_refusal_that_nothing_justifies(data_dir):
    yard = scene(data_dir)

    def change(entry: Entry) -> Entry | None:
        return entry._replace(flags=entry.flags | REFUSED, refusal=201) if entry.op == ops.ADJUST else None

    assert forge_entries(yard, 1, change) == 1
    assert "refusal 201, worked out 0; flags " in told(yard.examine(), "accounts")[0].text


def test_a_delivery_that_nothing_justifies(data_dir):
    yard = scene(data_dir)
    forge_entries(yard, 1, lambda entry: [] if entry.op == ops.CUTOFF_STARTED else None)
    report = yard.examine()
    assert told(report, "cutoffs")[0].text == "an outcome of cutoff 1, of which no attempt began"


def test_an_account_in_the_wrong_bucket(data_dir):
    yard = scene(data_dir)
    forge_entries(yard, 1, lambda entry: entry._replace(user_id=b"8") if entry.user_id == USER else None)
    assert "for a user who belongs to bucket" in told(yard.examine(), "accounts")[0].text


# -- ownership ---------------------------------------------------------------------------------------------------------


def test_two_owners_of_a_bucket(data_dir):
    yard = Yard(data_dir)
    yard.workers[2].shard.adopt(1, 1)
    yard.workers[2].commit()
    (found,) = told(yard.close().examine(), "owners")
    assert found.text == ("bucket 1 has two owners at generation 1: shard 2, and the map says shard 1 at generation 1")


def test_a_bucket_without_an_owner(data_dir):
    yard = Yard(data_dir, trims=False).close()

    def without(position: int, records: list[Record]) -> list[Record]:
        return [record for record in records if record[:2] != (OWN, 3)]

    forge(yard, 1, without)
    (found,) = told(yard.examine(), "owners")
    assert found.text == "bucket 3 is not held by its owner, the map says shard 1 at generation 1"


def test_a_bucket_at_another_generation_than_the_map_says(data_dir):
    yard = Yard(data_dir)
    yard.record(["assign", 1, 1, 2])
    (found,) = told(yard.close().examine(), "owners")
    assert found.text == (
        "bucket 1 is held by shard 1 at generation 1, the map says shard 1 at generation 2: "
        "one of the two is an older backup"
    )


def test_an_emptied_shard(data_dir):
    yard = Yard(data_dir)
    yard.workers[2].shard.freeze(5)
    yard.workers[2].shard.leave(5)
    yard.workers[2].commit()
    (found,) = told(yard.close().examine(), "owners")
    assert found.text == "bucket 5 is not held by its owner, the map says shard 2 at generation 1"


def test_an_entry_of_a_bucket_that_was_given_up(data_dir):
    yard = scene(data_dir)
    given_up = False

    def leave_early(position: int, records: list[Record]) -> list[Record]:
        nonlocal given_up
        if given_up or position < 4:
            return records
        given_up = True
        return [*records, (LEAVE, 5, 1, b"")]

    forge(yard, 1, leave_early, lambda part: None)
    texts = [finding.text for finding in told(yard.examine(), "owners")]
    assert "an entry of bucket 5 at generation 1, while the shard does not have it" in texts
    assert "bucket 5 is not held by its owner, the map says shard 1 at generation 1" in texts


def test_a_bucket_that_did_not_arrive_as_it_left(data_dir):
    yard = Yard(data_dir)
    yard.pay(USER, COIN)
    poor = BillingMachine(Rules(accrue=False, request_ids_per_bucket=50, restore=True))
    poor.create(5)
    giving, taking = yard.workers[2].shard, yard.workers[1].shard
    giving.freeze(5)
    taking.take_in(5, 2, poor.dump(5))
    yard.record(["assign", 5, 1, 2])
    taking.activate(5, yard.now_ns)
    giving.leave(5)
    (found,) = told(yard.close().examine(), "owners")
    assert found.text == "bucket 5 did not arrive at generation 2 as it had left"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (["assign", 1, 2, 3], "bucket 1, now (1, 1), is given to shard 2 at 3"),
        (["retire", 1], "shard 1 is retired, which owns buckets"),
        (["create", 8, "crc32c-noxor", [1]], "the map is created a second time"),
        (["crown", 1], "a record of the unknown kind 'crown'"),
        (["assign", 1], "makes no sense"),
        (["anchor", b"BCA1"], "makes no sense"),
    ],
)
def test_a_record_that_contradicts_the_map(data_dir, record, text):
    yard = Yard(data_dir)
    yard.record(record)
    report = yard.close().examine()
    assert text in told(report, "owners")[0].text
    assert told(report, "owners")[0].position == 3


def test_a_missing_directory(data_dir):
    yard = Yard(data_dir).close()
    (data_dir / "shard-2").rename(data_dir / "aside")
    assert told(yard.examine(), "owners")[0].text == "the directory of shard 2 is missing"


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_a_changed_balance_in_a_snapshot(data_dir):
    yard = scene(data_dir)

    def richer(part: bytes) -> bytes:
        machine = BillingMachine(yard.rules)
        bucket_id = int.from_bytes(part[1:3], "little")
        machine.load(bucket_id, part[15:])
        book = machine.ledger.books[bucket_id]
        for slot in book.slots.values():
            settled_ns, nanos, *rest = ROW.unpack_from(book.rows, slot * ROW.size)
            ROW.pack_into(book.rows, slot * ROW.size, settled_ns, nanos + 1, *rest)
            book.totals.top_ups += 3600 * 10**9  # so that the snapshot does not contradict itself
        return part[:15] + machine.dump(bucket_id)

    forge(yard, 1, on_part=richer)
    report = yard.examine()
    texts = [finding.text for finding in told(report, "snapshots") if finding.account == "7"]
    assert len(texts) == 1
    assert "the snapshot says balance " in texts[0]
    assert told(report, "accounts") == []
    assert any("top_ups over all entries" in finding.text for finding in told(report, "snapshots"))


def test_a_snapshot_that_lost_request_ids(data_dir):
    yard = Yard(data_dir, shards=1, bucket_count=1, trims=False)
    for number in range(20):
        yard.pay(USER, 1, b"%d" % number)
    yard.workers[1].snapshot()
    yard.close()

    def forgetful(part: bytes) -> bytes:
        machine = BillingMachine(Rules(accrue=False, request_ids_per_bucket=50, restore=True))
        machine.load(1, part[15:])
        other = BillingMachine(yard.rules)
        other.load(1, part[15:])
        ids = other.ledger.books[1].ids
        packed = list(ids)
        ids.__init__()  # type: ignore[misc]
        for one in [*packed[:5], *packed[6:]]:
            ids.restore(one)
        return part[:15] + other.dump(1)

    forge(yard, 1, on_part=forgetful)
    (found,) = told(yard.examine(), "requests")
    assert "keeps other request ids than its entries say" in found.text


def test_a_snapshot_without_one_of_the_buckets(data_dir):
    yard = scene(data_dir)
    forge(yard, 1, on_part=lambda part: part if part[1:3] != b"\x05\x00" else None)
    report = yard.examine()
    assert "no part of bucket 5, which the shard holds at position" in told(report, "snapshots")[0].text
