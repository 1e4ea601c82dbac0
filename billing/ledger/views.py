"""Accounts, cutoffs and owed calls as replies show them, where the reply is not made from an entry alone."""

from collections.abc import Collection, Iterator

from billing.ledger import cutoffs
from billing.ledger.account import Account
from billing.ledger.book import ROW, Book
from billing.ledger.cutoffs import Owed
from billing.ledger.entry import DELIVERED, class_name, cutoff_map, event_id, text, threshold_maps
from billing.ledger.exhaustion import exhaustion_ns
from billing.ledger.extra import NEVER_NS, Cutoff, Extra
from billing.ledger.money import INT64_MAX, NANO
from billing.ledger.schedule import coming_ns


def account_map(account: Account, bucket_id: int, call_at_ns: int) -> dict[str, object]:
    """Everything about an account, from a working copy settled to the instant of the request. `call_at_ns`: the instant
    of the next call to the cutoff URL; NEVER_NS if none is coming.
    """
    balance_nanos = account.balance // NANO
    at_ns = account.settled_ns
    runs_out_ns = account.runs_out_ns()
    coming = runs_out_ns <= INT64_MAX
    extra = account.extra if account.extra is not None else Extra()
    return {
        "user_id": account.user_id.decode(),
        "bucket_id": bucket_id,
        "state": "exhausted" if account.exhausted else "active",
        "balance_nanos": balance_nanos,
        "credit_limit_nanos": account.credit_limit_nanos,
        "available_nanos": balance_nanos + account.credit_limit_nanos - account.holds_nanos,
        "rate_nanos_per_hour": account.rate,
        "rate_nanos_per_second": account.rate // 3600,
        "exhausts_at_ns": runs_out_ns if coming else None,
        "runway_ns": runs_out_ns - at_ns if coming else None,
        "exhaustion_seq": account.exhaustion_seq,
        "entry_id": account.entry_id,
        "at_ns": at_ns,
        "replayed": False,
        "rates": _rates(account, extra),
        "credits": [
            {
                "kind": text(credit.kind),
                "amount_nanos": credit.amount_nanos,
                "left_nanos": credit.left // NANO,
                "expires_at_ns": credit.ends_ns,
                "entry_id": credit.entry_id,
            }
            for credit in account.credits
        ],
        "leases": {resource.decode(): ends_ns for resource, ends_ns in extra.leases.items()},
        "class": class_name(extra.class_name),
        "cutoff_at_ns": call_at_ns if call_at_ns <= INT64_MAX else None,
        "cutoff": cutoff_row(account.user_id, extra.cutoffs[-1]) if extra.cutoffs else None,
        "overrun_nanos": account.overrun // NANO,
        "holds_nanos": account.holds_nanos,
        "holds": _holds(extra),
        "thresholds": threshold_maps(extra.thresholds),
    }


def account_row(account: Account, now_ns: int, shown: Collection[str], call_at_ns: int) -> dict[str, object]:
    """The row of an account at `now_ns`, from a working copy, as `accounts` lists it. An exhaustion that is due by then
    and not recorded yet is shown as if it were recorded. `shown`: the columns that are added, of `rates` and `holds`.
    `call_at_ns`: the instant of the next call to the cutoff URL; NEVER_NS if none is coming.
    """
    at_ns = max(account.settled_ns, min(now_ns, account.runs_out_ns()))
    account.settle(at_ns, accrue=False)
    balance_nanos, available = account.balance // NANO, account.available
    runs_out_ns = account.runs_out_ns()
    row: dict[str, object] = {
        "user_id": account.user_id.decode(),
        "state": "active" if available > 0 else "exhausted",
        "balance_nanos": balance_nanos,
        "available_nanos": balance_nanos + account.credit_limit_nanos - account.holds_nanos,
        "rate_nanos_per_hour": account.rate,
        "exhausts_at_ns": runs_out_ns if runs_out_ns <= INT64_MAX else None,
        "class": class_name(b"" if account.extra is None else account.extra.class_name),
        "cutoff_at_ns": call_at_ns if now_ns < call_at_ns <= INT64_MAX else None,
    }
    extra = account.extra if account.extra is not None else Extra()
    if "rates" in shown:
        row["rates"] = _rates(account, extra)
    if "holds" in shown:
        row["holds"] = _holds(extra)
    return row


