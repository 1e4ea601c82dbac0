"""Commands that move money: top_up, debit, adjust, set_credit_limit, and the holds.

Each function takes a working copy settled to the command's instant, checks everything, and only then changes the copy.
`Posting` then finds what follows from the change (exhaustion, restore, thresholds), in the same way for all commands.
"""

from typing import Final

from billing.ledger import commands as ops
from billing.ledger.account import Account, Handlers, Rejected
from billing.ledger.commands import FORCE, STRICT, Command
from billing.ledger.credits import CREDITS_MAX, with_credit
from billing.ledger.entry import LIMITS, hold_id
from billing.ledger.errors import Refused
from billing.ledger.extra import NEVER_NS, Credit, Extra
from billing.ledger.money import INT64_MAX, NANO

HOLDS_MAX: Final = 1000  # open holds per account

_HOLDS: Final = LIMITS.index("holds")
_OPEN_HOLDS: Final = LIMITS.index("open_holds")
_CREDITS: Final = LIMITS.index("credits")


def top_up(account: Account, command: Command) -> None:
    """Adds money. If the command gives an end, the part that is left after paying a debt becomes a credit."""
    _, _, amount_nanos, _, _, _, _, _, packed, _ = command
    options = ops.unpack_options(packed)
    ends_ns = ops.number_of(options, ops.EXPIRES_AT_NS)
    if ends_ns is not None:
        if ends_ns <= account.settled_ns:
            raise Rejected("INVALID_PARAMS", ends_ns)
        if len(account.credits) >= CREDITS_MAX:
            raise Rejected("LIMIT_EXCEEDED", _CREDITS)
    account.move(amount_nanos * NANO)
    remaining = min(account.balance, amount_nanos * NANO)
    if ends_ns is not None and remaining > 0:
        account.need_extra()
        credit = Credit(ends_ns, remaining, account.entry_id + 1, amount_nanos, options.get(ops.KIND, b""))
        account.credits = with_credit(account.credits, credit)


def check_end(command: Command, at_ns: int) -> None:
    """Checks the top_up that opens an account. Raises Refused `INVALID_PARAMS` if its credit would end at or before
    `at_ns`.
    """
    ends_ns = ops.number_of(ops.unpack_options(command[8]), ops.EXPIRES_AT_NS)
    if ends_ns is not None and ends_ns <= at_ns:
        message = f"expires_at_ns {ends_ns} is not after the instant of the call"
        raise Refused("INVALID_PARAMS", message, {"expires_at_ns": ends_ns, "at_ns": at_ns})


def debit(account: Account, command: Command) -> None:
    """Takes money. `strict` takes the whole amount or is refused; `partial` takes at most what is available, down to
    the fraction of a nano; `force` takes the whole amount, also below zero.
    """
    amount_nanos, mode = command[2:4]
    amount = amount_nanos * NANO
    available = account.available
    if amount > available and mode != FORCE:
        if mode == STRICT:
            raise Rejected("INSUFFICIENT_FUNDS", amount_nanos - available // NANO)
        amount = max(available, 0)
    account.move(-amount)


def adjust(account: Account, command: Command) -> None:
    """Corrects the balance by a signed amount; the balance may fall below zero."""
    account.move(command[2] * NANO)


def set_credit_limit(account: Account, command: Command) -> None:
    """Sets how far the balance may fall below zero before the account is exhausted."""
    limit_nanos = command[2]
    account.check_bounds(account.balance, limit_nanos, account.holds_nanos)
    account.credit_limit_nanos = limit_nanos
    if limit_nanos:
        account.need_extra()


def hold(account: Account, command: Command) -> None:
    """Reserves money; refused if the amount is above what is available. A hold with a time to live is given back when
    that is over; an end beyond 2**63-1 counts as none.
    """
    _, _, amount_nanos, ttl_ns, _, _, request_id, *_ = command
    available = account.available
    if amount_nanos * NANO > available:
        raise Rejected("INSUFFICIENT_FUNDS", amount_nanos - available // NANO)
    holds_nanos = account.holds_nanos + amount_nanos
    if holds_nanos > INT64_MAX:
        raise Rejected("LIMIT_EXCEEDED", _HOLDS)
    name = hold_id(request_id, account.entry_id + 1)
    open_holds = account.extra.holds if account.extra is not None else {}
    if name in open_holds:  # its request_id was let go before the hold was
        raise Rejected("REQUEST_ID_CONFLICT")
    if len(open_holds) >= HOLDS_MAX:
        raise Rejected("LIMIT_EXCEEDED", _OPEN_HOLDS)
    expires_ns = account.settled_ns + ttl_ns if ttl_ns else NEVER_NS
    if expires_ns > INT64_MAX:
        expires_ns = NEVER_NS
    extra = account.need_extra()
    extra.holds[name] = (amount_nanos, expires_ns)
    extra.next_expiry_ns = min(extra.next_expiry_ns, expires_ns)
    account.holds_nanos = holds_nanos


def capture(account: Account, command: Command) -> None:
    """Takes the amount from the hold, at most all of it, and ends the hold: its rest is available again."""
    _, _, amount_nanos, _, _, name, *_ = command
    extra = _extra_with(account, name)
    held_nanos = extra.holds[name][0]
    captured = min(amount_nanos, held_nanos) * NANO
    account.check_bounds(account.balance - captured, account.credit_limit_nanos, account.holds_nanos - held_nanos)
    free(account, extra, name)
    account.move(-captured)


def release(account: Account, command: Command) -> None:
    """Ends a hold without taking money: its amount is available again."""
    name = command[5]
    free(account, _extra_with(account, name), name)


def end_credit(account: Account) -> Command:
    """Takes the rest of the first credit, which ends now, from the balance; returns the CREDIT_EXPIRED command."""
    ended, *rest = account.credits
    account.credits = tuple(rest)
    account.balance -= ended.left
    what = (ended.amount_nanos, ended.entry_id, 0, ended.kind)
    return (ops.CREDIT_EXPIRED, account.user_id, *what, b"", b"", b"", b"")


def free(account: Account, extra: Extra, name: bytes) -> None:
    """Ends a hold: its money is available again."""
    amount_nanos, expires_ns = extra.holds.pop(name)
    account.holds_nanos -= amount_nanos
    assert account.holds_nanos >= 0
    if expires_ns == extra.next_expiry_ns:
        extra.find_next_expiry()


def _extra_with(account: Account, name: bytes) -> Extra:
    extra = account.extra
    if extra is None or name not in extra.holds:
        raise Rejected("UNKNOWN_HOLD")
    return extra


HANDLERS: Final[Handlers] = {
    ops.TOP_UP: top_up,
    ops.DEBIT: debit,
    ops.SET_CREDIT_LIMIT: set_credit_limit,
    ops.HOLD: hold,
    ops.CAPTURE: capture,
    ops.RELEASE: release,
    ops.ADJUST: adjust,
}
