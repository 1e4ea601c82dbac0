"""Carries out each command a second time: implemented from the contract, on `state.Account`.

`carry_out` expects an account that is settled to the command's instant. It either changes the account or returns why
the command is refused: the error's number and the number in its note. `replay` handles the consequences that are the
same for all commands (crossing zero, restores, thresholds).
"""

from __future__ import annotations

import struct
from typing import Final

from billing.doctor import cutoffs
from billing.doctor.entry import (
    ADJUST,
    CAPTURE,
    CHANGE_RATE,
    CLOSE,
    DEBIT,
    DEFAULT_TTL_NS,
    EXPIRES_AT_NS,
    HOLD,
    REFUSED,
    RELEASE,
    RULE_RESTORE,
    SET_CLASS,
    SET_CREDIT_LIMIT,
    SET_RATE,
    SET_THRESHOLDS,
    SUM_MAX,
    TOP_UP,
    TTL_NS,
    UNIT,
    WORD_MAX,
    Entry,
    kind_of,
    options_of,
)
from billing.doctor.state import NEVER, WEEK_NS, Account, Credit

INVALID_PARAMS: Final = 103
INVALID_RATE: Final = 106
INSUFFICIENT_FUNDS: Final = 201
INSUFFICIENT_RUNWAY: Final = 202
STALE_RATE: Final = 203
REQUEST_ID_CONFLICT: Final = 204
UNKNOWN_HOLD: Final = 205
LIMIT_EXCEEDED: Final = 206
ACCOUNT_NOT_CLOSABLE: Final = 207

# The numbers in the note of LIMIT_EXCEEDED (the limit) and of ACCOUNT_NOT_CLOSABLE (the reason).
BALANCE, AVAILABLE, _, HOLDS, OPEN_HOLDS, RATE, RATE_LINES, CREDITS = range(8)
BY_RATE, BY_DEBT, BY_HOLD, BY_CUTOFF = range(4)

PARTIAL, FORCE = 1, 2
LINES_MAX: Final = 10_000
HOLDS_MAX: Final = 1_000
CREDITS_MAX: Final = 100

_THRESHOLD = struct.Struct("<Bq")

Refusal = tuple[int, int]  # the error's number, and the number of its note


def carry_out(account: Account, entry: Entry) -> Refusal | None:
    """Applies the entry's command to the account, or returns the refusal and changes nothing."""
    op = entry.op
    if op == TOP_UP:
        return _top_up(account, entry)
    if op == ADJUST:
        return _move(account, entry.a * UNIT)
    if op == DEBIT:
        return _debit(account, entry.a, entry.b)
    if op in (SET_RATE, CHANGE_RATE):
        return _rate(account, entry)
    if op == SET_CREDIT_LIMIT:
        return _limit(account, entry.a)
    if op == HOLD:
        return _hold(account, entry)
    if op in (CAPTURE, RELEASE):
        return _end_hold(account, entry)
    if op == SET_THRESHOLDS:
        account.thresholds = read_thresholds(entry.key)
        return None
    if op == SET_CLASS:
        account.class_name = entry.key
        return None
    assert op == CLOSE, op
    return _close(account, entry.flags)


def read_thresholds(packed: bytes) -> tuple[tuple[int, int], ...]:
    """The thresholds in the key of the command. Malformed bytes give ((-1, -1),), which no snapshot has."""
    if len(packed) % _THRESHOLD.size:
        return ((-1, -1),)
    return tuple((kind, value) for kind, value in _THRESHOLD.iter_unpack(packed))


def hold_name(request_id: bytes, entry_id: int) -> bytes:
    """The id of a hold: derived from the request_id of the call that made it, or from its entry if there is none."""
    if not request_id:
        return f"e:{entry_id}".encode()
    try:
        return f"r:{request_id.decode()}".encode()
    except UnicodeDecodeError:
        return f"x:{request_id.hex()}".encode()


