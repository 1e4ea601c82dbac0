"""Credits: parts of a balance that expire at an instant. Pure arithmetic on tuples.

A top-up with an end makes a `Credit`: this part of the balance, as far as it is not spent, is lost at `ends_ns`. The
credits of an account are a tuple in the order in which they are spent: the one that ends soonest comes first; of
several with the same end the smallest, then the oldest. Whatever lowers the balance (time, debits, captures,
corrections) takes from the first credit, then from the next; money without an end is spent only when no credit is left.
Taking from the first credit never changes the order. So the sum of the credits is at most the balance, and an account
with a balance of zero or below has no credits.

Holds reserve an amount and no particular money: a hold does not keep a credit from ending.

All amounts are in internal units. `rate` is the rate at which money is spent, in nanos per hour. The functions go
through the credits one by one: an account has at most `CREDITS_MAX` of them.
"""

from typing import Final, NamedTuple

from billing.ledger.extra import NEVER_NS, Credit

CREDITS_MAX: Final = 100  # per account

Credits = tuple[Credit, ...]


class Walk(NamedTuple):
    """The credits that an account still has after some time, and the amount lost with those that ended."""

    left: Credits
    lost: int


def with_credit(credits: Credits, credit: Credit) -> Credits:
    """The credits with one more, in the order in which they are spent."""
    return tuple(sorted((*credits, credit)))


def after_spending(credits: Credits, amount: int) -> Credits:
    """The credits that are left after `amount` was taken from the balance."""
    for index, credit in enumerate(credits):
        if amount < credit.left:
            return (credit._replace(left=credit.left - amount), *credits[index + 1 :])
        amount -= credit.left
    return ()


def after_time(credits: Credits, rate: int, at_ns: int, to_ns: int) -> Walk:
    """The credits that remain at `to_ns`, and the amount that was lost at ends from `at_ns` to `to_ns` inclusive."""
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
    """The first instant at which a credit ends before it is spent; NEVER_NS if every credit is spent before its end."""
    sum_left = 0
    for credit in credits:
        sum_left += credit.left
        if sum_left > rate * (credit.ends_ns - at_ns):
            return credit.ends_ns
    return NEVER_NS
