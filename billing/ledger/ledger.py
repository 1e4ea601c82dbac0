"""The ledger: the only place where accounts change.

A state machine without I/O. `apply(bucket_id, at_ns, command)` first applies the events that time has made due for the
account, each at its exact instant, then the command. It appends one packed entry per change to `records`, and one
notice to `notices` for each call that became owed or was superseded and for each threshold that fired. The caller
empties both lists. Same state and same command, same outcome, byte for byte; `replay` runs the same code and compares
the entries.

Order at one instant: all holds' expiries, then the ends of credits, then the exhaustion, then the end of a grace, then
the ends of leases, then thresholds; then the command; and behind any change the thresholds that it crossed.

Time that passes costs nothing. The ledger looks at an account only when a command comes for it, or when its coming
instant (the nearest of expiry, end of a credit, exhaustion, end of a grace, end of a lease, threshold) comes up in the
caller's wheel. The ledger calls `arm(ref, due_ns) -> filed_ns` only if the coming instant lies before the live filing.

The most frequent commands take the fast path, `fast_path.carry_out`, which is written out for them. All others take the
plain path through `Account`; the model test checks that both follow the same rules.

A refused command changes nothing, but the events that were due before it stand. The refusal is recorded as an entry if
the command has a request_id, because a retry must be refused alike, and if it is a debit, because such a refusal may
have to be reported.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
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
from billing.ledger.book import ROW, SLICE_ROWS, SLOT_BITS, SLOT_MASK, Book, Filing
from billing.ledger.classes import NO_CLASSES, Classes
from billing.ledger.commands import Command
from billing.ledger.cutoffs import SEQ_FLOOR_MAX, Owed
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
    seq_of,
    unpack,
)
from billing.ledger.errors import Refused
from billing.ledger.exhaustion import exhaustion_ns
from billing.ledger.extra import NEVER_NS
from billing.ledger.money import INT64_MAX, NANO
from billing.ledger.posting import Arm, Posting

_HANDLERS: Final[Handlers] = {**balances.HANDLERS, **rates.HANDLERS, **thresholds.HANDLERS, **classes.HANDLERS}
_REPORTS: Final = range(ops.CUTOFF_STARTED, ops.CUTOFF_RETRY + 1)

EVENTS_AT_ONCE: Final = 32  # of one account in one `tick`

RETRY: Final = "retry"  # the notice of an operator's order to try the owed call at once


class Rules(NamedTuple):
    """The configured rules of the ledger."""

    accrue: bool  # an exhaustion goes on below zero
    request_ids_per_bucket: int  # how many a bucket keeps at most, 1 or more
    restore: bool  # there is a restore URL
    rate_lease_ns: int = 0  # the lease of a rate that is reported without one; 0: none
    classes: Classes = NO_CLASSES  # cutoff classes by name, without the default one
    seq_floor: int = 0  # the least seq of the next cutoff of any account, 0..SEQ_FLOOR_MAX: `billing.ledger.cutoffs`


class ReplayDifference(Exception):
    """Replay made another entry than the journal holds. The message shows both."""

    def __init__(self, recorded: bytes | None, replayed: bytes | None) -> None:
        self.recorded = None if recorded is None else Entry._make(unpack(recorded))
        self.replayed = None if replayed is None else Entry._make(unpack(replayed))
        super().__init__(f"the journal holds {self.recorded}, replay made {self.replayed}")


class Ledger:
    """All accounts of the buckets that this ledger holds. `records` and `notices` stay the same list objects; the
    caller empties them.
    """

    def __init__(self, rules: Rules, arm: Arm) -> None:
        assert rules.request_ids_per_bucket >= 1
        assert 0 <= rules.seq_floor <= SEQ_FLOOR_MAX
        self._rules = rules
        self._own_flags = (RULE_ACCRUE if rules.accrue else 0) | (RULE_RESTORE if rules.restore else 0)
        self._rate_lease_ns = rules.rate_lease_ns
        self._posting = Posting(self._own_flags, rules.request_ids_per_bucket, arm, rules.classes, rules.seq_floor)
        self.books: dict[int, Book] = {}
        self.records = self._posting.records  # (bucket_id, packed entry); in replay: made, not yet seen in the journal
        self.notices = self._posting.notices

    # -- commands ------------------------------------------------------------------------------------------------------

    def apply(self, bucket_id: int, at_ns: int, command: Command) -> EntryTuple:
        """Carries out a command stamped `at_ns`. Returns its entry; for a request_id that was used before, the stored
        entry with the flag REPLAYED.

        Raises `Refused`: the command has changed nothing. Raises KeyError for a bucket that this ledger does not hold,
        which is a bug of the caller.
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

    def report(self, bucket_id: int, at_ns: int, command: Command) -> bool:
        """Applies a report of delivery. Returns whether a call may be owed for the account now; False only if it is
        certain that none is. Raises Refused `UNKNOWN_CUTOFF` if the account does not owe this call any more,
        `UNKNOWN_ACCOUNT` if there is no such account.
        """
        book = self.books[bucket_id]
        if fast_path.report(self._posting, book, at_ns, command):
            return command[0] != ops.CUTOFF_DELIVERED  # it was the only one
        self._change(book, at_ns, command)
        return True

    def rehearse(self, bucket_id: int, at_ns: int, command: Command) -> EntryTuple:
        """Returns the entry that `apply` would make now, or raises its `Refused`, without changing, recording or
        notifying anything. It carries out the command on a copy of the account in a ledger of its own.
        """
        book, user_id, request_id = self.books[bucket_id], command[1], command[6]
        stage = book.excerpt(user_id)
        if request_id and (stored := book.ids.find(user_id, request_id, at_ns)) is not None:
            stage.ids.restore(stored)
        ledger = Ledger(self._rules, lambda _, due_ns: due_ns)
        ledger.books[bucket_id] = stage
        return ledger.apply(bucket_id, at_ns, command)

    def _again(self, bucket_id: int, packed: bytes, command: Command) -> EntryTuple:
        """Answers a request_id that was used before: returns the stored entry, or raises its refusal again. Raises
        Refused `REQUEST_ID_CONFLICT` if the stored call was another one.
        """
        op, flags, *rest = unpack(packed)
        stored = (op, flags | REPLAYED, *rest)
        if not ops.same_call(Entry._make(stored).command, command):
            raise Refused("REQUEST_ID_CONFLICT", "this request_id was used with other parameters or another method")
        if flags & REFUSED:
            raise refused(stored, bucket_id)
        return stored

    def _uncommon(self, book: Book, at_ns: int, command: Command) -> EntryTuple:
        """Carries out a command that the fast path does not take. Refuses a class that the rules do not have; replay
        does not check this, because the rules may have had the class at the time.
        """
        if command[0] == ops.SET_CLASS and command[5] and command[5] not in self._rules.classes:
            name = class_name(command[5])
            message = f"cutoff.class.{name} is not in the configuration"
            raise Refused("INVALID_PARAMS", message, {"class": name})
        return self._change(book, at_ns, command)

    def _change(self, book: Book, at_ns: int, command: Command) -> EntryTuple:
        """The plain path: the events that time has made due, then the command, then what follows from the change."""
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
                closing.check_closable(account, self._posting.restores(account))
                return self._posting.close(account, command, accrued)
            _HANDLERS[op](account, command)
        except Rejected as no:
            raise self._posting.refuse(account, command, no) from None
        entry = self._posting.conclude(account, command, before, accrued, armed, at_ns)
        self._posting.rearm(account)
        return entry

    def _open(self, book: Book, at_ns: int, command: Command) -> EntryTuple:
        """Opens the account with its first top_up. Raises Refused `UNKNOWN_ACCOUNT` for any other command."""
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
        """Applies a recorded entry again. Raises ReplayDifference unless the new entry equals the recorded one, byte
        for byte (an entry of the first format is compared in that format).
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
        """Ends replay. Raises ReplayDifference if replay made an entry that the journal does not hold."""
        if self.records:
            raise ReplayDifference(None, self.records[0][1])

    def _make_again(self, book: Book, packed: bytes) -> None:
        """Applies the cause of a recorded entry again, under the rules that were in force then; appends the entry, and
        the entries that follow from the same change, to `records`.
        """
        flags, at_ns, command = cause_of(packed)
        posting = self._posting
        posting.flags = flags & (RULE_ACCRUE | RULE_RESTORE)
        posting.presumed = flags & PRESUMED != 0
        posting.refused = flags & REFUSED != 0
        posting.seq_floor = seq_of(packed) if flags & CROSSED and not is_first(packed) else 0
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
            pass  # the record is a refusal, too; if it is not, `replay` finds no equal entry
        finally:
            posting.flags = self._own_flags
            posting.seq_floor = self._rules.seq_floor
            posting.presumed = None
            posting.refused = False
        self.notices.clear()

    def started(self, now_ns: int) -> None:
        """Recovery ended at `now_ns`. From now on the ledger assumes that every pending cutoff, and every cutoff that
        fell due before this instant, may have been attempted: an attempt waits neither for its own record nor for the
        record of an exhaustion that time caused, so the journal may lack both.
        """
        self._posting.started_ns = now_ns
        for bucket_id in self.books:
            self.presume_attempted(bucket_id)

    def presume_attempted(self, bucket_id: int) -> None:
        """Marks all pending cutoffs of a bucket as possibly attempted."""
        for extra in self.books[bucket_id].extras.values():
            pending = extra.pending()
            if pending:
                extra.presumed_seq = pending[-1].seq

    def create(self, bucket_id: int) -> None:
        """Adds an empty bucket; time stands still in it until `wake`."""
        assert bucket_id not in self.books, f"bucket {bucket_id} is here already"
        self.books[bucket_id] = Book(bucket_id)

    def dump(self, bucket_id: int) -> bytes:
        """The whole bucket as one block; equal states give equal bytes. Asserts conservation first."""
        audit.check(self.books[bucket_id])
        return block.dump(self.books[bucket_id])

    def load(self, bucket_id: int, dumped: bytes) -> None:
        """Adds the bucket that `dump` wrote; time stands still in it until `wake`. Raises ValueError if `dumped` is of
        another bucket or of another version.
        """
        self.put(block.load(bucket_id, dumped))

    def put(self, book: Book) -> None:
        """Adds a bucket that `block.loading` made."""
        assert book.bucket_id not in self.books, f"bucket {book.bucket_id} is here already"
        self.books[book.bucket_id] = book

    def drop(self, bucket_id: int) -> None:
        """Removes a bucket. Its filings in the wheel become stale."""
        del self.books[bucket_id]

    # -- time ----------------------------------------------------------------------------------------------------------

    def tick(self, refs: Iterable[int], now_ns: int) -> None:
        """The wheel took `refs` out: applies the events that are due for each of these accounts in turn, and files the
        account again. If the events of one account are very many, it applies the first of them and files the account
        for the next one, which has passed already: other accounts do not wait for all of them.
        """
        posting, books, run_out = self._posting, self.books, fast_path.run_out
        for ref in refs:
            book = books.get(ref >> SLOT_BITS)
            slot = ref & SLOT_MASK
            if book is None or not book.awake or slot >= len(book.users) or not book.users[slot]:
                continue
            book.armed_ns[slot] = NEVER_NS
            if not run_out(posting, book, slot, now_ns):
                posting.catch_up(Account(book, slot, book.users[slot]), now_ns, EVENTS_AT_ONCE)

    def next_due_ns(self, filings: Sequence[Filing]) -> list[int]:
        """For the wheel: the coming instant of each account that is filed as `ref` at `filed_ns`; -1 if that filing is
        not the live one, or nothing is coming.
        """
        return fast_path.next_due_ns(self.books, filings)

    def moved(self, filings: Sequence[Filing]) -> None:
        """The wheel moved the live filing of each of these accounts to `filed_ns`."""
        books = self.books
        for ref, filed_ns in filings:
            books[ref >> SLOT_BITS].armed_ns[ref & SLOT_MASK] = filed_ns

    def wake(self, bucket_id: int) -> None:
        """Lets time pass in this bucket from now on: files every account that has a coming instant."""
        for _ in self.waking(bucket_id):
            pass

    def waking(self, bucket_id: int) -> Iterator[None]:
        """`wake` in slices, between which the bucket may be used; ends early if the bucket is stilled or removed."""
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
        """Stops time in this bucket: all filings of its accounts become stale, and no new one is made."""
        book = self.books[bucket_id]
        book.awake = False
        book.armed_ns = array("Q", bytes(8 * len(book.users)))

    # -- reading -------------------------------------------------------------------------------------------------------

    def view(self, bucket_id: int, user_id: bytes, at_ns: int) -> dict[str, Any]:
        """`get_account`: everything about the account at `at_ns`. Applies the events due by then first, with their
        entries. Raises Refused `UNKNOWN_ACCOUNT`.
        """
        account = self.pass_time(bucket_id, user_id, at_ns)
        at_ns = max(at_ns, account.settled_ns)
        account.settle(at_ns, False)
        return views.account_map(account, bucket_id, self.call_at_ns(account))

    def pass_time(self, bucket_id: int, user_id: bytes, at_ns: int) -> Account:
        """Applies the events of an account that are due by `at_ns`, with their entries; returns a working copy. Raises
        Refused `UNKNOWN_ACCOUNT`.
        """
        account = self._account(bucket_id, user_id)
        self._posting.pass_time(account, max(at_ns, account.settled_ns))
        return account

    def call_at_ns(self, account: Account) -> int:
        """The instant at which the next call to the cutoff URL becomes owed for an account if nothing but time happens;
        above 2**63-1 if none will, or the call is owed already.
        """
        extra = account.extra
        if account.exhausted:
            grace = None if extra is None else extra.grace()
            return NEVER_NS if grace is None else grace.due_ns
        runs_out_ns = account.runs_out_ns()
        return runs_out_ns if runs_out_ns > INT64_MAX else self._posting.due_after_ns(account, runs_out_ns)

    def unnoticed(self, book: Book, now_ns: int) -> int:
        """How many accounts of a book have a cutoff call due by `now_ns` that the ledger has not recorded yet."""
        return schedule.unnoticed(book, now_ns, self._posting.due_after_ns)

    def is_closed(self, bucket_id: int, user_id: bytes) -> bool:
        """Whether this user's account was closed and not opened again; its history can still be read."""
        return user_id in self.books[bucket_id].closed

    def owed(self, bucket_id: int, user_id: bytes) -> Owed | None:
        """The call to the cutoff or restore URL that is owed for this account now; None if there is none, or no such
        account.
        """
        book = self.books.get(bucket_id)
        slot = -1 if book is None else book.slots.get(user_id, -1)
        if book is None or slot not in book.extras:
            return None
        return cutoffs.owed(user_id, book.extras[slot], book.is_exhausted(slot))

    def owed_in(self, bucket_id: int) -> Iterator[tuple[bytes, Owed]]:
        """Every account of a bucket for which a call is owed, with the call. The bucket must not change meanwhile."""
        return views.owed_in(self.books[bucket_id])

    def newest_seq(self, bucket_id: int, user_id: bytes) -> int:
        """The seq of an account's latest cutoff, 0 before the first."""
        book = self.books[bucket_id]
        return Account(book, book.slots[user_id], user_id).exhaustion_seq

    def delivered_in(self, bucket_id: int) -> Iterator[tuple[bytes, int]]:
        """Every account of a bucket whose latest cutoff was delivered and is not effective yet, with its seq."""
        return views.delivered_in(self.books[bucket_id])

    def retry_cutoff(self, bucket_id: int, user_id: bytes, at_ns: int, actor: bytes = b"") -> dict[str, object]:
        """An operator's order: a call that is owed is tried at once; if none is, the latest cutoff, which was
        delivered, becomes owed once more. Returns the account as `view` shows it. Raises Refused `UNKNOWN_ACCOUNT`, or
        `UNKNOWN_CUTOFF` if there is nothing to send.
        """
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
