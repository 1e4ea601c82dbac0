"""Which entries make which notices, and what they say."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode
from typing import Any

import pytest

from billing.ledger import commands as ops
from billing.ledger.classes import CutoffClass
from billing.ledger.entry import Entry, pack, text, unpack
from billing.ledger.errors import Refused
from billing.ledger.ledger import Ledger, Rules
from billing.notices.notice import notices_of, webhook_id
from tests.ledger.driver import LedgerDriver

COIN = 10**9
HOUR_NS = 3600 * COIN


def entries(*commands: tuple[int, tuple[int, int, int, int, bytes]]) -> list[bytes]:
    """What a ledger records of `(instant, command without its user)`; refusals are swallowed."""
    filed: list[int] = []

    def arm(ref: int, due_ns: int) -> int:
        filed.append(due_ns)
        return due_ns

    ledger = Ledger(Rules(accrue=False, request_ids_per_bucket=10, restore=True), arm)
    ledger.create(1)
    ledger.wake(1)
    for at_ns, (op, a, b, c, key) in commands:
        with contextlib.suppress(Refused):
            ledger.apply(1, at_ns, (op, "ü.1".encode(), a, b, c, key, b"", b"why", b"", b""))
    return [packed for _, packed in ledger.records]


def bodies_of(packed: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(n.body) for index, entry in enumerate(packed) for n in notices_of(entry, 1, f"0-1-{index}")]


def test_every_kind_says_what_happened_and_how_the_account_stands() -> None:
    low = ops.pack_thresholds([(ops.BY_AMOUNT, 4 * COIN), (ops.BY_RUNWAY, HOUR_NS)])
    bodies = bodies_of(
        entries(
            (1, (ops.TOP_UP, 10 * COIN, 0, 0, b"")),
            (2, (ops.SET_THRESHOLDS, 2, 0, 0, low)),
            (3, (ops.SET_RATE, COIN, -1, -1, b"")),  # a coin an hour
            (4, (ops.DEBIT, 7 * COIN, ops.STRICT, 0, b"")),
            (5, (ops.DEBIT, 70 * COIN, ops.STRICT, 0, b"")),
            (4 * HOUR_NS, (ops.TOP_UP, 5 * COIN, 0, 0, b"")),
        )
    )
    kinds = [(body["type"], body["data"]["entry_id"]) for body in bodies]
    assert kinds == [
        ("account.topped_up", 1),
        ("account.debited", 4),
        ("balance.low", 5),
        ("account.debit_refused", None),
        ("runway.low", 6),
        ("account.exhausted", 7),
        ("account.topped_up", 8),
        ("account.restored", 8),
    ]
    data = [body["data"] for body in bodies]
    assert data[0]["amount_nanos"] == 10 * COIN
    assert data[1]["amount_nanos"] == 7 * COIN
    assert data[1]["balance_nanos"] == data[1]["available_nanos"] == 3 * COIN - 1  # a nanosecond of the rate is gone
    assert data[2]["threshold"] == {"amount_nanos": 4 * COIN}
    assert data[3]["error"] == "INSUFFICIENT_FUNDS"
    assert data[3]["amount_nanos"] == 70 * COIN
    assert data[3]["shortfall_nanos"] == 67 * COIN + 1
    assert data[4]["threshold"] == {"runway_ns": HOUR_NS}
    assert data[4]["runway_ns"] == HOUR_NS
    assert data[5]["state"] == "exhausted"
    assert data[5]["exhausted_at_ns"] == data[5]["at_ns"] == data[4]["exhausts_at_ns"]
    assert data[7]["state"] == "active"
    assert {row["user_id"] for row in data} == {"ü.1"}
    assert {row["message"] for row in data} == {"why", ""}
    assert bodies[0]["timestamp"] == "1970-01-01T00:00:00.000000001Z"


def test_a_line_raised_on_an_exhausted_account_owes_a_cutoff_and_no_notice() -> None:
    bodies = bodies_of(
        entries(
            (1, (ops.TOP_UP, COIN, 0, 0, b"")),
            (2, (ops.DEBIT, COIN, ops.STRICT, 0, b"")),
            (3, (ops.SET_RATE, COIN, -1, -1, b"")),
        )
    )
    assert [body["type"] for body in bodies] == ["account.topped_up", "account.debited", "account.exhausted"]


def test_the_end_of_a_lease_is_told_with_the_line_and_the_rate_it_had() -> None:
    ledger = Ledger(Rules(accrue=False, request_ids_per_bucket=10, restore=True, rate_lease_ns=HOUR_NS), max)
    ledger.create(1)
    ledger.apply(1, 1, (ops.TOP_UP, b"u", 10 * COIN, 0, 0, b"", b"", b"", b"", b""))
    ledger.apply(1, 2, (ops.SET_RATE, b"u", COIN, -1, -1, b"vm-1", b"", b"", b"", b""))
    ledger.view(1, b"u", 2 * HOUR_NS)
    body = bodies_of([packed for _, packed in ledger.records])[-1]
    assert (body["type"], body["data"]["operation"]) == ("rate.lease_expired", "lease_expired")
    assert (body["data"]["resource"], body["data"]["line_rate_nanos_per_hour"]) == ("vm-1", COIN)
    assert (body["data"]["at_ns"], body["data"]["rate_nanos_per_hour"]) == (HOUR_NS + 2, 0)


def test_texts_of_any_kind_are_in_the_body_as_json_has_them() -> None:
    """Control characters, quotes, all planes of Unicode, and bytes that are no text, which stand as over HTTP."""
    for message in (b'\x00\x1f\x7f"\\/\n', "ü\u2028😀".encode(), b"\xff\xfe"):
        ledger_made = entries((1, (ops.TOP_UP, 5, 0, 0, b"")))
        entry = Entry._make(unpack(ledger_made[0]))._replace(message=message)
        (notice,) = notices_of(pack(entry), 1, "0-1-0")
        shown = text(message)
        wanted = shown if isinstance(shown, str) else "base64:" + b64encode(message).decode()
        assert json.loads(notice.body)["data"]["message"] == wanted
        assert notice.body == json.dumps(json.loads(notice.body), ensure_ascii=False, separators=(",", ":")).encode()


def test_names_are_those_of_the_entry_and_hold_no_full_stop() -> None:
    packed = entries(
        (1, (ops.TOP_UP, COIN, 0, 0, b"")),
        (2, (ops.DEBIT, 2 * COIN, ops.STRICT, 0, b"")),
        (3, (ops.DEBIT, COIN, ops.STRICT, 0, b"")),
    )
    names = [notice.name for entry in packed for notice in notices_of(entry, 1, "0-9-4")]
    made = ["1-1:account-topped_up", "2-0-9-4:account-debit_refused", "2-3:account-debited", "2-3:account-exhausted"]
    assert names == made
    shown = [webhook_id("ü.1".encode(), name) for name in names]
    assert shown[0] == "%C3%BC%2E1:1-1:account-topped_up"
    assert not any("." in name for name in shown)


def test_an_entry_of_the_same_number_at_another_instant_has_another_name() -> None:
    """As after a restore from a backup, which gives numbers again."""
    first, second = (entries((at, (ops.TOP_UP, COIN, 0, 0, b""))) for at in (1, 2))
    (told,), (told_later,) = (notices_of(made[0], 1, "0-1-0") for made in (first, second))
    assert Entry._make(unpack(first[0])).entry_id == Entry._make(unpack(second[0])).entry_id == 1
    assert told.name != told_later.name
    assert notices_of(first[0], 1, "0-1-0") == [told], "and the same one whenever it is made of its entry"


def test_a_webhook_id_has_at_most_512_bytes_and_no_full_stop_whatever_it_is_made_of() -> None:
    user_id, most = "ü".encode() * (ops.USER_ID_BYTES_MAX // 2), 2**63 - 1
    packed = entries(
        (1, (ops.TOP_UP, COIN, 0, 0, b"")),
        (2, (ops.DEBIT, 2 * COIN, ops.STRICT, 0, b"")),
        (3, (ops.DEBIT, COIN, ops.STRICT, 0, b"")),
    )
    ids = []
    for made in packed:
        entry = Entry._make(unpack(made))
        entry = entry._replace(user_id=user_id, at_ns=most, entry_id=most if entry.entry_id else 0)
        notices = notices_of(pack(entry), 1, f"{2**32 - 1}-{most}-{2**32 - 1}")
        ids += [webhook_id(user_id, notice.name) for notice in notices]
    assert len(ids) == 4
    assert max(len(name) for name in ids) <= 512
    for name in [*ids, webhook_id(b"a.b c", "1-1:account-debited")]:
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set(". ")


@pytest.mark.parametrize("op", [ops.SET_RATE, ops.SET_CREDIT_LIMIT, ops.ADJUST, ops.HOLD])
def test_other_operations_are_not_told(op: int) -> None:
    packed_entries = entries((1, (ops.TOP_UP, COIN, 0, 0, b"")), (2, (op, 5, -1 if op == ops.SET_RATE else 0, -1, b"")))
    assert len(packed_entries) == 2
    assert notices_of(packed_entries[1], 1, "0-1-1") == []


def test_who_has_a_grace_is_told_when_the_call_comes() -> None:
    driver = LedgerDriver(classes={b"gold": CutoffClass(grace_ns=1000)})
    for user, name in (("plain", ""), ("gold", "gold")):
        driver.top_up(user, 5, at=0)
        driver.set_class(user, name, at=0)
        driver.debit(user, 5, at=7)
    driver.entries()
    notices_made = [notice for packed in driver.journal for notice in notices_of(packed, 3, "1-1")]
    exhaustions = [
        (notice.user_id, json.loads(notice.body)["data"]) for notice in notices_made if "exhausted" in notice.name
    ]
    assert [(user, data["exhausted_at_ns"], data["cutoff_at_ns"]) for user, data in exhaustions] == [
        (b"plain", 7, 7),
        (b"gold", 7, 1007),
    ]
