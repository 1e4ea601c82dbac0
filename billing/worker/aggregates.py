"""Sums over the accounts of a shard, for metrics and the page: overrun in money and the account with most of it, the
oldest cutoff that is owed and not held back, the number of restores that are owed, and the number of accounts in a
cutoff class unknown to the configuration.

These figures have to be collected from the `Extra` of each account that has one, and there may be very many. So they
are computed in rounds: each `step` goes on where the last one stopped and does at most `WORK_MAX` of work, a fraction
of a millisecond, because cutoffs wait meanwhile. The sums hold each bucket as it was when the last round visited it; a
visit changes the sums by the difference.

The growth of overrun since this process began is summed up as well: at each visit, by how much the bucket has more
than at the visit before. The growth of a bucket that came with a start or a move counts from its first visit on; if the
overrun of a bucket falls, because an account was closed, its growth counts from that visit on. So this sum never falls.

Overrun is shown as of now: the overrun of each account when it was last settled, plus its rate since. The module reads
the state of the ledger and never changes it.

**Why a bucket's overrun is kept as a line over time.** Once accounts have run out, hundreds of buckets have overrun,
and each is visited again and again. Overrun that grows steadily is the same at each visit if it is kept as a start and
a slope. So a bucket in which nothing has happened only has to be compared, no sum is computed anew, and the rounds
need not follow each other closely.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any, Final, NamedTuple

from billing.ledger.book import EXHAUSTED, ROW, Book
from billing.ledger.entry import PENDING
from billing.ledger.extra import NEVER_NS
from billing.ledger.money import NANO

WORK_MAX = 2048  # units of work in one step: a bucket is one unit, each `Extra` in it `EXTRA_WORK`
EXTRA_WORK = 8
STEPS_MAX = 10  # steps, `PAUSE_S` apart, that one request for the figures begins at most
PAUSE_S = 0.02
ROUND_NS = 5_000_000_000  # at least, from one round to the next; between them the sums grow by their rates


class Count(NamedTuple):
    """The figures of one bucket. Its overrun at an instant is `overrun + running * instant`."""

    overrun: int = 0  # internal units
    running: int = 0  # total rate of the accounts whose overrun grows, in nanos per hour: internal units a nanosecond
    accounts: int = 0  # how many accounts these are
    oldest_ns: int = NEVER_NS  # since when the oldest cutoff that is not held back has been owed
    classless: int = 0  # accounts whose class the configuration does not have
    restores: int = 0  # accounts that owe a restore
    dearest: tuple[int, bytes] = (0, b"")  # the highest rate among the accounts whose overrun grows, and its user


_NOTHING: Final = Count()


class Aggregates:
    """The rounds over the books of one shard. `classes`: the classes of the configuration. `is_held(bucket_id,
    user_id)`: whether the user's cutoffs wait for a release.
    """

    def __init__(
        self,
        books: dict[int, Book],
        classes: Container[bytes] = (),
        is_held: Callable[[int, bytes], bool] = lambda bucket_id, user_id: False,
    ) -> None:
        self._books = books
        self._classes = classes
        self._is_held = is_held
        self._counts: dict[int, Count] = {}  # of the buckets that had something to count
        self._sum = [0, 0, 0, 0, 0]  # over `_counts`: overrun, running, accounts, classless, restores
        self._overruns: dict[int, int] = {}  # by bucket, the overrun at the last visit
        self._oldest: dict[int, int] = {}  # by bucket, `Count.oldest_ns` if there is such a cutoff
        self._dearest: dict[int, tuple[int, bytes]] = {}
        self._round: Iterator[int] = iter(())
        self._visited: set[int] = set()  # buckets that a round has visited and that are still here
        self._grown = 0  # internal units
        self._began_ns = -ROUND_NS  # when the last round began
        self._is_over = True  # whether the last round has ended

    def is_due(self, now_ns: int) -> bool:
        """Whether there is work for `step`: a round is under way, or the next one may begin."""
        return not self._is_over or now_ns - self._began_ns >= ROUND_NS

    def step(self, now_ns: int) -> bool:
        """Goes on with the round, or begins the next one; returns whether the round has ended."""
        work_left = WORK_MAX
        bucket_id = next(self._round, 0)
        if not bucket_id:
            self._round, self._began_ns, self._is_over = iter(sorted(self._books)), now_ns, False
            for gone in [counted_id for counted_id in self._counts if counted_id not in self._books]:
                self._put(gone, _NOTHING)
            self._visited.intersection_update(self._books)
            bucket_id = next(self._round, 0)
        counts, overruns = self._counts, self._overruns
        while bucket_id:
            book = self._books.get(bucket_id)
            if book is not None and book.extras:
                count = _count(book, self._classes, self._is_held)
                if count != counts.get(bucket_id, _NOTHING):
                    self._put(bucket_id, count)
                overrun = count.overrun + count.running * now_ns
                before = overruns.get(bucket_id, 0)
                if overrun != before:
                    overruns[bucket_id] = overrun
                    if overrun > before and bucket_id in self._visited:
                        self._grown += overrun - before
                work_left -= EXTRA_WORK * len(book.extras)
            elif bucket_id in counts:
                self._put(bucket_id, _NOTHING)
            if book is not None:
                self._visited.add(bucket_id)
            work_left -= 1
            if work_left <= 0:
                return False
            bucket_id = next(self._round, 0)
        self._is_over = True
        return True

    def _put(self, bucket_id: int, count: Count) -> None:
        before, total = self._counts.pop(bucket_id, _NOTHING), self._sum
        total[0] += count.overrun - before.overrun
        total[1] += count.running - before.running
        total[2] += count.accounts - before.accounts
        total[3] += count.classless - before.classless
        total[4] += count.restores - before.restores
        self._oldest.pop(bucket_id, None)
        self._dearest.pop(bucket_id, None)
        if count == _NOTHING:
            self._overruns.pop(bucket_id, None)
            return
        self._counts[bucket_id] = count
        if count.oldest_ns != NEVER_NS:
            self._oldest[bucket_id] = count.oldest_ns
        if count.dearest[0]:
            self._dearest[bucket_id] = count.dearest

    def figures(self, now_ns: int) -> dict[str, Any]:
        """Sums over the buckets, as plain data; `oldest_owed_ns` is -1 if no cutoff is owed except those held back."""
        overrun, running, accounts, classless, restores = self._sum
        oldest_ns = min(self._oldest.values(), default=NEVER_NS)
        rate, user_id = max(self._dearest.values(), default=(0, b""))
        return {
            "overrun_nanos": (overrun + running * now_ns) // NANO,
            "overrun_grown_nanos": self._grown // NANO,
            "overrun_nanos_per_hour": running,
            "overrun_accounts": accounts,
            "overrun_dearest": (rate, user_id.decode()),
            "unknown_class_accounts": classless,
            "restores_owed": restores,
            "oldest_owed_ns": -1 if oldest_ns == NEVER_NS else max(0, now_ns - oldest_ns),
        }


def _count(book: Book, classes: Container[bytes], is_held: Callable[[int, bytes], bool]) -> Count:
    overrun = running = accounts = classless = restores = 0
    oldest_ns = NEVER_NS
    dearest = 0, b""
    for slot, extra in book.extras.items():
        overrun += extra.overrun
        classless += bool(extra.class_name) and extra.class_name not in classes
        settled_ns, _, _, rate, _, _, flags = ROW.unpack_from(book.rows, slot * ROW.size)
        if rate and flags & EXHAUSTED:
            overrun -= rate * settled_ns
            running += rate
            accounts += 1
            if rate > dearest[0]:
                dearest = rate, book.users[slot]
        restores += extra.off_seq > extra.on_seq and not flags & EXHAUSTED
        if book.pending_cutoffs:
            for cutoff in extra.cutoffs:
                if cutoff.status == PENDING and cutoff.due_ns < oldest_ns:
                    if is_held(book.bucket_id, book.users[slot]):
                        break
                    oldest_ns = cutoff.due_ns
    return Count(overrun, running, accounts, oldest_ns, classless, restores, dearest)
