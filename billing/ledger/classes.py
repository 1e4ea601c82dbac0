"""Cutoff classes: other rules for some accounts when they run out.

An account is in one class, the default one unless a `set_class` changed that. A class defines whether an exhausted
account goes on below zero, whether there is a restore URL, and how long the *grace* is: the account is exhausted at E
like any other, but its cutoff is owed at exactly E + grace, unless available rises above zero before. During the grace
the rate counts as overrun, or runs up arrears, as the class defines.

Whether an exhausted account goes on below zero is decided at E and does not change before the account is restored. Only
a running grace follows a change of class: it ends at E + the new grace, or at once if that has passed. A cutoff that is
owed stays owed.

The default class applies to an account whose class the rules do not have (any more). Replay does not read the rules:
the flags and the note of an entry hold what was in force.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from billing.ledger.account import Account, Handlers
from billing.ledger.commands import SET_CLASS, Command
from billing.ledger.money import INT64_MAX


class CutoffClass(NamedTuple):
    """The rules of one class."""

    grace_ns: int = 0
    accrue: bool = False  # an exhausted account goes on below zero
    restore: bool = False  # there is a restore URL


Classes = Mapping[bytes, CutoffClass]
NO_CLASSES: Final[Classes] = {}


def set_class(account: Account, command: Command) -> None:
    """Puts the account in a class; the empty name is the default."""
    name = command[5]
    if name or account.extra is not None:
        account.need_extra().class_name = name


def after_grace_ns(exhausted_at_ns: int, grace_ns: int) -> int:
    """The end of a grace, at most 2**63-1."""
    return min(exhausted_at_ns + grace_ns, INT64_MAX)


HANDLERS: Final[Handlers] = {
    SET_CLASS: set_class,
}
