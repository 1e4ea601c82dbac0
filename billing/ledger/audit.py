"""Conservation of money: checks the balances of a bucket against the totals of its entries.

For every bucket, in internal units, exactly:

    top-ups - debits - accrued charges + adjustments - paid out on closing = the sum of all balances

The ledger adds up the left side with every entry; the right side is read from the rows. So the two are equal only if
every change of a balance was recorded. The check runs whenever a bucket is dumped. (The doctor proves the same from
the files alone, with code of its own.)
"""

from collections.abc import Iterator

from billing.ledger.book import EXHAUSTED, HAS_EXTRA, ROW, SLICE_ROWS, Book
from billing.ledger.entry import IN_GRACE, PENDING
from billing.ledger.extra import NEVER_NS
from billing.ledger.money import NANO


def balance(book: Book) -> int:
    """The sum of all balances of a bucket, in internal units."""
    return sum(nanos * NANO + frac for _, nanos, frac, *_ in ROW.iter_unpack(book.rows))


def check(book: Book) -> None:
    """Asserts conservation, and that the rows, extras and counters of a bucket agree."""
    for _ in checking(book):
        pass


def checking(book: Book) -> Iterator[None]:
    """`check` in slices; the book must not change between them."""
    where = f"bucket {book.bucket_id}"
    total = 0
    marked = set()
    for first in range(0, len(book.rows) // ROW.size, SLICE_ROWS):
        piece = book.rows[first * ROW.size : (first + SLICE_ROWS) * ROW.size]
        for slot, (_, nanos, frac, *_, flags) in enumerate(ROW.iter_unpack(piece), first):
            total += nanos * NANO + frac
            if flags & HAS_EXTRA:
                marked.add(slot)
        yield
    assert total == book.totals.balance(), f"{where}: balances and totals differ"
    assert marked == book.extras.keys(), f"{where}: rows and extras differ"
    pending = 0
    for count, (slot, extra) in enumerate(book.extras.items(), 1):
        if not count % SLICE_ROWS:
            yield
        _, nanos, frac, rate, _, _, flags = ROW.unpack_from(book.rows, slot * ROW.size)
        pending += sum(cutoff.status == PENDING for cutoff in extra.cutoffs)
        held = sum(amount_nanos for amount_nanos, _ in extra.holds.values())
        assert held == extra.holds_nanos, f"{where}: holds do not add up"
        in_grace = [cutoff.due_ns for cutoff in extra.cutoffs if cutoff.status == IN_GRACE]
        ends = [expires for _, expires in extra.holds.values()] + list(extra.leases.values()) + in_grace
        assert min(ends, default=NEVER_NS) == extra.next_expiry_ns, f"{where}: another hold, lease or grace ends next"
        assert not in_grace or len(extra.cutoffs) == 1, f"{where}: a cutoff beside one in grace"
        assert extra.leases.keys() <= (extra.lines or {}).keys(), f"{where}: a lease without a line"
        credits = sum(credit.left for credit in extra.credits)
        assert credits <= max(0, nanos * NANO + frac), f"{where}: credits beyond a balance"
        assert list(extra.credits) == sorted(extra.credits), f"{where}: credits out of order"
        if extra.lines is not None:
            assert sum(line_rate for line_rate, _ in extra.lines.values()) == rate, f"{where}: rate lines do not add up"
        if extra.cutoffs and extra.cutoffs[0].status in (PENDING, IN_GRACE):
            assert flags & EXHAUSTED, f"{where}: an active account with a pending cutoff"
    assert pending == book.pending_cutoffs, f"{where}: {pending} cutoffs pending, {book.pending_cutoffs} counted"
