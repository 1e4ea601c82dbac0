"""The commands of every day, written out for speed: a top_up, debit or set_rate that nothing follows from.

Nearly all commands are of this kind, and they set the pace of the daemon, so this one module is fast where the others
are plain: one unpack, integers, one pack, one record; no working copy, no call that can be spared. It takes

- a top_up, a debit, or a set_rate without rate_seq, min_runway_ns and lease, of a line that has none of these either,
- of an account that was active at the command's instant, stays so, and has no threshold, no credit that ends, and no
  class, and keeps an `Extra` that it has,
- or the first top_up of an account that never was.

Whatever else, it leaves untouched and answers None; the plain way (`Account` and `Posting`) knows all rules. The model
test holds both to the same rules, and replay makes each entry again the way it was made. When it runs out is worked out
here as in `exhaustion`, without the call.

Money is kept as (nanos, frac), `nanos * NANO + frac` internal units with 0 <= frac < NANO: both fit a machine word,
while one integer of internal units does not.
"""

from typing import Final

from billing.ledger.book import HAS_EXTRA, ROW, SLOT_BITS, Book
from billing.ledger.commands import DEBIT, SET_RATE, TOP_UP, Command
from billing.ledger.entry import EVERYDAY, FIXED, FORMAT, OPENED, EntryTuple
from billing.ledger.extra import Extra
from billing.ledger.money import INT64_MAX, NANO
from billing.ledger.posting import Posting
from billing.ledger.rates import LINES_MAX

_ROW_SIZE: Final = ROW.size
_read_row: Final = ROW.unpack_from
_write_row: Final = ROW.pack_into
_pack_fixed: Final = FIXED.pack
_pack_everyday: Final = EVERYDAY.pack
_join: Final = b"".join
_NO_LINE: Final = (0, -1)  # rate and rate_seq of a line that is not there
_LINES_LEFT: Final = 2  # with as many, one that goes may leave the unnamed line alone, which is no line of an `Extra`


def carry_out(posting: Posting, book: Book, at_ns: int, command: Command) -> EntryTuple | None:  # noqa: C901 - one function, for speed
    """The entry of a command of this kind, carried out and recorded; None for another, with nothing changed."""
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
        left = nanos = frac = rate = entry_id = seq = row_flags = 0
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
        left = nanos  # this and frac are available
        if row_flags:
            left += limit_nanos - holds_nanos
        if left <= 0 and (left < 0 or not frac):
            return None  # ran out before
    if op == TOP_UP:
        amount_nanos = a
        nanos += a
        left += a
    elif op == DEBIT:
        amount_nanos = -a
        nanos -= a
        left -= a
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
    if (left <= 0 and (left < 0 or not frac)) or nanos >= INT64_MAX:
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
        runs_out_ns = at_ns - (-(left * NANO + frac) // rate)
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
