"""An account's face: one row (and its `Extra`) read into a working copy, settled, changed and written back.

All arithmetic of money and time is here. Internal units throughout (nano-per-hour for one nanosecond):

    available = balance + credit limit - open holds    active while it is above zero, else exhausted
    E         = settled + ceil(available / rate)       the first nanosecond at which what was spent is >= what there was

Credits that end are lost at their ends, which E foresees (see `credits`).

`settle` accounts for the time since the last entry. At E exactly what was available has been taken (clamp): available
is zero, and the sliver by which rate * time exceeds it is overrun, as is all that would have accrued after E. So rate
* time = accrued + overrun, exactly. An exhaustion under the rule `accrue` goes on below zero instead: all of rate *
time accrues, and what accrues beyond E is counted as overrun too. Arrears end where a bound of 2**63-1 nanos would be
left.

A command works on the copy: it checks everything, and only then changes it or the `Extra`, which is shared.
`Rejected` leaves both as they were. `store` writes the row and asserts what must be true.
"""

from collections.abc import Callable
from typing import Final

from billing.ledger.book import ACCRUING, EXHAUSTED, HAS_EXTRA, ROW, Book
from billing.ledger.commands import Command
from billing.ledger.credits import after_spending
from billing.ledger.exhaustion import falls_ns
from billing.ledger.extra import NEVER_NS, Credit, Extra
from billing.ledger.money import INT64_MAX, NANO

BALANCE_MAX: Final = INT64_MAX * NANO


class Rejected(Exception):
    """A command is refused, with the name of the error and the number that belongs to it (see `entry.refused`)."""

    def __init__(self, name: str, number: int = 0) -> None:
        super().__init__(name, number)
        self.name = name
        self.number = number


class Account:
    """A working copy. `balance` and `overrun` in internal units, `rate` in nanos per hour, the rest as its name
    says.
    """

    __slots__ = (
        "accruing",
        "balance",
        "book",
        "credit_limit_nanos",
        "credits",
        "entry_id",
        "exhausted",
        "exhaustion_seq",
        "extra",
        "holds_nanos",
        "overrun",
        "raised",
        "rate",
        "settled_ns",
        "slot",
        "user_id",
    )

    def __init__(self, book: Book, slot: int, user_id: bytes) -> None:
        self.book = book
        self.slot = slot
        self.user_id = user_id
        row: tuple[int, ...] = ROW.unpack_from(book.rows, slot * ROW.size)
        self.settled_ns, nanos, frac, self.rate, self.entry_id, self.exhaustion_seq, flags = row
        self.balance = nanos * NANO + frac
        self.exhausted = bool(flags & EXHAUSTED)
        self.accruing = bool(flags & ACCRUING)
        self.raised = False  # the command at hand raised a line from zero
        self.extra: Extra | None = None
        self.credits: tuple[Credit, ...] = ()
        self.credit_limit_nanos = self.holds_nanos = self.overrun = 0
        if flags & HAS_EXTRA:
            extra = self.extra = book.extras[slot]
            self.credit_limit_nanos = extra.credit_limit_nanos
            self.holds_nanos = extra.holds_nanos
            self.overrun = extra.overrun
            self.credits = extra.credits

    def need_extra(self) -> Extra:
        """The account's `Extra`, made if it has none; only after the command's last check."""
        if self.extra is None:
            self.extra = Extra()
        return self.extra

    @property
    def available(self) -> int:
        """In internal units; above zero is active."""
        return self.balance + (self.credit_limit_nanos - self.holds_nanos) * NANO

    def runs_out_ns(self) -> int:
        """E; may lie beyond 2**63-1. NEVER_NS while exhausted, and at rate 0 but for credits that end. It is the same
        wherever before E it is asked.
        """
        available = self.available
        return NEVER_NS if available <= 0 else falls_ns(self.credits, self.rate, self.settled_ns, available)

    def settle(self, at_ns: int, accrue: bool) -> int:
        """Accounts for the time up to `at_ns`, not beyond E while active; returns what accrued, in internal units.

        `accrue`: an exhaustion that begins now goes on below zero.
        """
        assert at_ns >= self.settled_ns, "an account's instants never decrease"
        spent = self.rate * (at_ns - self.settled_ns)
        self.settled_ns = at_ns
        available = self.available
        beyond = spent if self.exhausted else max(0, spent - available)
        if beyond:
            assert self.exhausted or beyond < self.rate, "an active account was settled past its exhaustion"
            self.overrun = min(self.overrun + beyond, BALANCE_MAX)
            if not (self.accruing if self.exhausted else accrue):
                spent -= beyond
            else:
                spent = min(spent, self.balance + BALANCE_MAX, available + BALANCE_MAX)
        self.balance -= spent
        assert spent >= 0
        if self.credits:
            self.credits = after_spending(self.credits, spent)
        return spent

    def move(self, amount: int) -> None:
        """Changes the balance by so many internal units; refuses where a bound would be left. What is taken comes from
        the credits that are spent first.
        """
        balance = self.balance + amount
        self.check_bounds(balance, self.credit_limit_nanos, self.holds_nanos)
        self.balance = balance
        if self.credits and amount < 0:
            self.credits = after_spending(self.credits, -amount)

    def check_bounds(self, balance: int, credit_limit_nanos: int, holds_nanos: int) -> None:
        """Refuses `LIMIT_EXCEEDED` where a bound would be left. Available, too, stays above -2**63 nanos."""
        if abs(balance) > BALANCE_MAX:
            raise Rejected("LIMIT_EXCEEDED", 0)
        if balance + (credit_limit_nanos - holds_nanos) * NANO < -BALANCE_MAX:
            raise Rejected("LIMIT_EXCEEDED", 1)

    def store(self) -> None:
        """Writes the copy back. Asserts the invariants: bounds, state as available says, holds as they add up."""
        book, slot, extra = self.book, self.slot, self.extra
        available = self.available
        assert -BALANCE_MAX <= self.balance <= BALANCE_MAX, "the balance left its bounds"
        assert available >= -BALANCE_MAX, "available left its bound"
        assert self.exhausted == (available <= 0), "state and available disagree"
        assert 0 <= self.rate <= INT64_MAX, "the rate left its bounds"
        assert 0 <= self.overrun <= BALANCE_MAX, "overrun left its bounds"
        assert not self.credits or extra is not None, "credits without a place"
        flags = EXHAUSTED if self.exhausted else 0
        if self.accruing:
            flags |= ACCRUING
        if extra is not None:
            extra.credit_limit_nanos = self.credit_limit_nanos
            extra.holds_nanos = self.holds_nanos
            extra.overrun = self.overrun
            extra.credits = self.credits
            assert 0 <= self.credit_limit_nanos <= INT64_MAX, "the credit limit left its bounds"
            assert 0 <= self.holds_nanos <= INT64_MAX, "holds left their bounds"
            assert (self.holds_nanos > 0) == bool(extra.holds), "holds do not add up"
            if extra.is_empty():
                book.extras.pop(slot, None)
            else:
                book.extras[slot] = extra
                flags |= HAS_EXTRA
        nanos, frac = divmod(self.balance, NANO)
        row = (self.settled_ns, nanos, frac, self.rate, self.entry_id, self.exhaustion_seq, flags)
        ROW.pack_into(book.rows, slot * ROW.size, *row)


Handlers = dict[int, Callable[[Account, Command], None]]  # what carries out a command, by its `op`
