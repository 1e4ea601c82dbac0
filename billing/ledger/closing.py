"""Opening and closing accounts.

An account begins with its first top_up. It can be closed only at rate 0, with no debt, no hold, no owed call and no
running grace; the entry of the closing pays out the balance. A tombstone is kept: entry_id, exhaustion_seq and the
rate_seqs of the lines (the bucket keeps the request ids, too). A later top_up opens the account again, in the default
class, and the numbers go on rising.

A restore that is owed is no obstacle where there is no restore URL any more: nobody could be called, and the account
could never be closed. Versions before refused that; replay refuses it again where they recorded the refusal.

Closing does not switch the user's machines on again: if a cutoff was sent and no restore revoked it, the tombstone
keeps that fact, and the top_up that opens the account again restores it, as it would have without the closing.
"""

from billing.ledger import cutoffs
from billing.ledger.account import Account, Rejected
from billing.ledger.book import Book, Tombstone
from billing.ledger.entry import OBSTACLES
from billing.ledger.extra import Extra, unpack
from billing.ledger.rates import QUIET_NS

_RATE, _DEBT, _HOLD, _CUTOFF = range(len(OBSTACLES))


def open_account(book: Book, user_id: bytes, at_ns: int) -> Account:
    """Opens a new or a closed account: returns a working copy without money and rate. A closed account opens at
    `at_ns`, but not before the instant at which it was closed.
    """
    account = Account(book, book.open_slot(user_id), user_id)
    account.settled_ns = at_ns
    tombstone = book.closed.pop(user_id, None)
    if tombstone is not None:
        account.settled_ns = max(at_ns, tombstone.settled_ns)
        account.entry_id = tombstone.entry_id
        account.exhaustion_seq = tombstone.exhaustion_seq
        if tombstone.off:
            account.extra = unpack(tombstone.off)
            account.exhausted = True
        quiet = {
            resource: (rate_seq, since_ns)
            for resource, rate_seq, since_ns in tombstone.quiet
            if since_ns + QUIET_NS > account.settled_ns
        }
        if quiet:
            account.need_extra().quiet = quiet
    return account


def check_closable(account: Account, restores: bool) -> None:
    """Raises Rejected `ACCOUNT_NOT_CLOSABLE` with the first obstacle to closing, if there is one. `restores`: a restore
    that is owed is one.
    """
    extra = account.extra
    if account.rate:
        raise Rejected("ACCOUNT_NOT_CLOSABLE", _RATE)
    if account.balance < 0:
        raise Rejected("ACCOUNT_NOT_CLOSABLE", _DEBT)
    if extra is not None and extra.holds:
        raise Rejected("ACCOUNT_NOT_CLOSABLE", _HOLD)
    call = cutoffs.owed_for(account)
    if (call is not None and (restores or call.kind == "cutoff")) or (extra is not None and extra.grace() is not None):
        raise Rejected("ACCOUNT_NOT_CLOSABLE", _CUTOFF)


def bury(account: Account) -> None:
    """Frees the account's row and leaves its tombstone. Removes the rate_seqs from tombstones that are 7 days old: no
    late retry can need them.
    """
    book, at_ns = account.book, account.settled_ns
    quiet = account.extra.quiet if account.extra is not None else {}
    still_quiet = tuple(
        (resource, seq, since_ns) for resource, (seq, since_ns) in quiet.items() if since_ns + QUIET_NS > at_ns
    )
    off = _off(account.extra) if account.extra is not None else b""
    book.close_slot(account.user_id)
    book.closed[account.user_id] = Tombstone(at_ns, account.entry_id, account.exhaustion_seq, still_quiet, off)
    if still_quiet:
        book.fading.append(account.user_id)
    while book.fading:
        oldest = book.closed.get(book.fading[0])
        if oldest is not None and oldest.quiet:
            if oldest.settled_ns + QUIET_NS > at_ns:
                break
            book.closed[book.fading[0]] = oldest._replace(quiet=())
        book.fading.popleft()


def _off(extra: Extra) -> bytes:
    """A packed `Extra` that holds only the cutoff for which the user's machines may be off; empty if they are not. (No
    cutoff is owed for a closed account, so the latest one is the only one.)
    """
    if extra.off_seq <= extra.on_seq:
        return b""
    stub = Extra()
    stub.cutoffs, stub.off_seq, stub.off_ns, stub.on_seq = extra.cutoffs, extra.off_seq, extra.off_ns, extra.on_seq
    return stub.pack()
