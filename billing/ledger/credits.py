"""Credits that end: parts of a balance that are gone at an instant. Pure arithmetic on tuples.

A top-up with an end makes a `Credit`: so much of the balance ends at `ends_ns`. The credits of an account are a tuple
in the order in which they are spent: what ends soonest comes first, of several with one end the smaller, then the
older. Whatever lowers a balance (time, debits, captures, corrections) is taken from the first of them on, and from
money that never ends only when no credit is left. Taking from the first never changes the order. So the sum of the
credits is at most the balance, and an account with a balance of zero or below has none.

Holds reserve an amount and no particular money: they are no part of this, and keep no credit from ending.

All sums are internal units. `rate` is what is being spent, in nanos per hour. Times are walked from end to end: an
account has at most `CREDITS_MAX` credits.
"""

from typing import Final, NamedTuple

from billing.ledger.extra import NEVER_NS, Credit

CREDITS_MAX: Final = 100  # an account

Credits = tuple[Credit, ...]


class Walk(NamedTuple):
    """The credits of an account after some time: those that remain, and those that ended with something in them."""

    left: Credits
    lost: int


def with_credit(credits: Credits, credit: Credit) -> Credits:
    """The credits with one more, in its place."""
    return tuple(sorted((*credits, credit)))


def after_spending(credits: Credits, amount: int) -> Credits:
    """What is left of the credits after so much was taken."""
    for index, credit in enumerate(credits):
        if amount < credit.left:
            return (credit._replace(left=credit.left - amount), *credits[index + 1 :])
        amount -= credit.left
    return ()


def after_time(credits: Credits, rate: int, at_ns: int, to_ns: int) -> Walk:
    """The remaining credits after time has passed, and the amounts lost to ends up to `to_ns` inclusive."""
    lost = 0
    while credits and credits[0].ends_ns <= to_ns:
        ends_ns = credits[0].ends_ns
        credits = after_spending(credits, rate * (ends_ns - at_ns))
        at_ns = ends_ns
        while credits and credits[0].ends_ns == ends_ns:
            lost += credits[0].left
            credits = credits[1:]
    return Walk(after_spending(credits, rate * (to_ns - at_ns)), lost)


def next_end_ns(credits: Credits, rate: int, at_ns: int) -> int:
    """The first instant at which something is left of a credit that ends; NEVER_NS where all are spent before."""
    sum_left = 0
    for credit in credits:
        sum_left += credit.left
        if sum_left > rate * (credit.ends_ns - at_ns):
            return credit.ends_ns
    return NEVER_NS