def _beyond(balance: int, credit_limit_nanos: int, holds_nanos: int) -> Refusal | None:
    if not -SUM_MAX <= balance <= SUM_MAX:
        return LIMIT_EXCEEDED, BALANCE
    if balance + (credit_limit_nanos - holds_nanos) * UNIT < -SUM_MAX:
        return LIMIT_EXCEEDED, AVAILABLE
    return None


def _move(account: Account, amount: int) -> Refusal | None:
    no = _beyond(account.balance + amount, account.credit_limit_nanos, account.holds_nanos)
    if no is None:
        account.balance += amount
        account.take(max(0, -amount))
    return no


def _top_up(account: Account, entry: Entry) -> Refusal | None:
    ends_ns = (options_of(entry.options) or {}).get(EXPIRES_AT_NS)
    if ends_ns is not None and ends_ns <= account.settled_ns:
        return INVALID_PARAMS, ends_ns
    if ends_ns is not None and len(account.credits) == CREDITS_MAX:
        return LIMIT_EXCEEDED, CREDITS
    debt = max(0, -account.balance)
    no = _move(account, entry.a * UNIT)
    rest = entry.a * UNIT - debt
    if no is None and ends_ns is not None and rest > 0:
        credit = Credit(ends_ns, rest, account.entry_id + 1, entry.a, kind_of(entry.options))
        account.credits = sorted([*account.credits, credit])
    return no


def _debit(account: Account, nanos: int, mode: int) -> Refusal | None:
    available = account.available
    if nanos * UNIT <= available or mode == FORCE:
        return _move(account, -nanos * UNIT)
    if mode == PARTIAL:
        return _move(account, -max(0, available))
    return INSUFFICIENT_FUNDS, nanos - available // UNIT


def _limit(account: Account, nanos: int) -> Refusal | None:
    no = _beyond(account.balance, nanos, account.holds_nanos)
    if no is None:
        account.credit_limit_nanos = nanos
    return no


def _rate(account: Account, entry: Entry) -> Refusal | None:
    resource = entry.key
    old_rate, rate_seq = account.line(resource)
    min_runway_ns = -1
    if entry.op == SET_RATE:
        rate, min_runway_ns = entry.a, entry.c
        if entry.b >= 0:
            if entry.b <= rate_seq:
                return STALE_RATE, rate_seq
            rate_seq = entry.b
    else:
        rate = old_rate + entry.a
        if rate < 0:
            return INVALID_RATE, old_rate
    total = account.rate - old_rate + rate
    if total > WORD_MAX:
        return LIMIT_EXCEEDED, RATE
    if min_runway_ns >= 0 and total:
        falls_ns = account.falls_to(0, total) if account.available > 0 else 0
        runway_ns = max(0, falls_ns - account.settled_ns)
        if runway_ns < max(1, min_runway_ns):
            return INSUFFICIENT_RUNWAY, runway_ns
    is_known = resource in (account.lines or ()) or account.line(resource)[1] >= 0
    if (rate or rate_seq >= 0) and not is_known and account.line_count() >= LINES_MAX:
        return LIMIT_EXCEEDED, RATE_LINES
    ends_ns = _lease_end(account, entry)
    if entry.op != SET_RATE and account.leases and resource in account.leases:
        ends_ns = max(account.leases[resource], 0 if ends_ns == NEVER else ends_ns)
    _put_line(account, resource, rate, rate_seq)
    _put_lease(account, resource, ends_ns if rate else NEVER)
    account.rate = total
    return None


def _lease_end(account: Account, entry: Entry) -> int:
    options = options_of(entry.options) or {}
    ttl_ns = options.get(TTL_NS, options.get(DEFAULT_TTL_NS))
    ends_ns = NEVER if ttl_ns is None else account.settled_ns + ttl_ns
    return ends_ns if ends_ns <= WORD_MAX else NEVER


def _put_lease(account: Account, resource: bytes, ends_ns: int) -> None:
    leases = account.leases or {}
    leases.pop(resource, None)
    if ends_ns != NEVER:
        leases[resource] = ends_ns
    account.leases = leases or None


