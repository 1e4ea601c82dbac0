"""The most frequent changes, written out for speed: everyday commands, and the three entries that each cutoff makes.

Nearly all commands are a top_up, debit or set_rate that crosses nothing, and they decide how fast the daemon is. So
this one module is fast where the others are plain: one unpack, integers, one pack, one record; no working copy, no
avoidable call. It takes

- a top_up, a debit, or a set_rate without rate_seq, min_runway_ns and lease, of a line that has none of these either,
- of an account that was active at the command's instant and stays active, that has no threshold, no credit that ends
  and no class, and that does not lose its `Extra`, if it has one, by the command,
- or the first top_up of an account that never existed.

When thousands of accounts run out at one instant, each makes three entries: the account ran out, its call began, and
the call got a 2xx. This module writes these out, too, for accounts for which time has no other event coming. Before
that, the wheel asks several times for the coming instant of each account; `next_due_ns` answers for many at once.

For everything else these functions change nothing and return None or False; the caller then takes the plain path
(`Account` and `Posting`), which implements all rules. The model test checks that both follow the same rules, and replay
makes the entries of time and of delivery again on the plain path. E is computed here by the formula of `exhaustion`,
without the call.

Money is kept as (nanos, frac), `nanos * NANO + frac` internal units with 0 <= frac < NANO: both fit a machine word,
while one integer of internal units does not.
"""

from collections.abc import Sequence
from typing import Final

from billing.ledger.account import BALANCE_MAX, Account
from billing.ledger.book import ACCRUING, EXHAUSTED, HAS_EXTRA, ROW, SLOT_BITS, SLOT_MASK, Book, Filing
from billing.ledger.commands import CUTOFF_DELIVERED, CUTOFF_STARTED, DEBIT, EXHAUST, SET_RATE, TOP_UP, Command
from billing.ledger.entry import ACCRUING as ENTRY_ACCRUING
from billing.ledger.entry import (
    CROSSED,
    DELIVERED,
    EFFECTIVE,
    EVERYDAY,
    FIXED,
    FORMAT,
    OPENED,
    PENDING,
    RAN_OUT,
    REPORTED,
    RULE_ACCRUE,
    EntryTuple,
)
from billing.ledger.entry import EXHAUSTED as ENTRY_EXHAUSTED
from billing.ledger.extra import NEVER_NS, Cutoff, Extra
from billing.ledger.money import INT64_MAX, NANO
from billing.ledger.posting import Posting
from billing.ledger.rates import LINES_MAX
from billing.ledger.schedule import coming_ns

_ROW_SIZE: Final = ROW.size
_read_row: Final = ROW.unpack_from
_write_row: Final = ROW.pack_into
_pack_fixed: Final = FIXED.pack
_pack_everyday: Final = EVERYDAY.pack
_pack_ran_out: Final = RAN_OUT.pack
_pack_reported: Final = REPORTED.pack
_join: Final = b"".join
_NO_LINE: Final = (0, -1)  # rate and rate_seq of a line that does not exist
_BARE_REPORT: Final = (0, 0, b"", b"", b"", b"", b"")  # the fields of a report behind `seq`, all empty
_LINES_LEFT: Final = 2  # with so few, removing one may leave only the unnamed line, which an `Extra` does not keep


