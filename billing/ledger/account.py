"""A working copy of one account: read from its row (and its `Extra`), settled, changed and written back.

All arithmetic of money and time is here. Internal units throughout (nano-per-hour for one nanosecond):

    available = balance + credit limit - open holds    active while it is above zero, else exhausted
    E         = settled + ceil(available / rate)       the first nanosecond at which what was spent is >= what there was

The rest of a credit is lost at the credit's end; E takes the ends of credits into account (see `credits`).

`settle` charges for the time since the last entry. At E it has taken exactly what was available (clamp): available is
then zero. The amount by which rate * time exceeds it at E is counted as overrun, and so is everything that would have
accrued after E. So rate * time = accrued + overrun, exactly. Under the rule `accrue` an exhausted account goes on below
zero instead: all of rate * time accrues, and what accrues beyond E is counted as overrun, too. Arrears stop growing
where the balance or available would fall below -(2**63-1) nanos.

A command works on the copy: it checks everything first, and only then changes the copy or the `Extra`, which is shared
with the book. A command that raises `Rejected` leaves both unchanged. `store` writes the row and asserts the
invariants.
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
    """A command is refused: the name of the error, and the number that its message needs (see `entry.refused`)."""

    def __init__(self, name: str, number: int = 0) -> None:
        super().__init__(name, number)
        self.name = name
        self.number = number


class Account:
    """A working copy of an account. `balance` and `overrun` are in internal units, `rate` is in nanos per hour; the
    other names end with their unit.
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
        """Returns the account's `Extra`, and makes one if it has none; called only after the command's last check."""
        if self.extra is None:
            self.extra = Extra()
        return self.extra

    @property
    def available(self) -> int:
        """In internal units; the account is active while this is above zero."""
        return self.balance + (self.credit_limit_nanos - self.holds_nanos) * NANO

    def runs_out_ns(self) -> int:
        """E; may lie beyond 2**63-1. NEVER_NS while nothing is available, and at rate 0 unless the end of a credit
        exhausts the account. Settling the account to an instant before E does not change the result.
        """
        available = self.available
        return NEVER_NS if available <= 0 else falls_ns(self.credits, self.rate, self.settled_ns, available)

    def settle(self, at_ns: int, accrue: bool) -> int:
        """Charges for the time up to `at_ns`, which must not lie beyond E while the account is active. Returns the
        accrued amount in internal units.

        `accrue`: whether an exhaustion that begins now goes on below zero.
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
        """Changes the balance by `amount` internal units, signed. Takes a negative amount from the credits first, in
        the order in which they are spent. Raises Rejected as `check_bounds` does.
        """
        balance = self.balance + amount
        self.check_bounds(balance, self.credit_limit_nanos, self.holds_nanos)
        self.balance = balance
        if self.credits and amount < 0:
            self.credits = after_spending(self.credits, -amount)

    def check_bounds(self, balance: int, credit_limit_nanos: int, holds_nanos: int) -> None:
        """Raises Rejected `LIMIT_EXCEEDED` where the balance would leave +-(2**63-1) nanos, or available would fall
        below -(2**63-1) nanos.
        """
        if abs(balance) > BALANCE_MAX:
            raise Rejected("LIMIT_EXCEEDED", 0)
        if balance + (credit_limit_nanos - holds_nanos) * NANO < -BALANCE_MAX:
            raise Rejected("LIMIT_EXCEEDED", 1)

    def store(self) -> None:
        """Writes the copy back. Asserts the invariants: numbers within bounds, exhausted exactly when available is not
        above zero, no held amount without open holds.
        """
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


Handlers = dict[int, Callable[[Account, Command], None]]  # the function that carries out a command, by its `op`
