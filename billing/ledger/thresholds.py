"""Thresholds: warnings to an account's owner that money or time is getting short.

A threshold is (kind, value): it is crossed when available falls to `value` nanos, or the runway to `value` ns. The
runway is the time to E: infinite at rate 0, zero on an exhausted account. A threshold fires once for each downward
crossing, whatever caused the crossing, and is armed again when the account is above it. It fires in the very nanosecond
of the crossing, so a threshold is *armed* exactly while the account is *above* it, and no state is stored: a threshold
fires if the account was above it before a change and is not above it afterwards.

Two things follow. A threshold that is set above the available balance does not fire (the reply of set_thresholds shows
that balance) until the account has been above it. Setting the same thresholds again neither fires nor re-arms one.

Crossings that time causes have exact instants, as E has. The entry of a crossing at E comes behind the exhaustion's.
"""

from typing import Final

from billing.ledger.account import Account, Handlers
from billing.ledger.commands import BY_AMOUNT, SET_THRESHOLDS, Command, unpack_thresholds
from billing.ledger.exhaustion import falls_ns
from billing.ledger.extra import NEVER_NS
from billing.ledger.money import NANO

Threshold = tuple[int, int]


def set_thresholds(account: Account, command: Command) -> None:
    """Replaces all thresholds of the account."""
    thresholds = tuple(unpack_thresholds(command[5]))
    if thresholds or account.extra is not None:
        account.need_extra().thresholds = thresholds


def above(account: Account) -> list[Threshold]:
    """The armed thresholds, in order: those that the account is above."""
    if account.extra is None:
        return []
    return [threshold for threshold in account.extra.thresholds if _is_above(account, threshold)]


def fallen(account: Account, armed: list[Threshold]) -> list[Threshold]:
    """The thresholds that fire: those in `armed` that the account is no longer above."""
    return [threshold for threshold in armed if not _is_above(account, threshold)]


def next_crossing_ns(account: Account) -> int:
    """The first instant at which time crosses a threshold; may lie beyond 2**63-1; NEVER_NS if none is coming."""
    extra, rate, available = account.extra, account.rate, account.available
    if extra is None or available <= 0 or (rate == 0 and not account.credits):
        return NEVER_NS
    runs_out_ns = account.runs_out_ns()
    nearest_ns = NEVER_NS
    for kind, value in extra.thresholds:
        if kind == BY_AMOUNT:
            above = available - value * NANO
            crossing_ns = falls_ns(account.credits, rate, account.settled_ns, above) if above > 0 else 0
        else:
            crossing_ns = runs_out_ns - value if runs_out_ns != NEVER_NS else NEVER_NS
        if crossing_ns > account.settled_ns:  # else it is not above
            nearest_ns = min(nearest_ns, crossing_ns)
    return nearest_ns


def _is_above(account: Account, threshold: Threshold) -> bool:
    kind, value = threshold
    available = account.available
    if kind == BY_AMOUNT:
        return available > value * NANO
    return available > 0 and account.runs_out_ns() - account.settled_ns > value


HANDLERS: Final[Handlers] = {
    SET_THRESHOLDS: set_thresholds,
}
