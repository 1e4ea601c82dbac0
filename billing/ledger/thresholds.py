"""Thresholds: when an account's owner wants to be told that money or time is getting short.

A threshold is (kind, value): available <= value nanos, or runway <= value ns, where runway is the time to E; none is
coming at rate 0, and on an exhausted account it is zero. It fires once for each downward crossing, whatever caused
it, and is armed again above. Because it fires in the very nanosecond in which it is crossed, *armed* and *above* are
the same thing and nothing needs to be remembered: what is above before a change and not above after it has fired.

It follows what an operator expects: a threshold set above the available balance does not fire (the reply of
set_thresholds shows that balance) until the account has been above it; setting the same thresholds again neither fires
nor re-arms anything.

Crossings that time causes have exact instants, as E has. Those that fall on E are fired behind the exhaustion.
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
    """The account's thresholds that could fire: those it is above of, in order."""
    if account.extra is None:
        return []
    return [threshold for threshold in account.extra.thresholds if _is_above(account, threshold)]


def fallen(account: Account, armed: list[Threshold]) -> list[Threshold]:
    """Of the thresholds it was above of those that it is not any more: they fire."""
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
