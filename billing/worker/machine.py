"""The state machine of a shard: ledger and timing wheel, as the content of its buckets.

`BillingMachine` implements `shards.machine.Machine`. Commands go to the ledger, which alone changes money; the wheel
keeps when to look at which account. The ledger files the coming instant of an account in the wheel through `_file`;
when a filing comes up, the wheel asks the ledger whether the filing is still the live one.

During recovery the ledger works as always, but nothing is filed: `start` and `arm` file all accounts once, in the state
that replay ended with. Events that became due meanwhile come up at once, with their true instants.

The machine never reads a clock, touches no file and never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from billing.expirationd.coming import merged
from billing.expirationd.wheel import Wheel
from billing.ledger import audit, views
from billing.ledger import commands as ops
from billing.ledger.account import Account
from billing.ledger.block import dumping, is_of_other_version, loading
from billing.ledger.book import SLOT_BITS, SLOT_MASK, Book
from billing.ledger.cutoffs import Owed
from billing.ledger.entry import ACCRUING, EXHAUSTED, EntryTuple, answer
from billing.ledger.errors import Refused
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import NANO
from billing.worker.pages import joined_accounts, joined_cutoffs
from shards.journal import OtherFormat
from shards.machine import Command, Effect, Later, Record

ROWS_SHOWN_MAX: Final = 100_000  # rate lines and holds in the replies of one machine within `ROWS_SHOWN_NS`
ROWS_SHOWN_NS: Final = 100_000_000
PERIODS: Final = frozenset({"statement", "balance_at"})  # queries to which `read` adds the instant of the request
SURVEYS = frozenset(
    {
        *("accounts", "expirationd_stats", "feed_part", "feed_where", "forecast", "held_until", "history_reached"),
        *("overdue", "pending_cutoffs", "release_cutoffs"),
    }
)
# Surveys that a client may also ask one shard for.
SHARD_BY_SHARD: Final = frozenset({"accounts", "expirationd_stats", "forecast", "pending_cutoffs"})

# An owed call: bucket id, user id, kind, owed since, newest seq of the account, class.
OwedRow = tuple[int, bytes, str, int, int, str]


def _refuse_other_version(bucket_id: int, block: bytes) -> None:
    if is_of_other_version(block):
        raise OtherFormat(
            f"bucket {bucket_id} is as another version of billing wrote it, which this one does not read; nothing was "
            "changed. Write the accounts out with the version that wrote it, and take them in with `billing import`"
        )


class BillingMachine:
    """All accounts of one shard."""

    def __init__(
        self,
        rules: Rules,
        reply: Callable[[EntryTuple, int], object] = answer,
        release_held: Callable[[], int] = lambda: 0,
        overdue_at_start: Callable[[], int] = lambda: 0,
        held_until_ns: Callable[[], int] = lambda: -1,
    ) -> None:
        """`reply(entry, bucket_id)` makes the reply to a command. `release_held` releases the held cutoffs and returns
        for how many accounts; `overdue_at_start` returns how many cutoffs were overdue at the start,
        `held_until_ns` up to which instant cutoffs are held back.
        """
        self._reply = reply
        self.ledger = Ledger(rules, self._file)
        self.records: list[Record] = self.ledger.records
        self.notices: list[Effect] = self.ledger.notices
        self._release_held = release_held
        self._overdue_at_start = overdue_at_start
        self._held_until_ns = held_until_ns
        self.fired = 0  # filings that came due
        self._wheel: Wheel | None = None
        self._rows_shown = 0
        self._rows_since_ns = 0

    # -- commands and queries ---------------------------------------------------------------------------------------

    def apply(self, bucket_id: int, command: Command, now_ns: int) -> object:
        """Applies a command. Returns the reply, a map or already encoded, or the refusal; for a report of delivery
        whether another call may be owed for the account, or the refusal.
        """
        try:
            if command[0] >= ops.CUTOFF_STARTED:
                return self.ledger.report(bucket_id, now_ns, command)
            return self._reply(self.ledger.apply(bucket_id, now_ns, command), bucket_id)
        except Refused as refusal:
            return refusal.with_traceback(None)  # the refusal waits for the disk: it must not keep its frames alive

    def read(self, bucket_id: int, query: Command, now_ns: int) -> object:
        """Answers a query. `("get_account" | "retry_cutoff", user_id)`, `("dry_run", user_id, command)`: returns the
        reply, or the refusal. `("history" | "statement" | "balance_at", …)`, `("explain", user_id)`: returns `Later`,
        or the refusal. An account may have 10,000 rate lines and a connection 4,096 queries in flight, so the machine
        counts the rows that it shows; too many within `ROWS_SHOWN_NS` are refused, before they fill the memory and
        delay all others.
        """
        name, user_id = query[0], query[1]
        try:
            if name == "get_account":
                account = self.ledger.view(bucket_id, user_id, now_ns)
                self._show(len(account["rates"]) + len(account["leases"]) + len(account["holds"]), now_ns)
                return account
            if name in ("history", "explain", *PERIODS):
                if name == "explain" or not self.ledger.is_closed(bucket_id, user_id):
                    self.ledger.pass_time(bucket_id, user_id, now_ns)  # refuses an unknown account
                return Later((*query, now_ns) if name in PERIODS else query)
            if name == "dry_run":
                return self._reply(self.ledger.rehearse(bucket_id, now_ns, query[2]), bucket_id)
            if name == "retry_cutoff":
                return self.ledger.retry_cutoff(bucket_id, user_id, now_ns)
        except Refused as refusal:
            return refusal.with_traceback(None)
        return Refused("UNKNOWN_METHOD", f"{name} is not served by this version")

    def _show(self, rows: int, now_ns: int) -> None:
        """Counts the rows of a reply. Raises Refused `BUSY` if there were too many rows within `ROWS_SHOWN_NS`."""
        if now_ns - self._rows_since_ns >= ROWS_SHOWN_NS:
            self._rows_since_ns, self._rows_shown = now_ns, 0
        if self._rows_shown + rows > ROWS_SHOWN_MAX:
            raise Refused("BUSY", "too many rate lines and holds are being read at once")
        self._rows_shown += rows

    def survey(self, query: Command, now_ns: int) -> object:
        """This shard's part of an answer about the whole daemon, as plain data. Returns `Later` for a survey that has
        to look at every bucket, or at the history.
        """
        match query:
            case ("accounts", bytes(), int(), str(), int(), tuple(), bytes(), int()):
                return Later(query)
            case ("pending_cutoffs", bytes(), int()) | ("forecast", int(), int()):
                return Later(query)
            case ("expirationd_stats",) | ("history_reached",) | ("feed_part", *_) | ("feed_where", *_):
                return Later(query)
            case ("release_cutoffs",):
                return self._release_held()
            case ("overdue",):
                return self._overdue_at_start()
            case ("held_until",):
                return self._held_until_ns()
        raise AssertionError(f"no survey {query[0]}")

    def merge(self, operation: Command, parts: list[Any]) -> object:
        """Joins the parts of all shards into one answer."""
        match operation:
            case ("accounts", _, int(limit), *_):
                why = next((part for part in parts if isinstance(part, str)), None)
                return joined_accounts(parts, limit) if why is None else Refused("INVALID_PARAMS", why)
            case ("pending_cutoffs", _, int(limit)):
                return joined_cutoffs(parts, limit)
            case ("forecast", int(within_ns), int(step_ns)):
                return merged(parts, within_ns, step_ns)
            case ("expirationd_stats",):
                return sorted(parts, key=lambda row: int(row["shard_id"]))
            case ("release_cutoffs",):
                return {"released": sum(parts)}
            case ("overdue" | "held_until",):
                return parts
            case ("history_reached",):
                why = next((part for part in parts if isinstance(part, str)), None)
                return parts if why is None else Refused("UNAVAILABLE", why)
            case ("feed_part" | "feed_where", *_):
                refused = next((part for part in parts if isinstance(part, dict)), None)
                return parts if refused is None else Refused(refused["refused"], refused["message"])
        raise AssertionError(f"no survey {operation[0]}")

    def class_of(self, bucket_id: int, user_id: bytes) -> str:
        """The cutoff class of an account; "" is the default."""
        book = self.ledger.books.get(bucket_id)
        extra = None if book is None else book.extras.get(book.slots.get(user_id, -1))
        return "" if extra is None else extra.class_name.decode()

    def owed(self) -> Iterator[OwedRow]:
        """Every owed call."""
        for bucket_id, book in self.ledger.books.items():
            if book.extras:
                yield from self.owed_in(bucket_id)

    def overdue(self, now_ns: int) -> int:
        """The number of cutoffs whose call is due by `now_ns`: those owed already, and those not recorded yet."""
        owed = sum(kind == "cutoff" and due_ns <= now_ns for _, _, kind, due_ns, *_ in self.owed())
        return owed + sum(self.ledger.unnoticed(book, now_ns) for book in self.ledger.books.values())

    def owed_in(self, bucket_id: int) -> Iterator[OwedRow]:
        """The owed calls of one bucket."""
        for user_id, call in self.ledger.owed_in(bucket_id):
            yield self._owed_row(bucket_id, user_id, call)

    def owed_by(self, bucket_id: int, user_id: bytes) -> Iterator[OwedRow]:
        """The owed call of one account, if there is one."""
        call = self.ledger.owed(bucket_id, user_id)
        if call is not None:
            yield self._owed_row(bucket_id, user_id, call)

    def _owed_row(self, bucket_id: int, user_id: bytes, call: Owed) -> OwedRow:
        newest_seq = self.ledger.newest_seq(bucket_id, user_id)
        return bucket_id, user_id, call.kind, call.due_ns, newest_seq, call.class_name.decode()

    def figures(self) -> dict[str, Any]:
        """Counters for the operator; O(buckets). `bucket_accounts`: (bucket id, accounts) of each bucket with any."""
        books = self.ledger.books
        return {
            "accounts": sum(len(book.slots) for book in books.values()),
            "armed": 0 if self._wheel is None else len(self._wheel),
            "pending_cutoffs": sum(book.pending_cutoffs for book in books.values()),
            "request_ids_evicted_early": sum(book.ids.evicted_early for book in books.values()),
            "bucket_accounts": [(bucket_id, len(book.slots)) for bucket_id, book in books.items() if book.slots],
        }

    # -- time -------------------------------------------------------------------------------------------------------

    def due(self, now_ns: int, limit: int) -> bool:
        """Applies the events that time has made due, in the order of their instants, for at most `limit` filings.
        Returns whether more is due now.
        """
        wheel, ledger = self._wheel, self.ledger
        assert wheel is not None, "time passes before start"
        fired = wheel.advance(now_ns, ledger.next_due_ns, ledger.moved, limit)
        ledger.tick(fired, now_ns)
        self.fired += len(fired)
        return 0 <= wheel.next_due_ns() <= now_ns

    def next_due_ns(self) -> int:
        """When `due` has something to do; -1 for never."""
        return -1 if self._wheel is None else self._wheel.next_due_ns()

    def running_out(self, until_ns: int, least: int) -> Iterator[list[tuple[bytes, str, int, int]]]:
        """(user_id, event_id, seq, E) of the cutoffs that fall due up to `until_ns` if nothing else happens, in small
        pieces, between which the machine may be used; nothing if fewer than `least` filings come up until then.
        """
        wheel, books = self._wheel, self.ledger.books
        if wheel is None or wheel.count_soon(until_ns) < least:
            return
        for refs in wheel.soon(until_ns):
            cutoffs = [
                views.next_cutoff(book, ref & SLOT_MASK)
                for ref in refs
                if (book := books.get(ref >> SLOT_BITS)) is not None
            ]
            yield [cutoff for cutoff in cutoffs if cutoff is not None and cutoff[3] <= until_ns]

    def _file(self, ref: int, due_ns: int) -> int:
        assert self._wheel is not None, "something is armed before start"
        return self._wheel.insert(ref, due_ns)

    def place_of(self, filed_ns: int) -> tuple[int, int, int]:
        """See `Wheel.place_of`."""
        assert self._wheel is not None, "nothing is filed before start"
        return self._wheel.place_of(filed_ns)

    def start(self, now_ns: int) -> None:
        """Recovery is over: makes the wheel. Cutoffs that are pending may have been attempted without a record. Raises
        ReplayDifference as `Ledger.replayed` does.
        """
        self.ledger.replayed()
        self._wheel = Wheel(now_ns)
        self.ledger.started(now_ns)

    def arm(self, bucket_id: int) -> None:
        """Lets time pass in a bucket."""
        self.ledger.wake(bucket_id)

    def disarm(self, bucket_id: int) -> None:
        """Stops time in a bucket."""
        self.ledger.still(bucket_id)

    def arming(self, bucket_id: int) -> Iterator[None]:
        """`arm` in slices."""
        return self.ledger.waking(bucket_id)

    def bucket_due_ns(self, bucket_id: int, until_ns: int) -> int:
        """The first coming instant of any account of one bucket, up to `until_ns`; -1 if there is none."""
        return views.due_within(self.ledger.books[bucket_id], until_ns)

    # -- recovery and moves -----------------------------------------------------------------------------------------

    def replay(self, bucket_id: int, body: bytes) -> None:
        """Applies a recorded entry again. Raises ReplayDifference if the new entry is not equal to it."""
        self.ledger.replay(bucket_id, body)

    def create(self, bucket_id: int) -> None:
        """Adds an empty bucket."""
        self.ledger.create(bucket_id)

    def dump(self, bucket_id: int) -> bytes:
        """A bucket as one block."""
        return self.ledger.dump(bucket_id)

    def dumping(self, bucket_id: int) -> Generator[None, None, bytes]:
        """`dump` in slices."""
        book = self.ledger.books[bucket_id]
        yield from audit.checking(book)
        return (yield from dumping(book))

    def newest_entry(self, bucket_id: int, user_id: bytes) -> tuple[int, int, int]:
        """(entry_id, balance in nanos, at_ns) of an account after its newest entry; also of a closed account. Zeros if
        there never was such an account.
        """
        book = self.ledger.books.get(bucket_id)
        if book is not None and (slot := book.slots.get(user_id)) is not None:
            account = Account(book, slot, user_id)
            return account.entry_id, account.balance // NANO, account.settled_ns
        tombstone = None if book is None else book.closed.get(user_id)
        return (0, 0, 0) if tombstone is None else (tombstone.entry_id, 0, tombstone.settled_ns)

    def standing(self, bucket_id: int, user_id: bytes) -> tuple[int, ...]:
        """(entry_id, at_ns, balance in nanos, its fraction, rate, credit limit, holds, flags as in an entry) of an
        account after its newest entry; also of a closed account. Zeros if there never was such an account.
        """
        book = self.ledger.books.get(bucket_id)
        if book is not None and (slot := book.slots.get(user_id)) is not None:
            account = Account(book, slot, user_id)
            flags = (EXHAUSTED if account.exhausted else 0) | (ACCRUING if account.accruing else 0)
            money = divmod(account.balance, NANO)
            limits = account.credit_limit_nanos, account.holds_nanos
            return account.entry_id, account.settled_ns, *money, account.rate, *limits, flags
        tombstone = None if book is None else book.closed.get(user_id)
        if tombstone is None:
            return (0,) * 8
        return tombstone.entry_id, tombstone.settled_ns, 0, 0, 0, 0, 0, EXHAUSTED

    def lines(self, bucket_id: int, user_id: bytes) -> tuple[tuple[bytes, int], ...]:
        """(resource, nanos per hour) of each rate line above zero of an account; empty if there is no such account."""
        book = self.ledger.books.get(bucket_id)
        if book is None or (slot := book.slots.get(user_id)) is None:
            return ()
        return views.lines(Account(book, slot, user_id))

    def loading(self, bucket_id: int, block: bytes) -> Generator[None, None, Book]:
        """The first half of `load`, in slices: returns the book of the block. Raises OtherFormat."""
        _refuse_other_version(bucket_id, block)
        return loading(bucket_id, block)

    def put(self, bucket_id: int, content: Book) -> None:
        """The second half of `load`: adds the book that `loading` made."""
        self.ledger.put(content)

    def load(self, bucket_id: int, block: bytes) -> None:
        """Adds the bucket of a block. Raises OtherFormat if another version wrote the block."""
        _refuse_other_version(bucket_id, block)
        self.ledger.load(bucket_id, block)

    def drop(self, bucket_id: int) -> None:
        """Removes a bucket."""
        self.ledger.drop(bucket_id)

    def dropping(self, bucket_id: int) -> Iterator[None]:
        """`drop` in slices."""
        book = self.ledger.books[bucket_id]
        self.ledger.drop(bucket_id)
        return book.shrinking()
