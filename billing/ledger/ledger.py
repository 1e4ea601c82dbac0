"""The ledger: the only place where accounts change.

A state machine without I/O. `apply(bucket_id, at_ns, command)` first lets happen what time has made due for the
account, each at its exact instant, then the command, and appends one packed entry per change to `records`. What
became owed to the outside is appended to `notices`. The caller drains both. Same state and same command, same
outcome, byte for byte; `replay` is the same code again and compares.

Order at one instant: all holds' expiries, then the ends of credits, then the exhaustion, then the end of a grace, then
the ends of leases, then thresholds; then the command; and behind any change the thresholds that it crossed.

What time costs: nothing is done while time passes. An account is looked at when a command comes, or when its coming
instant (the nearest of expiry, end of a credit, exhaustion, end of a grace, end of a lease, threshold) comes up in the
caller's wheel. `arm(ref, due_ns) -> filed_ns` is only called where the coming instant lies before the live filing.

The most frequent commands go the fast way, `fast_path.carry_out`, which is written out for them. Everything else goes
the plain way through `Account`; the model test holds both to the same rules.

A refusal changes nothing. It is recorded as an entry if it has a request_id, because a retry must be refused alike,
and if it is a debit, because somebody may have asked to be told.
"""

from array import array
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from billing.ledger import (
    audit,
    balances,
    block,
    classes,
    closing,
    cutoffs,
    fast_path,
    rates,
    schedule,
    thresholds,
    views,
)
from billing.ledger import commands as ops
from billing.ledger.account import Account, Handlers, Rejected
from billing.ledger.book import ROW, SLICE_ROWS, SLOT_BITS, Book
from billing.ledger.classes import NO_CLASSES, Classes
from billing.ledger.commands import Command
from billing.ledger.cutoffs import Owed
from billing.ledger.entry import (
    CROSSED,
    OPENED,
    PRESUMED,
    REFUSED,
    REPLAYED,
    RULE_ACCRUE,
    RULE_RESTORE,
    Entry,
    EntryTuple,
    cause_of,
    class_name,
    grace_end_of,
    is_first,
    pack_first,
    refused,
    unpack,
)
from billing.ledger.errors import Refused
from billing.ledger.exhaustion import exhaustion_ns
from billing.ledger.extra import NEVER_NS
from billing.ledger.money import INT64_MAX, NANO
from billing.ledger.posting import Arm, Posting

_HANDLERS: Final[Handlers] = {**balances.HANDLERS, **rates.HANDLERS, **thresholds.HANDLERS, **classes.HANDLERS}
_REPORTS: Final = range(ops.CUTOFF_STARTED, ops.CUTOFF_RETRY + 1)

_SLOT_MASK: Final = (1 << SLOT_BITS) - 1

RETRY: Final = "retry"  # the notice by which an operator wants what is owed tried at once


class Rules(NamedTuple):
    """What the configuration decides about the ledger."""

    accrue: bool  # an exhaustion goes on below zero
    request_ids_per_bucket: int  # kept at most, 1 or more
    restore: bool  # there is a restore URL
    rate_lease_ns: int = 0  # the lease of a rate that is reported without one; 0: none
    classes: Classes = NO_CLASSES  # of cutoffs, by name; the default is not among them


class ReplayDifference(Exception):
    """Replay came to another entry than the journal holds. The message shows both."""

    def __init__(self, recorded: bytes | None, replayed: bytes | None) -> None:
        self.recorded = None if recorded is None else Entry._make(unpack(recorded))
        self.replayed = None if replayed is None else Entry._make(unpack(replayed))
        super().__init__(f"the journal holds {self.recorded}, replay made {self.replayed}")


