"""Cutoff classes: what is done differently for some accounts when they run out.

An account is in one class, the default one unless `set_class` said otherwise. A class says whether an exhaustion goes
on below zero, whether there is a restore URL, and how long the *grace* is: the account is exhausted at E as every
other, and its cutoff is owed at E + grace, exactly, unless available rises above zero before. Meanwhile what the rate
would spend is counted as overrun, or is arrears, as the class says.

What an exhaustion began with stays: whether it goes on below zero is asked at E. Only the grace that is running follows
a change of class: it ends at E + the new grace, at once where that has passed. A cutoff that is owed stays owed.

An account whose class the rules do not have (any more) is served by the default. In replay nothing is asked of the
rules: the entry says by its flags and its note what was in force.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from billing.ledger.account import Account, Handlers
from billing.ledger.commands import SET_CLASS, Command
from billing.ledger.money import INT64_MAX


class CutoffClass(NamedTuple):
    """What the rules say of one class."""

    grace_ns: int = 0
    accrue: bool = False  # an exhaustion goes on below zero
    restore: bool = False  # there is a restore URL


Classes = Mapping[bytes, CutoffClass]
NO_CLASSES: Final[Classes] = {}


def set_class(account: Account, command: Command) -> None:
    """Puts the account in a class; the empty name is the default."""
    name = command[5]
    if name or account.extra is not None:
        account.need_extra().class_name = name


def after_grace_ns(exhausted_at_ns: int, grace_ns: int) -> int:
    """When a grace ends; never beyond 2**63-1."""
    return min(exhausted_at_ns + grace_ns, INT64_MAX)


HANDLERS: Final[Handlers] = {
    SET_CLASS: set_class,
}
