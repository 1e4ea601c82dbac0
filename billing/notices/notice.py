"""Turns a packed entry into the JSON bodies of its notices. Pure.

    account.debited          a debit, or the capture of a hold
    account.debit_refused    a debit that was refused
    account.topped_up        a top-up
    balance.low              available fell to a threshold's amount
    runway.low               the time left fell to a threshold's
    account.exhausted        available fell to zero or below
    account.restored         available rose above zero again
    rate.lease_expired       a rate line ended, because nobody reported it again in time

An entry makes none, one or two of them, the operation before its consequence. A body has the form of Standard Webhooks
(`type`, `timestamp`, `data`): `timestamp` is the entry's instant in UTC, and `data` describes the account as it is
after the entry, with all amounts in nanos, rounded down, as in replies.

A notice has a *name*, unique per user and the same whenever it is made from the same entry again: entry_id, instant and
kind; for a refused debit, which has no entry_id, its instant and its place in the journal. The instant is in it because
entry_ids are given again where the data were put back to an earlier state. The user and the name make the `webhook-id`;
like an event_id it contains no full stop.

For example entry 7 of user `ü`, a debit at 1700000012000000000: the name is `7-1700000012000000000:account-debited`,
the webhook-id `%C3%BC:7-1700000012000000000:account-debited`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes

import msgspec

from billing.ledger import commands as ops
from billing.ledger.entry import (
    CROSSED,
    EXHAUSTED,
    REFUSED,
    RESTORED,
    Entry,
    cause_at,
    grace_end_of,
    is_first,
    plain_text,
    refused,
    unpack,
)
from billing.ledger.money import NANO

DEBITED: Final = "account.debited"
DEBIT_REFUSED: Final = "account.debit_refused"
TOPPED_UP: Final = "account.topped_up"
BALANCE_LOW: Final = "balance.low"
RUNWAY_LOW: Final = "runway.low"
ACCOUNT_EXHAUSTED: Final = "account.exhausted"
ACCOUNT_RESTORED: Final = "account.restored"
LEASE_EXPIRED: Final = "rate.lease_expired"

_TOLD: Final = frozenset((ops.DEBIT, ops.CAPTURE, ops.TOP_UP, ops.THRESHOLD, ops.LEASE_EXPIRED))
_RATES: Final = (ops.SET_RATE, ops.CHANGE_RATE)  # a line raised on an exhausted account owes a cutoff, but no notice
_SECOND_NS: Final = 10**9
_encode: Final = msgspec.json.Encoder().encode


class Notice(NamedTuple):
    """One POST to be made."""

    user_id: bytes
    at_ns: int
    name: str
    body: bytes


def notices_of(packed: bytes, bucket_id: int, location: str) -> list[Notice]:
    """Returns the notices of a packed entry, in order. `location`: its place among all journals, without a full
    stop.
    """
    op, flags = cause_at(packed)
    if op not in _TOLD and not flags & (CROSSED | RESTORED):
        return []
    entry = Entry._make(unpack(packed))
    kinds: list[tuple[str, dict[str, object]]] = []
    if flags & REFUSED:
        if op == ops.DEBIT:
            refusal = refused(unpack(packed), bucket_id)
            shortfall = refusal.details.get("shortfall_nanos")
            details: dict[str, object] = {"error": refusal.name, "message_of_error": refusal.message}
            kinds.append((DEBIT_REFUSED, {"amount_nanos": entry.a, "shortfall_nanos": shortfall, **details}))
    else:
        kinds += _what_happened(entry, packed)
    stem = f"{entry.entry_id}-{entry.at_ns}" if entry.entry_id else f"{entry.at_ns}-{location}"
    return [
        Notice(entry.user_id, entry.at_ns, f"{stem}:{kind.replace('.', '-')}", _body(entry, kind, bucket_id, fields))
        for kind, fields in kinds
    ]


def webhook_id(user_id: bytes, name: str) -> str:
    """Returns the id by which a receiver identifies a notice: printable ASCII without a full stop, up to 512 bytes."""
    return f"{quote_from_bytes(user_id, safe='').replace('.', '%2E')}:{name}"


def _what_happened(entry: Entry, packed: bytes) -> list[tuple[str, dict[str, object]]]:
    kinds: list[tuple[str, dict[str, object]]] = []
    moved = entry.balance_nanos - (entry.balance - entry.amount) // NANO  # balances rounded down, as in the history
    if entry.op in (ops.DEBIT, ops.CAPTURE):
        kinds.append((DEBITED, {"amount_nanos": -moved}))
    elif entry.op == ops.TOP_UP:
        kinds.append((TOPPED_UP, {"amount_nanos": moved}))
    elif entry.op == ops.THRESHOLD:
        by_amount = entry.a == ops.BY_AMOUNT
        kinds.append((BALANCE_LOW if by_amount else RUNWAY_LOW, {"threshold": _threshold(by_amount, entry.b)}))
    elif entry.op == ops.LEASE_EXPIRED:
        ended = {"resource": plain_text(entry.key), "line_rate_nanos_per_hour": entry.a}
        kinds.append((LEASE_EXPIRED, ended))
    if entry.flags & CROSSED and entry.op not in _RATES:
        called_ns = entry.at_ns if is_first(packed) else max(entry.at_ns, grace_end_of(packed))
        kinds.append((ACCOUNT_EXHAUSTED, {"exhausted_at_ns": entry.at_ns, "cutoff_at_ns": called_ns}))
    if entry.flags & RESTORED:
        kinds.append((ACCOUNT_RESTORED, {}))
    return kinds


def _threshold(by_amount: bool, value: int) -> dict[str, int]:
    return {"amount_nanos": value} if by_amount else {"runway_ns": value}


def _body(entry: Entry, kind: str, bucket_id: int, fields: dict[str, object]) -> bytes:
    coming = entry.exhausts_at_ns >= 0
    data: dict[str, object] = {
        "user_id": entry.user_id.decode(),
        "bucket_id": bucket_id,
        "operation": ops.NAMES[entry.op],
        **fields,
        "entry_id": entry.entry_id or None,
        "at_ns": entry.at_ns,
        "state": "exhausted" if entry.flags & EXHAUSTED else "active",
        "balance_nanos": entry.balance_nanos,
        "available_nanos": entry.balance_nanos + entry.credit_limit_nanos - entry.holds_nanos,
        "rate_nanos_per_hour": entry.rate,
        "exhausts_at_ns": entry.exhausts_at_ns if coming else None,
        "runway_ns": entry.exhausts_at_ns - entry.at_ns if coming else None,
        "exhaustion_seq": entry.exhaustion_seq,
        "request_id": plain_text(entry.request_id) or None,
        "message": plain_text(entry.message),
    }
    seconds, nanos = divmod(entry.at_ns, _SECOND_NS)
    return _encode({"type": kind, "timestamp": f"{_moment(seconds)}.{nanos:09d}Z", "data": data})


@lru_cache(maxsize=4)
def _moment(seconds: int) -> str:
    """Formats a second in UTC; cached, since the notices of one second share it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
