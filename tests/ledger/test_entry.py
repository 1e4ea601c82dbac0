"""The entry: packed and unpacked, answered, shown as a row, refused. And what else clients see: names and ids."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.ledger import commands as ops
from billing.ledger import entry as entries
from billing.ledger.account import Rejected
from billing.ledger.commands import Command
from billing.ledger.entry import FIXED, Entry, answer, cause_of, event_id, hold_id, pack, text, unpack
from billing.ledger.errors import KINDS, NAME_OF_CODE, Refused
from billing.ledger.money import INT64_MAX, NANO
from tests.ledger.driver import HOUR, LedgerDriver

INT64 = st.integers(-(2**63), INT64_MAX)
FRAC = st.integers(0, NANO - 1)
POSITIVE = st.integers(0, INT64_MAX)
ENTRIES = st.builds(
    Entry,
    op=st.sampled_from(sorted(ops.NAMES)), flags=st.integers(0, 511), refusal=st.sampled_from([0, *NAME_OF_CODE]),
    a=INT64, b=INT64, c=INT64, at_ns=POSITIVE, entry_id=POSITIVE, amount_nanos=INT64, amount_frac=FRAC,
    accrued_nanos=st.integers(0, 2**64 - 1), accrued_frac=FRAC, balance_nanos=INT64, balance_frac=FRAC, rate=POSITIVE,
    credit_limit_nanos=POSITIVE, holds_nanos=POSITIVE, exhausts_at_ns=st.integers(-1, INT64_MAX),
    exhaustion_seq=POSITIVE, overrun_nanos=POSITIVE, overrun_frac=FRAC, user_id=st.binary(min_size=1, max_size=128),
    key=st.binary(max_size=255), request_id=st.binary(max_size=64), message=st.binary(max_size=1024),
    note=st.binary(max_size=300), line_rate=POSITIVE, options=st.binary(max_size=255), actor=st.binary(max_size=128),
)  # fmt: skip


@given(ENTRIES)
def test_what_is_packed_is_unpacked(entry: Entry) -> None:
    assert unpack(pack(tuple(entry))) == tuple(entry)
    assert cause_of(pack(tuple(entry))) == (entry.flags, entry.at_ns, entry.command)


def test_an_entry_byte_by_byte() -> None:
    driver = LedgerDriver()
    driver.top_up("7", 5, at=10)
    (packed,) = (packed for _, packed in driver.ledger.records)
    fixed = struct.pack(
        "<BBHHqqqqqqqQqqqqqqqqqqqBBBHBBH",
        *(0xF2, 1, 16, 0, 5, 0, 0, 10, 1, 5, 0, 0, 0, 5, 0, 0, 0, 0, 0, -1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0),
    )
    assert packed == fixed + b"7"
    assert packed.hex().startswith("f2 01 1000 0000 0500".replace(" ", ""))
    assert len(packed) == FIXED.size + 1 == 168


@given(ENTRIES, st.integers(0, 60))
def test_a_shortened_or_lengthened_entry_is_refused(entry: Entry, cut: int) -> None:
    packed = pack(tuple(entry))
    for read in (unpack, cause_of):
        with pytest.raises(ValueError, match="entry"):
            read(packed[: -cut - 1])
        with pytest.raises(ValueError, match="entry"):
            read(packed + b"x")


def test_a_number_that_leaves_its_field_is_never_written() -> None:
    with pytest.raises(struct.error):
        pack((1, 0, 0, 2**63, *[0] * 18, b"u", *[b""] * 6))


def test_the_reply_is_the_map_of_the_contract() -> None:
    driver = LedgerDriver()
    driver.top_up("Ünal", 10**9, at=0)
    assert driver.set_rate("Ünal", 7200 * 10**6, at=5) == {
        "user_id": "Ünal",
        "bucket_id": 3,
        "state": "active",
        "balance_nanos": 10**9,
        "credit_limit_nanos": 0,
        "available_nanos": 10**9,
        "rate_nanos_per_hour": 7200 * 10**6,
        "rate_nanos_per_second": 2 * 10**6,
        "exhausts_at_ns": 500 * 10**9 + 5,
        "runway_ns": 500 * 10**9,
        "exhaustion_seq": 0,
        "entry_id": 2,
        "at_ns": 5,
        "replayed": False,
    }


def test_get_account_adds_rates_cutoff_and_overrun() -> None:
    driver = LedgerDriver()
    reply = driver.top_up("u", 5, at=0)
    view = driver.view("u", at=0)
    assert view | reply == view
    assert view.keys() - reply.keys() == {
        "rates",
        "credits",
        "leases",
        "class",
        "cutoff",
        "cutoff_at_ns",
        "overrun_nanos",
        "holds",
        "holds_nanos",
        "thresholds",
    }


def test_first_and_replayed_answer_come_out_of_the_same_entry() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 5, at=0)
    command = (ops.DEBIT, b"u", 5, 0, 0, b"", b"r", b"m", b"", b"")
    entry = driver.ledger.apply(3, 1, command)
    again = driver.ledger.apply(3, 2, command)
    assert Entry._make(again)._replace(flags=entry[1]) == entry
    assert answer(entry, 3) | {"replayed": True} == answer(again, 3)


@pytest.mark.parametrize(
    "command",
    [
        (ops.TOP_UP, b"u", 5, 0, 0, b"", b"r", b"m", b"", b"billing-team"),
        (ops.TOP_UP, b"new", 5, 0, 0, b"", b"r", b"m", b"", b""),
        (ops.DEBIT, b"u", 5, 0, 0, b"", b"r", b"m", b"", b""),
        (ops.DEBIT, b"u", 100, 1, 0, b"", b"", b"", b"", b""),
        (ops.SET_RATE, b"u", 7, -1, -1, b"", b"r", b"m", b"", b""),
        (ops.SET_RATE, b"u", 7, 3, 0, b"vm", b"", b"", b"", b""),
        (ops.HOLD, b"u", 5, 9, 0, b"", b"r", b"", b"", b""),
        (ops.ADJUST, b"u", -5, 0, 0, b"", b"", b"why", b"", b""),
    ],
)
def test_what_is_answered_is_the_entry_that_is_recorded(command: Command) -> None:
    driver = LedgerDriver()
    driver.top_up("u", 50, at=0)
    driver.set_rate("u", HOUR // 3, at=0)
    entry = driver.ledger.apply(3, 1, command)
    assert unpack(driver.ledger.records[-1][1]) == entry


def test_floors_below_zero_are_shown_as_floors() -> None:
    driver = LedgerDriver(accrue=True)
    driver.top_up("u", 1, at=0)
    driver.set_rate("u", HOUR // 2, at=0)
    assert driver.view("u", at=3)["balance_nanos"] == -1  # -0.5
    reply = driver.debit("u", 1, at=3, mode="force")
    assert (reply["balance_nanos"], reply["debited_nanos"]) == (-2, 1)


def test_a_row_of_the_history() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0, message="invoice 7", request_id="r")
    driver.set_rate("u", HOUR * 3 // 2, at=0)
    driver.debit("u", 10, at=3)
    assert driver.rows("u")[0] == {
        "entry_id": 1, "at_ns": 0, "operation": "top_up", "amount_nanos": 100, "accrued_nanos": 0,
        "balance_before_nanos": 0, "balance_after_nanos": 100, "message": "invoice 7", "request_id": "r",
        "resource": None, "line_rate_nanos_per_hour": None, "rate_nanos_per_hour": 0, "value_nanos": None,
        "thresholds": None, "class": None, "actor": "",
    }  # fmt: skip
    assert driver.rows("u")[2] == {
        "entry_id": 3, "at_ns": 3, "operation": "debit", "amount_nanos": -10, "accrued_nanos": 5,
        "balance_before_nanos": 95, "balance_after_nanos": 85, "message": "", "request_id": None,
        "resource": None, "line_rate_nanos_per_hour": None, "rate_nanos_per_hour": HOUR * 3 // 2, "value_nanos": None,
        "thresholds": None, "class": None, "actor": "",
    }  # fmt: skip


def test_the_history_names_operations_as_the_procedures_are_called() -> None:
    assert list(ops.NAMES.values())[:11] == [
        "top_up", "set_rate", "change_rate", "debit", "set_credit_limit", "hold", "capture", "release", "adjust",
        "set_thresholds", "close_account",
    ]  # fmt: skip
    assert len(set(ops.NAMES.values())) == len(ops.NAMES)


@given(st.binary(min_size=1, max_size=128), st.integers(1, 2**32 - 1), POSITIVE)
def test_an_event_id_is_header_safe_ascii_of_at_most_512_bytes(user_id: bytes, seq: int, at_ns: int) -> None:
    name = event_id(user_id, seq, at_ns)
    assert len(name) + len(":restore") <= 512
    assert name.isascii()
    assert not set(name) & set(" \t\r\n\"'./?&#=;,<>\\")
    assert name.count(":") == 2


def test_an_event_id_is_made_of_user_seq_and_e() -> None:
    assert event_id("Ü.1:2".encode(), 3, 4) == "%C3%9C%2E1%3A2:3:4"


@given(st.binary(min_size=1, max_size=64))
def test_a_hold_id_is_text_that_fits_a_command_and_names_its_request(request_id: Any) -> None:
    name = hold_id(request_id, 1)
    assert isinstance(text(name), str)
    assert len(name) <= ops.HOLD_ID_BYTES_MAX
    assert name in (b"r:" + request_id, b"x:" + request_id.hex().encode())
    assert hold_id(b"", 7) == b"e:7"


def test_thresholds_that_are_equal_are_equal_bytes() -> None:
    packed = ops.pack_thresholds([(1, 5), (0, 9), (0, 9)])
    assert packed == ops.pack_thresholds([(0, 9), (1, 5)])
    assert ops.unpack_thresholds(packed) == [(0, 9), (1, 5)]
    assert len(ops.pack_thresholds([(1, INT64_MAX - n) for n in range(ops.THRESHOLDS_MAX)])) < 256


def test_error_names_have_codes_of_their_own_and_never_change() -> None:
    assert {name: (kind.code, kind.retry) for name, kind in KINDS.items() if kind.code < 300} == {
        "PROTOCOL_ERROR": (100, False),
        "FRAME_TOO_LARGE": (101, False),
        "UNKNOWN_METHOD": (102, False),
        "INVALID_PARAMS": (103, False),
        "INVALID_USER_ID": (104, False),
        "INVALID_AMOUNT": (105, False),
        "INVALID_RATE": (106, False),
        "UNKNOWN_ACCOUNT": (200, False),
        "INSUFFICIENT_FUNDS": (201, False),
        "INSUFFICIENT_RUNWAY": (202, False),
        "STALE_RATE": (203, False),
        "REQUEST_ID_CONFLICT": (204, False),
        "UNKNOWN_HOLD": (205, False),
        "LIMIT_EXCEEDED": (206, False),
        "ACCOUNT_NOT_CLOSABLE": (207, False),
        "UNKNOWN_CUTOFF": (208, False),
        "UNKNOWN_CURSOR": (209, False),
    }
    assert {name for name, kind in KINDS.items() if kind.retry} >= {"UNAVAILABLE", "BUCKET_MOVING", "WRONG_BUCKET"}


def test_a_refusal_as_a_string_and_as_a_map() -> None:
    refused = Refused("INSUFFICIENT_FUNDS", "too much", {"shortfall_nanos": 7, "code": 1})
    assert str(refused) == "INSUFFICIENT_FUNDS: too much"
    assert refused.as_map() == {
        "code": 201,
        "name": "INSUFFICIENT_FUNDS",
        "message": "too much",
        "retry": False,
        "applied": "no",
        "shortfall_nanos": 7,
    }
    assert Refused("UNAVAILABLE", "later", applied="unknown").as_map()["applied"] == "unknown"


def test_a_name_that_is_in_no_table_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Refused("NO_SUCH_NAME", "")
    entry = Entry._make(unpack(pack((1, 0, 900, *[0] * 19, b"u", b"", b"", b"", b"", b"", bytes(8)))))
    with pytest.raises(AssertionError, match="INTERNAL"):
        entries.refused(entry, 1)


def test_an_entry_without_tails_is_its_fixed_part() -> None:
    entry = (1, 0, 0, *[0] * 19, *[b""] * 7)
    assert len(pack(entry)) == FIXED.size
    assert unpack(pack(entry)) == entry
    assert cause_of(pack(entry)) == (0, 0, (1, b"", 0, 0, 0, b"", b"", b"", b"", b""))
    for read in (unpack, cause_of):
        with pytest.raises(ValueError, match=r"^entry shorter than its fixed part$"):
            read(pack(entry)[:-1])
        with pytest.raises(ValueError, match=r"^entry's tails do not fill it$"):
            read(pack(entry) + b"x")


def test_a_refusal_shows_its_name_and_sentence_in_a_traceback() -> None:
    assert Refused("INVALID_AMOUNT", "why").args == ("INVALID_AMOUNT", "why")
    assert Rejected("STALE_RATE", 7).args == ("STALE_RATE", 7)


def test_a_row_says_what_was_set_and_by_whom() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0, actor="shop")
    driver.set_rate("u", 5, at=1, resource="vm", actor="metering")
    driver.change_rate("u", 3, at=2, resource="vm", actor="metering")
    driver.set_rate("u", 2, at=2)
    driver.set_credit_limit("u", 7, at=3, message="agreed")
    driver.hold("u", 9, at=4, ttl=5, request_id="h")
    driver.set_thresholds("u", [(0, 105)], at=8)
    driver.view("u", at=9)
    columns = ("operation", "resource", "line_rate_nanos_per_hour", "rate_nanos_per_hour", "value_nanos", "actor")
    assert [tuple(row[name] for name in columns) for row in driver.rows("u")] == [
        ("top_up", None, None, 0, None, "shop"),
        ("set_rate", "vm", 5, 5, None, "metering"),
        ("change_rate", "vm", 8, 8, None, "metering"),
        ("set_rate", "", 2, 10, None, ""),
        ("set_credit_limit", None, None, 10, 7, ""),
        ("hold", None, None, 10, 9, ""),
        ("set_thresholds", None, None, 10, 105, ""),
        ("hold_expired", None, None, 10, 9, "time"),
    ]
    assert driver.rows("u")[4]["message"] == "agreed"


def test_a_row_says_all_thresholds_that_were_set() -> None:
    driver = LedgerDriver()
    driver.top_up("u", 100, at=0)
    driver.set_thresholds("u", [(1, 60), (0, 5), (0, 20)], at=1)
    driver.set_thresholds("u", [(1, 60)], at=2)
    driver.set_thresholds("u", [], at=3)
    assert [(row["value_nanos"], row["thresholds"]) for row in driver.rows("u")] == [
        (None, None),
        (20, [{"amount_nanos": 5}, {"amount_nanos": 20}, {"runway_ns": 60}]),
        (None, [{"runway_ns": 60}]),
        (None, []),
    ]


def test_a_retry_by_another_actor_is_the_same_call_and_other_options_are_another() -> None:
    driver = LedgerDriver()
    first = (ops.TOP_UP, b"u", 5, 0, 0, b"", b"r", b"", b"", b"one")
    entry = driver.ledger.apply(3, 0, first)
    again = driver.ledger.apply(3, 1, (*first[:-1], b"another"))
    assert Entry._make(again).actor == Entry._make(entry).actor == b"one"
    options = ops.pack_options({7: b"x"})
    assert ops.unpack_options(options) == {7: b"x"}
    with pytest.raises(Refused, match="REQUEST_ID_CONFLICT"):
        driver.ledger.apply(3, 2, (*first[:-2], options, b"one"))


@pytest.mark.parametrize("broken", [b"\x01", b"\x01\x02x", b"\x01\x00\x02"])
def test_options_that_end_behind_themselves_are_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="an option ends"):
        ops.unpack_options(broken)


@given(ENTRIES)
def test_an_entry_of_the_first_format_is_read_with_what_it_did_not_say(entry: Entry) -> None:
    rates = (ops.SET_RATE, ops.CHANGE_RATE)
    line_rate = 0 if entry.refusal or entry.op not in rates else entry.a if entry.op == ops.SET_RATE else -1
    flags = entry.flags & ~entries.ACCRUING
    read = entry._replace(line_rate=line_rate, flags=flags, options=b"", actor=b"")
    packed = entries.pack_first(tuple(entry))
    assert entries.is_first(packed)
    assert not entries.is_first(pack(tuple(entry)))
    assert unpack(packed) == tuple(read)
    assert entries.pack_first(unpack(packed)) == packed
    assert cause_of(packed) == (flags, entry.at_ns, read.command)
    for form in (packed, pack(tuple(entry))):
        assert entries.instant_of(form) == entry.at_ns
        assert entries.cause_at(form)[0] == entry.op
