"""The rule of exhaustion: the first nanosecond at which nothing is left, here and in its copy in the fast path."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from billing.ledger import commands as ops
from billing.ledger.account import Account
from billing.ledger.exhaustion import exhaustion_ns, falls_ns
from billing.ledger.extra import NEVER_NS, Credit
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import NANO

AT_NS = 1_727_000_000_000_000_000
BUCKET = 1
AMOUNTS = st.integers(1, 10**18)
RATES = st.integers(1, 10**15)


@given(AMOUNTS, RATES, st.integers(0, 10**12))
def test_it_is_the_ceiling_of_the_quotient_and_the_same_from_every_instant_before(
    available: int, rate: int, passed_ns: int
) -> None:
    runs_out_ns = exhaustion_ns(AT_NS, available, rate)
    assert runs_out_ns == AT_NS + ceil(Fraction(available, rate))
    assert rate * (runs_out_ns - AT_NS) >= available > rate * (runs_out_ns - 1 - AT_NS)
    remaining = available - rate * passed_ns
    if remaining > 0:
        assert exhaustion_ns(AT_NS + passed_ns, remaining, rate) == runs_out_ns


@given(AMOUNTS, st.integers(0, 10**12), st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**15)), max_size=4))
def test_credits_that_end_only_make_it_earlier(available: int, rate: int, parts: list[tuple[int, int]]) -> None:
    drawn = (Credit(AT_NS + in_ns, amount, number, amount, b"") for number, (in_ns, amount) in enumerate(parts))
    credits = tuple(sorted(drawn))
    available += sum(credit.left for credit in credits)
    falls_at_ns = falls_ns(credits, rate, AT_NS, available)
    never = falls_ns((), rate, AT_NS, available)
    assert falls_at_ns <= never
    assert (never == NEVER_NS) == (rate == 0)
    assert falls_at_ns > AT_NS


@given(AMOUNTS, RATES, st.integers(1, 10**9))
def test_the_fast_path_knows_the_same_rule(nanos: int, rate: int, later_ns: int) -> None:
    ledger = Ledger(Rules(False, 10, False), lambda ref, due_ns: due_ns)
    ledger.create(BUCKET)
    ledger.wake(BUCKET)
    ledger.apply(BUCKET, AT_NS, (ops.TOP_UP, b"u", nanos, 0, 0, b"", b"", b"", b"", b""))
    ledger.apply(BUCKET, AT_NS + later_ns, (ops.SET_RATE, b"u", rate, -1, -1, b"", b"", b"", b"", b""))
    book = ledger.books[BUCKET]
    account = Account(book, book.slots[b"u"], b"u")
    runs_out_ns = exhaustion_ns(AT_NS + later_ns, nanos * NANO, rate)
    assert account.runs_out_ns() == runs_out_ns
    filed_ns = book.armed_ns[book.slots[b"u"]]
    assert filed_ns == (runs_out_ns if runs_out_ns < 2**63 else NEVER_NS)