def carry_out(posting: Posting, book: Book, at_ns: int, command: Command) -> EntryTuple | None:  # noqa: C901 - one function, for speed
    """Carries out and records an everyday command and returns its entry.

    For any other command it changes nothing and returns None.
    """
    op, user_id, a, b, c, key, request_id, message, options, actor = command
    if options or (key and op != SET_RATE):
        return None
    flags = posting.flags
    lines = None
    line_rate = spent = spent_nanos = spent_frac = 0
    is_of_lines = False
    slot = book.slots.get(user_id)
    if slot is None:
        if op != TOP_UP or not 0 < a < INT64_MAX or user_id in book.closed:
            return None
        slot = book.open_slot(user_id)
        flags |= OPENED
        available = nanos = frac = rate = entry_id = seq = row_flags = 0
    else:
        settled_ns, nanos, frac, rate, entry_id, seq, row_flags = _read_row(book.rows, slot * _ROW_SIZE)
        if at_ns < settled_ns:
            at_ns = settled_ns
        if row_flags:
            if row_flags != HAS_EXTRA:  # exhausted
                return None
            extra = book.extras[slot]
            if (
                extra.thresholds
                or extra.credits
                or extra.class_name
                or extra.next_expiry_ns <= at_ns
                or (op == SET_RATE and (extra.quiet or extra.leases))
            ):
                return None
            lines = extra.lines
            limit_nanos, holds_nanos, overrun = extra.credit_limit_nanos, extra.holds_nanos, extra.overrun
            assert holds_nanos >= 0, "holds left their bounds"
            assert (holds_nanos > 0) == bool(extra.holds), "holds do not add up"
            assert limit_nanos >= 0, "the credit limit left its bounds"
        spent = rate * (at_ns - settled_ns)
        if spent:
            spent_nanos, spent_frac = divmod(spent, NANO)
            nanos -= spent_nanos
            frac -= spent_frac
            if frac < 0:
                frac += NANO
                nanos -= 1
        available = nanos  # (available, frac) is what is available
        if row_flags:
            available += limit_nanos - holds_nanos
        if available <= 0 and (available < 0 or not frac):
            return None  # ran out before
    if op == TOP_UP:
        amount_nanos = a
        nanos += a
        available += a
    elif op == DEBIT:
        amount_nanos = -a
        nanos -= a
        available -= a
    elif op == SET_RATE and b == c == -1:
        amount_nanos = 0
        line_rate = a
        if not key and lines is None:
            rate = a
        else:
            is_of_lines = True
            old_total, old_rate = rate, 0
            if lines is not None:
                old_rate, rate_seq = lines.get(key, _NO_LINE)
                if rate_seq >= 0 or len(lines) >= LINES_MAX or (not a and len(lines) <= _LINES_LEFT):
                    return None
            elif not a:
                return None
            rate += a - old_rate
            if rate > INT64_MAX:
                return None
    else:
        return None
    if (available <= 0 and (available < 0 or not frac)) or nanos >= INT64_MAX:
        return None  # exhausts, or comes to the bound
    if is_of_lines:
        if not row_flags:
            extra = book.extras[slot] = Extra()
            row_flags = HAS_EXTRA
            limit_nanos = holds_nanos = overrun = 0
        if lines is None:
            lines = extra.lines = {b"": (old_total, -1)} if old_total else {}
        lines.pop(key, None)
        if a:
            lines[key] = (a, -1)  # behind all others, as the plain way has it
    entry_id += 1
    runs_out_ns = -1
    if rate:
        runs_out_ns = at_ns - (-(available * NANO + frac) // rate)
        if runs_out_ns > INT64_MAX:
            runs_out_ns = -1
        elif runs_out_ns < book.armed_ns[slot]:
            book.armed_ns[slot] = posting.arm(book.bucket_id << SLOT_BITS | slot, runs_out_ns)
    _write_row(book.rows, slot * _ROW_SIZE, at_ns, nanos, frac, rate, entry_id, seq, row_flags)
    totals = book.totals
    if spent:
        totals.accrued += spent
    if op == TOP_UP:
        totals.top_ups += a * NANO
    elif op == DEBIT:
        totals.debits += a * NANO
    if row_flags:
        overrun_nanos, overrun_frac = divmod(overrun, NANO)
        fixed = _pack_fixed(
            FORMAT, op, flags, 0, a, b, c, at_ns, entry_id, amount_nanos, 0, spent_nanos, spent_frac, nanos, frac, rate,
            line_rate, limit_nanos, holds_nanos, runs_out_ns, seq, overrun_nanos, overrun_frac,
            len(user_id), len(key), len(request_id), len(message), 0, len(actor), 0,
        )  # fmt: skip
    else:
        limit_nanos = holds_nanos = overrun_nanos = overrun_frac = 0
        fixed = _pack_everyday(
            FORMAT, op, flags, a, b, c, at_ns, entry_id, amount_nanos, spent_nanos, spent_frac, nanos, frac, rate,
            line_rate, runs_out_ns, seq, len(user_id), len(request_id), len(message), len(actor),
        )  # fmt: skip
    packed = _join((fixed, user_id, key, request_id, message, actor))
    posting.records.append((book.bucket_id, packed))
    if request_id:
        book.ids.put(user_id, request_id, packed, at_ns, posting.ids_max)
    return (
        op, flags, 0, a, b, c, at_ns, entry_id, amount_nanos, 0, spent_nanos, spent_frac, nanos, frac, rate,
        line_rate, limit_nanos, holds_nanos, runs_out_ns, seq, overrun_nanos, overrun_frac,
        user_id, key, request_id, message, options, actor, b"",
    )  # fmt: skip


def next_due_ns(books: dict[int, Book], filings: Sequence[Filing]) -> list[int]:
    """The coming instant of each of these accounts; -1 if the filing is not the account's live one, or nothing is
    coming: then it has no live filing any more.
    """
    coming: list[int] = []
    for ref, filed_ns in filings:
        book = books.get(ref >> SLOT_BITS)
        slot = ref & SLOT_MASK
        if book is None or slot >= len(book.users) or book.armed_ns[slot] != filed_ns or not book.users[slot]:
            coming.append(-1)
            continue
        settled_ns, nanos, frac, rate, _, _, row_flags = _read_row(book.rows, slot * _ROW_SIZE)
        if row_flags:
            due_ns = coming_ns(Account(book, slot, book.users[slot]))
        else:  # active, and nothing but the exhaustion can be coming
            due_ns = settled_ns - (-(nanos * NANO + frac) // rate) if rate else NEVER_NS
        if due_ns > INT64_MAX:
            book.armed_ns[slot] = NEVER_NS
            due_ns = -1
        coming.append(due_ns)
    return coming


def run_out(posting: Posting, book: Book, slot: int, now_ns: int) -> bool:
    """Records the exhaustion of an account if that is due by `now_ns` and nothing else is coming for the account; there
    is then nothing to file it for. In any other case returns False and changes nothing.
    """
    settled_ns, nanos, frac, rate, entry_id, seq, row_flags = _read_row(book.rows, slot * _ROW_SIZE)
    if not rate or (row_flags and row_flags != HAS_EXTRA):
        return False
    balance = available = nanos * NANO + frac
    if row_flags:
        extra = book.extras[slot]
        if extra.thresholds or extra.credits or extra.class_name or extra.next_expiry_ns != NEVER_NS:
            return False
        if extra.cutoffs and (len(extra.cutoffs) > 1 or extra.cutoffs[0].status == PENDING):
            return False
        available += (extra.credit_limit_nanos - extra.holds_nanos) * NANO
    due_ns = settled_ns - (-available // rate)
    spent = rate * (due_ns - settled_ns)
    if due_ns > now_ns or spent > BALANCE_MAX + min(balance, available):
        return False
    beyond = spent - available
    flags = posting.flags | CROSSED | ENTRY_EXHAUSTED
    exhausted = EXHAUSTED | HAS_EXTRA
    if flags & RULE_ACCRUE:
        flags |= ENTRY_ACCRUING
        exhausted |= ACCRUING
    else:
        spent -= beyond
    nanos, frac = divmod(balance - spent, NANO)
    entry_id += 1
    seq += 1
    if seq < posting.seq_floor:
        seq = posting.seq_floor
    if row_flags:
        extra.cutoffs.clear()
    else:
        extra = book.extras[slot] = Extra()
    extra.cutoffs.append(Cutoff(seq, due_ns))
    extra.overrun = min(extra.overrun + beyond, BALANCE_MAX)
    book.pending_cutoffs += 1
    _write_row(book.rows, slot * _ROW_SIZE, due_ns, nanos, frac, rate, entry_id, seq, exhausted)
    book.totals.accrued += spent
    user_id = book.users[slot]
    spent_nanos, spent_frac = divmod(spent, NANO)
    overrun_nanos, overrun_frac = divmod(extra.overrun, NANO)
    fixed = _pack_ran_out(
        FORMAT, EXHAUST, flags, due_ns, entry_id, spent_nanos, spent_frac, nanos, frac, rate,
        extra.credit_limit_nanos, extra.holds_nanos, -1, seq, overrun_nanos, overrun_frac, len(user_id),
    )  # fmt: skip
    posting.records.append((book.bucket_id, fixed + user_id))
    posting.notices.append(("cutoff", settled_ns, book.bucket_id, user_id, seq))
    return True


def report(posting: Posting, book: Book, at_ns: int, command: Command) -> bool:
    """Records that the call for the only cutoff of an exhausted account began, or got a 2xx. For any other report, and
    for an account for which an event of time may be due, returns False and changes nothing.
    """
    op, user_id, seq = command[:3]
    slot = book.slots.get(user_id)
    if slot is None or (op != CUTOFF_STARTED and op != CUTOFF_DELIVERED) or command[3:] != _BARE_REPORT:
        return False
    settled_ns, nanos, frac, rate, _, newest, row_flags = _read_row(book.rows, slot * _ROW_SIZE)
    if not row_flags & EXHAUSTED:
        return False
    extra = book.extras[slot]
    if extra.thresholds or extra.credits or extra.class_name or len(extra.cutoffs) != 1:
        return False
    if at_ns < settled_ns:
        at_ns = settled_ns
    cutoff = extra.cutoffs[0]
    if cutoff.seq != seq or cutoff.status != PENDING or extra.next_expiry_ns <= at_ns:
        return False
    if op == CUTOFF_STARTED:
        cutoff.attempts += 1
        if seq > extra.off_seq:
            extra.off_seq, extra.off_ns = seq, cutoff.exhausted_at_ns
    elif seq > extra.off_seq:
        return False
    else:
        book.pending_cutoffs -= 1
        cutoff.last_error = b""
        cutoff.delivered_ns = at_ns
        cutoff.status = DELIVERED if rate else EFFECTIVE
    flags = posting.flags | ENTRY_EXHAUSTED
    if row_flags & ACCRUING:
        flags |= ENTRY_ACCRUING
    overrun_nanos, overrun_frac = divmod(extra.overrun, NANO)
    fixed = _pack_reported(
        FORMAT, op, flags, seq, at_ns, nanos, frac, rate, extra.credit_limit_nanos, extra.holds_nanos, -1, newest,
        overrun_nanos, overrun_frac, len(user_id),
    )  # fmt: skip
    posting.records.append((book.bucket_id, fixed + user_id))
    return True
