"""Where the two rooms meet: ledger and timing wheel, as the content of a shard's buckets.

A shard asks for a `shards.machine.Machine`; this is one. Commands go to the ledger, which is the only thing that
changes money; the wheel remembers when to look at which account. The ledger tells (through `_file`) where the coming
instant of an account is to be filed; when a filing comes up, the wheel asks the ledger whether it is still meant.

During recovery the ledger works as ever but nothing is filed: timers are made by `start` and `arm`, once, from the
state that replay ended with. What became due meanwhile comes up at once, with its true instant.

It never reads a clock, touches no file and waits for nothing.
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
from billing.ledger.book import SLOT_BITS, Book
from billing.ledger.entry import ACCRUING, EXHAUSTED, EntryTuple, answer
from billing.ledger.errors import Refused
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import NANO
from billing.worker.pages import joined_accounts, joined_cutoffs
from shards.journal import OtherFormat
from shards.machine import Command, Effect, Later, Record

ROWS_SHOWN_MAX: Final = 100_000  # rate lines and holds in replies of one machine within
ROWS_SHOWN_NS: Final = 100_000_000
PERIODS: Final = frozenset({"statement", "balance_at"})  # which are told the instant at which they were asked
SURVEYS = frozenset(
    {
        *("accounts", "expirationd_stats", "feed_part", "feed_where", "forecast", "history_reached", "overdue"),
        *("pending_cutoffs", "release_cutoffs"),
    }
)
SHARD_BY_SHARD: Final = frozenset({"accounts", "expirationd_stats", "forecast", "pending_cutoffs"})  # of one alone, too


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
    ) -> None:
        """`reply(entry, bucket_id)`: what a command is answered. `release_held` lets held cutoffs go and says how many
        accounts that concerns; `overdue_at_start`: how many cutoffs were overdue.
        """
        self._reply = reply
        self.ledger = Ledger(rules, self._file)
        self.records: list[Record] = self.ledger.records
        self.notices: list[Effect] = self.ledger.notices
        self._release_held = release_held
        self._overdue_at_start = overdue_at_start
        self.fired = 0  # filings that came due
        self._wheel: Wheel | None = None
        self._rows_shown = 0
        self._rows_since_ns = 0

    # -- commands and queries ---------------------------------------------------------------------------------------

    def apply(self, bucket_id: int, command: Command, now_ns: int) -> object:
        """A reply map, maybe encoded already, or the refusal; for a report of delivery, to which nobody listens, None
        or the refusal.
        """
        try:
            if command[0] >= ops.CUTOFF_STARTED:
                self.ledger.report(bucket_id, now_ns, command)
                return None
            return self._reply(self.ledger.apply(bucket_id, now_ns, command), bucket_id)
        except Refused as refusal:
            return refusal.with_traceback(None)  # it waits for the disk: without the frames it went through

    def read(self, bucket_id: int, query: Command, now_ns: int) -> object:
        """`("get_account" | "retry_cutoff", user_id)`, `("dry_run", user_id, command)`: a reply, or the refusal.
        `("history" | "statement" | "balance_at", …)` and `("explain", user_id)`: later. An account
        may have 10,000 rate lines, a connection 4,096 questions in flight: so rows are counted, and too many within a
        moment are refused, before they fill the memory and everybody's time.
        """
        name, user_id = query[0], query[1]
        try:
            if name == "get_account":
                account = self.ledger.view(bucket_id, user_id, now_ns)
                self._show(len(account["rates"]) + len(account["leases"]) + len(account["holds"]), now_ns)
                return account
            if name in ("history", "explain", *PERIODS):
                if name == "explain" or not self.ledger.is_closed(bucket_id, user_id):
                    self.ledger.view(bucket_id, user_id, now_ns)  # it exists, and what was due until now is an entry
                return Later((*query, now_ns) if name in PERIODS else query)
            if name == "dry_run":
                return self._reply(self.ledger.rehearse(bucket_id, now_ns, query[2]), bucket_id)
            if name == "retry_cutoff":
                return self.ledger.retry_cutoff(bucket_id, user_id, now_ns)
        except Refused as refusal:
            return refusal.with_traceback(None)
        return Refused("UNKNOWN_METHOD", f"{name} is not served by this version")

    def _show(self, rows: int, now_ns: int) -> None:
        """Lets a reply with so many rows leave. Raises Refused where there were too many just now."""
        if now_ns - self._rows_since_ns >= ROWS_SHOWN_NS:
            self._rows_since_ns, self._rows_shown = now_ns, 0
        if self._rows_shown + rows > ROWS_SHOWN_MAX:
            raise Refused("BUSY", "too many rate lines and holds are being read at once")
        self._rows_shown += rows

    def survey(self, query: Command, now_ns: int) -> object:
        """This shard's part of an answer about the whole daemon; plain data. What looks at every bucket: later."""
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
        raise AssertionError(f"no survey {query[0]}")

    def merge(self, operation: Command, parts: list[Any]) -> object:
        """One answer out of all shards' parts."""
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
            case ("overdue",):
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

    def owed(self) -> Iterator[tuple[int, bytes, str, int, int, str]]:
        """All that is owed to the outside: (bucket id, user id, kind, since when, newest seq of that kind, class)."""
        for bucket_id, book in self.ledger.books.items():
            if book.extras:
                yield from self.owed_in(bucket_id)

    def overdue(self, now_ns: int) -> int:
        """Cutoffs whose call's instant is not after `now_ns`: those owed already, and those not looked at yet."""
        owed = sum(kind == "cutoff" and due_ns <= now_ns for _, _, kind, due_ns, *_ in self.owed())
        return owed + sum(self.ledger.unnoticed(book, now_ns) for book in self.ledger.books.values())

    def owed_in(self, bucket_id: int) -> Iterator[tuple[int, bytes, str, int, int, str]]:
        """The same of one bucket."""
        for user_id, call in self.ledger.owed_in(bucket_id):
            seq = call.seq if call.kind == "restore" else self.ledger.newest_seq(bucket_id, user_id)
            yield bucket_id, user_id, call.kind, call.due_ns, seq, call.class_name.decode()

    def figures(self) -> dict[str, Any]:
        """Counters for the operator; O(buckets). `bucket_accounts`: those of each bucket that has any."""
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
        """Carries out what time has made due, in the order of the instants."""
        wheel, ledger = self._wheel, self.ledger
        assert wheel is not None, "time passes before start"
        fired = wheel.advance(now_ns, ledger.next_due_ns, ledger.moved, limit)
        for ref in fired:
            ledger.tick(ref, now_ns)
        self.fired += len(fired)
        return 0 <= wheel.next_due_ns() <= now_ns

    def next_due_ns(self) -> int:
        """When `due` has something to do; -1 for never."""
        return -1 if self._wheel is None else self._wheel.next_due_ns()

    def running_out(self, until_ns: int, least: int) -> Iterator[list[tuple[bytes, str, int, int]]]:
        """(user_id, event_id, seq, E) of the cutoffs that fall due up to `until_ns` if nothing else happens, in small
        pieces between which the machine may be used; none where fewer than `least` filings come up until then.
        """
        wheel, books = self._wheel, self.ledger.books
        if wheel is None or wheel.count_soon(until_ns) < least:
            return
        for refs in wheel.soon(until_ns):
            places = [(books.get(ref >> SLOT_BITS), ref & (1 << SLOT_BITS) - 1) for ref in refs]
            cutoffs = [views.next_cutoff(book, slot) for book, slot in places if book is not None]
            yield [cutoff for cutoff in cutoffs if cutoff is not None and cutoff[3] <= until_ns]

    def _file(self, ref: int, due_ns: int) -> int:
        assert self._wheel is not None, "something is armed before start"
        return self._wheel.insert(ref, due_ns)

    def place_of(self, filed_ns: int) -> tuple[int, int, int]:
        """See `Wheel.place_of`."""
        assert self._wheel is not None, "nothing is filed before start"
        return self._wheel.place_of(filed_ns)

    def start(self, now_ns: int) -> None:
        """Recovery is over; timers are made from here on. What was pending may have been attempted unrecorded."""
        self.ledger.replayed()
        self._wheel = Wheel(now_ns)
        self.ledger.started(now_ns)

    def arm(self, bucket_id: int) -> None:
        """Lets time pass in a bucket."""
        self.ledger.wake(bucket_id)

    def disarm(self, bucket_id: int) -> None:
        """Lets time stand still in a bucket."""
        self.ledger.still(bucket_id)

    def arming(self, bucket_id: int) -> Iterator[None]:
        """`arm` in slices."""
        return self.ledger.waking(bucket_id)

    def bucket_due_ns(self, bucket_id: int, until_ns: int) -> int:
        """The coming instant of one bucket, up to `until_ns`; -1 when there is none."""
        return views.due_within(self.ledger.books[bucket_id], until_ns)

    # -- recovery and moves -----------------------------------------------------------------------------------------

    def replay(self, bucket_id: int, body: bytes) -> None:
        """Applies a recorded entry again and compares."""
        self.ledger.replay(bucket_id, body)

    def create(self, bucket_id: int) -> None:
        """An empty bucket."""
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
        """(entry_id, balance in nanos, at_ns) of an account as its newest entry left it, of a closed one, too; zeros
        where there never was one.
        """
        book = self.ledger.books.get(bucket_id)
        if book is not None and (slot := book.slots.get(user_id)) is not None:
            account = Account(book, slot, user_id)
            return account.entry_id, account.balance // NANO, account.settled_ns
        tombstone = None if book is None else book.closed.get(user_id)
        return (0, 0, 0) if tombstone is None else (tombstone.entry_id, 0, tombstone.settled_ns)

    def standing(self, bucket_id: int, user_id: bytes) -> tuple[int, ...]:
        """(entry_id, at_ns, balance in nanos, its fraction, rate, credit limit, holds, flags as of an entry) of an
        account as its newest entry left it, of a closed one, too; zeros where there never was one.
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
        """(resource, nanos per hour) of each rate line of an account above zero; none where there is no account."""
        book = self.ledger.books.get(bucket_id)
        if book is None or (slot := book.slots.get(user_id)) is None:
            return ()
        return views.lines(Account(book, slot, user_id))

    def loading(self, bucket_id: int, block: bytes) -> Generator[None, None, Book]:
        """The first half of `load`, in slices."""
        _refuse_other_version(bucket_id, block)
        return loading(bucket_id, block)

    def put(self, bucket_id: int, content: Book) -> None:
        """The second half of `load`."""
        self.ledger.put(content)

    def load(self, bucket_id: int, block: bytes) -> None:
        """The bucket of a block. Raises OtherFormat."""
        _refuse_other_version(bucket_id, block)
        self.ledger.load(bucket_id, block)

    def drop(self, bucket_id: int) -> None:
        """Forgets a bucket."""
        self.ledger.drop(bucket_id)

    def dropping(self, bucket_id: int) -> Iterator[None]:
        """`drop` in slices."""
        book = self.ledger.books[bucket_id]
        self.ledger.drop(bucket_id)
        return book.shrinking()