class Ledger:
    """All accounts of the buckets that are here. `records` and `notices` stay the same lists; the caller empties
    them.
    """

    def __init__(self, rules: Rules, arm: Arm) -> None:
        assert rules.request_ids_per_bucket >= 1
        self._rules = rules
        self._own_flags = (RULE_ACCRUE if rules.accrue else 0) | (RULE_RESTORE if rules.restore else 0)
        self._rate_lease_ns = rules.rate_lease_ns
        self._posting = Posting(self._own_flags, rules.request_ids_per_bucket, arm, rules.classes)
        self.books: dict[int, Book] = {}
        self.records = self._posting.records  # (bucket_id, packed entry); in replay: made, not yet seen in the journal
        self.notices = self._posting.notices

    # -- commands ------------------------------------------------------------------------------------------------------

    def apply(self, bucket_id: int, at_ns: int, command: Command) -> EntryTuple:
        """Carries out a command stamped `at_ns`; returns its entry, or the stored one of its request_id (REPLAYED).

        Raises `Refused`, which has changed nothing. KeyError for a bucket that is not here: a bug of the caller.
        """
        book = self.books[bucket_id]
        request_id = command[6]
        if request_id:
            packed = book.ids.find(command[1], request_id, at_ns)
            if packed is not None:
                return self._again(bucket_id, packed, command)
        if self._rate_lease_ns:
            command = rates.with_lease(command, self._rate_lease_ns)
        entry = fast_path.carry_out(self._posting, book, at_ns, command)
        return self._uncommon(book, at_ns, command) if entry is None else entry

    def report(self, bucket_id: int, at_ns: int, command: Command) -> None:
        """`apply` of a report of delivery, whose entry nobody asks for."""
        book = self.books[bucket_id]
        if not fast_path.report(self._posting, book, at_ns, command):
            self._change(book, at_ns, command)

    def rehearse(self, bucket_id: int, at_ns: int, command: Command) -> EntryTuple:
        """The entry that `apply` would make now, or its `Refused`; nothing changes, is recorded or owed. The command is
        carried out on a copy of its account, alone in a ledger of its own.
        """
        book, user_id, request_id = self.books[bucket_id], command[1], command[6]
        stage = book.excerpt(user_id)
        if request_id and (stored := book.ids.find(user_id, request_id, at_ns)) is not None:
            stage.ids.restore(stored)
        ledger = Ledger(self._rules, lambda _, due_ns: due_ns)
        ledger.books[bucket_id] = stage
        return ledger.apply(bucket_id, at_ns, command)

    def _again(self, bucket_id: int, packed: bytes, command: Command) -> EntryTuple:
        """The first answer once more, or a conflict."""
        op, flags, *rest = unpack(packed)
        stored = (op, flags | REPLAYED, *rest)
        if not ops.same_call(Entry._make(stored).command, command):
            raise Refused("REQUEST_ID_CONFLICT", "this request_id was used with other parameters or another method")
        if flags & REFUSED:
            raise refused(stored, bucket_id)
        return stored

    def _uncommon(self, book: Book, at_ns: int, command: Command) -> EntryTuple:
        """A command that is not one of every day. Refuses a class that the rules do not have: in replay it is not
        asked for, since they may have had it then.
        """
        if command[0] == ops.SET_CLASS and command[5] and command[5] not in self._rules.classes:
            name = class_name(command[5])
            message = f"cutoff.class.{name} is not in the configuration"
            raise Refused("INVALID_PARAMS", message, {"class": name})
        return self._change(book, at_ns, command)

    def _change(self, book: Book, at_ns: int, command: Command) -> EntryTuple:
        """The plain way: time first, then the command, then what follows from it."""
        op, user_id = command[0], command[1]
        slot = book.slots.get(user_id)
        if slot is None:
            return self._open(book, at_ns, command)
        account = Account(book, slot, user_id)
        at_ns = max(at_ns, account.settled_ns)
        self._posting.pass_time(account, at_ns)
        if op in _REPORTS:
            return self._posting.report(account, at_ns, command)
        accrued = account.settle(at_ns, False)
        before = account.balance
        armed = thresholds.above(account)
        try:
            if op == ops.CLOSE:
                closing.check_closable(account)
                return self._posting.close(account, command, accrued)
            _HANDLERS[op](account, command)
        except Rejected as no:
            raise self._posting.refuse(account, command, no) from None
        entry = self._posting.conclude(account, command, before, accrued, armed, at_ns)
        self._posting.rearm(account)
        return entry

    def _open(self, book: Book, at_ns: int, command: Command) -> EntryTuple:
        """An account begins with its first top_up."""
        if command[0] != ops.TOP_UP:
            raise Refused("UNKNOWN_ACCOUNT", "there is no such account")
        tombstone = book.closed.get(command[1])
        balances.check_end(command, at_ns if tombstone is None else max(at_ns, tombstone.settled_ns))
        account = closing.open_account(book, command[1], at_ns)
        balances.top_up(account, command)
        entry = self._posting.conclude(account, command, 0, 0, [], account.settled_ns, OPENED)
        self._posting.rearm(account)
        return entry

    # -- replay and buckets --------------------------------------------------------------------------------------------

    def replay(self, bucket_id: int, packed: bytes) -> None:
        """Applies a recorded entry again. Raises ReplayDifference unless the same comes out, byte for byte (in the
        first format, where the recorded one is of that).
        """
        made_again = self.records
        if not made_again:
            self._make_again(self.books[bucket_id], packed)
        remade = made_again.pop(0) if made_again else None
        if remade == (bucket_id, packed):
            return
        if remade is None or remade[0] != bucket_id or not is_first(packed) or pack_first(unpack(remade[1])) != packed:
            raise ReplayDifference(packed, None if remade is None else remade[1])
        entry = Entry._make(unpack(packed))
        if entry.request_id:
            self.books[bucket_id].ids.keep_as(entry.user_id, entry.request_id, packed)

    def replayed(self) -> None:
        """Replay is over: everything that was made again was also in the journal."""
        if self.records:
            raise ReplayDifference(None, self.records[0][1])

    def _make_again(self, book: Book, packed: bytes) -> None:
        """Fills `records` with the entry of a record and those that its change made behind it, by the rules of its
        time.
        """
        flags, at_ns, command = cause_of(packed)
        posting = self._posting
        posting.flags = flags & (RULE_ACCRUE | RULE_RESTORE)
        posting.presumed = flags & PRESUMED != 0
        may_be_grace = flags & CROSSED or (command[0] == ops.SET_CLASS and not flags & REFUSED)
        posting.grace_end_ns = grace_end_of(packed) if may_be_grace and not is_first(packed) else -1
        try:
            if command[0] not in ops.BY_TIME:
                if fast_path.carry_out(posting, book, at_ns, command) is None:
                    self._change(book, at_ns, command)
            elif (user_id := command[1]) in book.slots:
                account = Account(book, book.slots[user_id], user_id)
                if (due_ns := schedule.coming_ns(account)) <= at_ns:
                    posting.pass_one(account, due_ns)
        except Refused:
            pass  # what the record says, too, or else there is no entry to compare it with
        finally:
            posting.flags = self._own_flags
            posting.presumed = None
        self.notices.clear()

    def started(self, now_ns: int) -> None:
        """Recovery is over at this instant: pending cutoffs, and cutoffs that fell due before, may have been attempted,
        since an attempt waits neither for its own record nor for the record of an exhaustion that time caused.
        """
        self._posting.started_ns = now_ns
        for bucket_id in self.books:
            self.presume_attempted(bucket_id)

    def presume_attempted(self, bucket_id: int) -> None:
        """What is pending in this bucket may have been attempted."""
        for extra in self.books[bucket_id].extras.values():
            pending = extra.pending()
            if pending:
                extra.presumed_seq = pending[-1].seq

    def create(self, bucket_id: int) -> None:
        """An empty bucket, in which time stands still until `wake`."""
        assert bucket_id not in self.books, f"bucket {bucket_id} is here already"
        self.books[bucket_id] = Book(bucket_id)

    def dump(self, bucket_id: int) -> bytes:
        """The whole bucket as one block; equal states give equal bytes. Asserts conservation first."""
        audit.check(self.books[bucket_id])
        return block.dump(self.books[bucket_id])

    def load(self, bucket_id: int, dumped: bytes) -> None:
        """Makes the bucket that `dump` wrote; time stands still in it until `wake`. ValueError for another one's."""
        self.put(block.load(bucket_id, dumped))

    def put(self, book: Book) -> None:
        """A bucket that `block.loading` made."""
        assert book.bucket_id not in self.books, f"bucket {book.bucket_id} is here already"
        self.books[book.bucket_id] = book

    def drop(self, bucket_id: int) -> None:
        """Forgets a bucket. Its filings in the wheel are stale."""
        del self.books[bucket_id]

    # -- time ----------------------------------------------------------------------------------------------------------

    def tick(self, ref: int, now_ns: int) -> None:
        """The wheel took `ref` out: lets happen what is due for that account, and files it again."""
        book = self.books.get(ref >> SLOT_BITS)
        slot = ref & _SLOT_MASK
        if book is None or not book.awake or slot >= len(book.users) or not book.users[slot]:
            return
        book.armed_ns[slot] = NEVER_NS
        if not fast_path.run_out(self._posting, book, slot, now_ns):
            self._posting.catch_up(Account(book, slot, book.users[slot]), now_ns)

    def next_due_ns(self, ref: int, filed_ns: int) -> int:
        """For the wheel: the coming instant of the account; -1 when the filing is not its live one, or nothing is
        coming.
        """
        book = self.books.get(ref >> SLOT_BITS)
        slot = ref & _SLOT_MASK
        if book is None or slot >= len(book.users) or book.armed_ns[slot] != filed_ns or not book.users[slot]:
            return -1
        settled_ns, nanos, frac, rate, _, _, flags = ROW.unpack_from(book.rows, slot * ROW.size)
        if flags:
            due_ns = schedule.coming_ns(Account(book, slot, book.users[slot]))
        else:  # active, and nothing but the exhaustion can be coming
            due_ns = exhaustion_ns(settled_ns, nanos * NANO + frac, rate) if rate else NEVER_NS
        if due_ns > INT64_MAX:
            book.armed_ns[slot] = NEVER_NS
            return -1
        return due_ns

    def moved(self, ref: int, filed_ns: int) -> None:
        """The wheel moved the live filing of an account."""
        self.books[ref >> SLOT_BITS].armed_ns[ref & _SLOT_MASK] = filed_ns

    def wake(self, bucket_id: int) -> None:
        """Time passes in this bucket from now on: every account with a coming instant is filed."""
        for _ in self.waking(bucket_id):
            pass

    def waking(self, bucket_id: int) -> Iterator[None]:
        """`wake` in slices, between which the bucket may be used; it ends early where the bucket leaves again."""
        book = self.books[bucket_id]
        book.awake = True
        posting, first_ref = self._posting, bucket_id << SLOT_BITS
        for first in range(0, len(book.users), SLICE_ROWS):
            if first:
                yield
            if not book.awake or self.books.get(bucket_id) is not book:
                return
            armed_ns, users = book.armed_ns, book.users[first : first + SLICE_ROWS]
            rows = book.rows[first * ROW.size : (first + len(users)) * ROW.size]
            for slot, (user_id, row) in enumerate(zip(users, ROW.iter_unpack(rows), strict=True), first):
                if user_id:
                    armed_ns[slot] = NEVER_NS
                    settled_ns, nanos, frac, rate, _, _, flags = row
                    if flags:
                        posting.rearm(Account(book, slot, user_id))
                    elif rate:  # active, and nothing but the exhaustion is coming
                        due_ns = exhaustion_ns(settled_ns, nanos * NANO + frac, rate)
                        if due_ns <= INT64_MAX:
                            armed_ns[slot] = posting.arm(first_ref | slot, due_ns)

    def still(self, bucket_id: int) -> None:
        """Time stands still in this bucket: all filings are stale, none is made."""
        book = self.books[bucket_id]
        book.awake = False
        book.armed_ns = array("Q", bytes(8 * len(book.users)))

    # -- reading -------------------------------------------------------------------------------------------------------

    def view(self, bucket_id: int, user_id: bytes, at_ns: int) -> dict[str, Any]:
        """`get_account`: everything about the account at `at_ns`; what was due until then happens first, as entries."""
        account = self._account(bucket_id, user_id)
        at_ns = max(at_ns, account.settled_ns)
        self._posting.pass_time(account, at_ns)
        account.settle(at_ns, False)
        return views.account_map(account, bucket_id, self.call_at_ns(account))

    def call_at_ns(self, account: Account) -> int:
        """The instant of the call to the cutoff URL that is coming for an account if nothing but time happens;
        NEVER_NS where none is, or the call is owed already.
        """
        extra = account.extra
        if account.exhausted:
            grace = None if extra is None else extra.grace()
            return NEVER_NS if grace is None else grace.due_ns
        runs_out_ns = account.runs_out_ns()
        return runs_out_ns if runs_out_ns > INT64_MAX else self._posting.due_after_ns(account, runs_out_ns)

    def unnoticed(self, book: Book, now_ns: int) -> int:
        """How many accounts of a book are to be called for by `now_ns` and were not looked at since."""
        return schedule.unnoticed(book, now_ns, self._posting.due_after_ns)

    def unknown_classes(self, bucket_id: int) -> Iterator[tuple[bytes, bytes]]:
        """(user_id, class) of each account of a bucket whose class the rules do not have; the default serves it."""
        book = self.books[bucket_id]
        for slot, extra in book.extras.items():
            if extra.class_name and extra.class_name not in self._rules.classes:
                yield book.users[slot], extra.class_name

    def is_closed(self, bucket_id: int, user_id: bytes) -> bool:
        """Whether there was an account that is closed: its history goes on answering."""
        return user_id in self.books[bucket_id].closed

    def owed(self, bucket_id: int, user_id: bytes) -> Owed | None:
        """The call that is owed to the outside for this account now; None also for an account that is not here."""
        book = self.books.get(bucket_id)
        slot = -1 if book is None else book.slots.get(user_id, -1)
        if book is None or slot not in book.extras:
            return None
        return cutoffs.owed(user_id, book.extras[slot], book.is_exhausted(slot))

    def owed_in(self, bucket_id: int) -> Iterator[tuple[bytes, Owed]]:
        """Every account of a bucket to which a call is owed, with the call. Nothing may change meanwhile."""
        return views.owed_in(self.books[bucket_id])

    def newest_seq(self, bucket_id: int, user_id: bytes) -> int:
        """The seq of an account's latest cutoff, 0 before the first."""
        book = self.books[bucket_id]
        return Account(book, book.slots[user_id], user_id).exhaustion_seq

    def delivered_in(self, bucket_id: int) -> Iterator[tuple[bytes, int]]:
        """Every account of a bucket whose latest cutoff was delivered and is not effective, with its seq."""
        return views.delivered_in(self.books[bucket_id])

    def retry_cutoff(self, bucket_id: int, user_id: bytes, at_ns: int, actor: bytes = b"") -> dict[str, object]:
        """An operator's order: what is owed is noticed again, a cutoff that was delivered becomes owed once more."""
        account = self._account(bucket_id, user_id)
        self._posting.pass_time(account, max(at_ns, account.settled_ns))
        call = cutoffs.owed_for(account)
        if call is not None:
            self.notices.append((RETRY, at_ns, bucket_id, user_id, call.seq))
        else:
            command = (ops.CUTOFF_RETRY, user_id, account.exhaustion_seq, 1, 0, b"", b"", b"", b"", actor)
            self.apply(bucket_id, at_ns, command)
        return self.view(bucket_id, user_id, at_ns)

    def _account(self, bucket_id: int, user_id: bytes) -> Account:
        book = self.books[bucket_id]
        slot = book.slots.get(user_id)
        if slot is None:
            raise Refused("UNKNOWN_ACCOUNT", "there is no such account")
        return Account(book, slot, user_id)
