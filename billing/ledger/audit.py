"""Conservation, held against the books themselves.

For every bucket, in internal units, exactly:

    top-ups - debits - accrued charges + adjustments - paid out on closing = the sum of all balances

The left side is added up entry by entry as commands come, the right side is read from the rows, so the two meet only
if no change of a balance went unrecorded. It is asserted whenever a bucket is dumped. (The proof for outsiders, from
the files alone, is another program's.)
"""

from billing.ledger.book import EXHAUSTED, HAS_EXTRA, ROW, Book
from billing.ledger.entry import PENDING
from billing.ledger.extra import NEVER_NS
from billing.ledger.money import NANO


def balance(book: Book) -> int:
    """The sum of all balances of a bucket, in internal units."""
    return sum(nanos * NANO + frac for _, nanos, frac, *_ in ROW.iter_unpack(book.rows))


def check(book: Book) -> None:
    """Asserts conservation, and that rows, extras and counters of a bucket agree."""
    where = f"bucket {book.bucket_id}"
    assert balance(book) == book.totals.balance(), f"{where}: balances and totals differ"
    rows = list(ROW.iter_unpack(book.rows))
    marked = {slot for slot, row in enumerate(rows) if row[-1] & HAS_EXTRA}
    assert marked == book.extras.keys(), f"{where}: rows and extras differ"
    pending = sum(cutoff.status == PENDING for extra in book.extras.values() for cutoff in extra.cutoffs)
    assert pending == book.pending_cutoffs, f"{where}: {pending} cutoffs pending, {book.pending_cutoffs} counted"
    for slot, extra in book.extras.items():
        *_, rate, _, _, flags = rows[slot]
        held = sum(amount_nanos for amount_nanos, _ in extra.holds.values())
        assert held == extra.holds_nanos, f"{where}: holds do not add up"
        nearest = min((expires for _, expires in extra.holds.values()), default=NEVER_NS)
        assert nearest == extra.next_expiry_ns, f"{where}: another hold expires next"
        if extra.lines is not None:
            assert sum(line_rate for line_rate, _ in extra.lines.values()) == rate, f"{where}: rate lines do not add up"
        if extra.cutoffs and extra.cutoffs[0].status == PENDING:
            assert flags & EXHAUSTED, f"{where}: an active account with a pending cutoff"