def owed_in(book: Book) -> Iterator[tuple[bytes, Owed]]:
    """Every account of a bucket for which a call is owed, with the call."""
    for slot, extra in book.extras.items():
        user_id = book.users[slot]
        call = cutoffs.owed(user_id, extra, book.is_exhausted(slot))
        if call is not None:
            yield user_id, call


def delivered_in(book: Book) -> Iterator[tuple[bytes, int]]:
    """Every account of a bucket whose latest cutoff got its 2xx and is not effective yet, with the cutoff's seq."""
    for slot, extra in book.extras.items():
        if extra.cutoffs and extra.cutoffs[-1].status == DELIVERED:
            yield book.users[slot], extra.cutoffs[-1].seq


def next_cutoff(book: Book, slot: int) -> tuple[bytes, str, int, int] | None:
    """(user_id, event_id, seq, E) of the cutoff that the account in this row will have if nothing else happens; None if
    it will have none. None also for an account in a class, whose call may come later and go to another URL.
    """
    user_id = book.users[slot] if slot < len(book.users) else b""
    if not user_id:
        return None
    settled_ns, nanos, frac, rate, _, seq, flags = ROW.unpack_from(book.rows, slot * ROW.size)
    if not flags:  # as nearly all: active, and nothing but the exhaustion can be coming
        runs_out_ns = exhaustion_ns(settled_ns, nanos * NANO + frac, rate) if rate else NEVER_NS
    else:
        account = Account(book, slot, user_id)
        if account.extra is not None and account.extra.class_name:
            return None
        runs_out_ns = account.runs_out_ns()
    seq += 1
    return (user_id, event_id(user_id, seq, runs_out_ns), seq, runs_out_ns) if runs_out_ns < NEVER_NS else None


def due_within(book: Book, until_ns: int) -> int:
    """The first coming instant of any account of the bucket up to `until_ns`; -1 if there is none. An account is never
    filed behind its coming instant, so the function looks only at accounts filed up to `until_ns`.
    """
    users = book.users
    filed = [slot for slot, filed_ns in enumerate(book.armed_ns) if filed_ns <= until_ns and users[slot]]
    due_ns = min((coming_ns(Account(book, slot, users[slot])) for slot in filed), default=NEVER_NS)
    return due_ns if due_ns <= until_ns else -1


def pending_rows(user_id: bytes, extra: Extra) -> list[dict[str, object]]:
    """The rows of one account in the reply of `pending_cutoffs`, by seq."""
    return [
        {
            "user_id": user_id.decode(),
            "event_id": event_id(user_id, cutoff.seq, cutoff.exhausted_at_ns),
            "seq": cutoff.seq,
            "exhausted_at_ns": cutoff.exhausted_at_ns,
            "attempts": cutoff.attempts,
            "last_error": text(cutoff.last_error) if cutoff.last_error else None,
        }
        for cutoff in extra.pending()
    ]


def lines(account: Account) -> tuple[tuple[bytes, int], ...]:
    """(resource, nanos per hour) of each line above zero."""
    extra = account.extra
    if extra is None or extra.lines is None:
        return ((b"", account.rate),) if account.rate else ()
    return tuple((resource, rate) for resource, (rate, _) in extra.lines.items())


def _rates(account: Account, extra: Extra) -> dict[str, int]:
    """Nanos per hour of each line above zero, by resource."""
    if extra.lines is None:
        return {"": account.rate} if account.rate else {}
    return {resource.decode(): rate for resource, (rate, _) in extra.lines.items()}


def _holds(extra: Extra) -> list[dict[str, object]]:
    """Each open hold."""
    return [
        {
            "hold_id": text(name),
            "amount_nanos": amount_nanos,
            "expires_at_ns": expires_ns if expires_ns != NEVER_NS else None,
        }
        for name, (amount_nanos, expires_ns) in extra.holds.items()
    ]


def cutoff_row(user_id: bytes, c: Cutoff) -> dict[str, object]:
    """A cutoff as `get_account` shows it: as `cutoff_map` does, and the instants of its 2xx and of its restore's 2xx,
    None if there was none.
    """
    row = cutoff_map(user_id, c.seq, c.exhausted_at_ns, c.status, c.attempts, c.last_error)
    row["delivered_at_ns"] = c.delivered_ns or None
    row["restored_at_ns"] = c.restored_ns or None
    return row