def end_lease(account: Account, due_ns: int) -> tuple[bytes, int]:
    """Sets the first line, by name, whose lease ends at this instant to zero. Returns the resource and the old rate."""
    resource = sorted(name for name, ends_ns in (account.leases or {}).items() if ends_ns == due_ns)[0]
    rate, rate_seq = account.line(resource)
    _put_line(account, resource, 0, rate_seq)
    _put_lease(account, resource, NEVER)
    account.rate -= rate
    return resource, rate


def _put_line(account: Account, resource: bytes, rate: int, rate_seq: int) -> None:
    lines = account.lines or {}
    quiet = {name: line for name, line in (account.quiet or {}).items() if account.settled_ns - line[1] < WEEK_NS}
    lines.pop(resource, None)
    quiet.pop(resource, None)
    if rate:
        lines[resource] = (rate, rate_seq)
    elif rate_seq >= 0:
        quiet[resource] = (rate_seq, account.settled_ns)
    account.lines, account.quiet = lines or None, quiet or None


def _hold(account: Account, entry: Entry) -> Refusal | None:
    nanos, ttl_ns = entry.a, entry.b
    if nanos * UNIT > account.available:
        return INSUFFICIENT_FUNDS, nanos - account.available // UNIT
    if account.holds_nanos + nanos > WORD_MAX:
        return LIMIT_EXCEEDED, HOLDS
    name = hold_name(entry.request_id, account.entry_id + 1)
    holds = account.holds or {}
    if name in holds:
        return REQUEST_ID_CONFLICT, 0
    if len(holds) >= HOLDS_MAX:
        return LIMIT_EXCEEDED, OPEN_HOLDS
    expires_ns = account.settled_ns + ttl_ns if ttl_ns else NEVER
    holds[name] = (nanos, expires_ns if expires_ns <= WORD_MAX else NEVER)
    account.holds = holds
    account.holds_nanos += nanos
    return None


def _end_hold(account: Account, entry: Entry) -> Refusal | None:
    name = entry.key
    if not account.holds or name not in account.holds:
        return UNKNOWN_HOLD, 0
    held_nanos, _ = account.holds[name]
    if entry.op == CAPTURE:
        balance = account.balance - min(entry.a, held_nanos) * UNIT
        no = _beyond(balance, account.credit_limit_nanos, account.holds_nanos - held_nanos)
        if no is not None:
            return no
        account.take(account.balance - balance)
        account.balance = balance
    free_hold(account, name)
    return None


def free_hold(account: Account, name: bytes) -> int:
    """Ends a hold, so that its money is available again; returns its nanos."""
    assert account.holds is not None
    nanos, _ = account.holds.pop(name)
    account.holds = account.holds or None
    account.holds_nanos -= nanos
    return nanos


def expire_holds(account: Account, due_ns: int) -> list[tuple[bytes, int]]:
    """Ends all holds that expire at an instant; returns (id, nanos) of each, in the order of their ids."""
    assert account.holds is not None
    names = sorted(name for name, (_, expires_ns) in account.holds.items() if expires_ns == due_ns)
    return [(name, free_hold(account, name)) for name in names]


def _close(account: Account, flags: int) -> Refusal | None:
    """A restore stands against closing where there was a URL for it; versions before refused without one, too."""
    if account.rate:
        return ACCOUNT_NOT_CLOSABLE, BY_RATE
    if account.balance < 0:
        return ACCOUNT_NOT_CLOSABLE, BY_DEBT
    if account.holds:
        return ACCOUNT_NOT_CLOSABLE, BY_HOLD
    restores = flags & (RULE_RESTORE | REFUSED) != 0
    call = cutoffs.owed(account)
    if (call is not None and (restores or account.exhausted)) or account.grace() is not None:
        return ACCOUNT_NOT_CLOSABLE, BY_CUTOFF
    account.balance = account.credit_limit_nanos = 0
    return None
