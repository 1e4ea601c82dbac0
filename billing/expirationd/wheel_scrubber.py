"""The wheel scrubber: walks slowly over all accounts, computes what is due anew, and compares it with the wheel.

Tarantool's module expirationd works only in this way: it looks at every account, again and again. Here the wheel fires
in time, and this walk checks that it does. An account is a *mismatch* when something is coming for it and

- its filing is missing or lies behind the coming instant, so that it would fire late; or
- the instant has passed, although the wheel has nothing left to do now.

There must never be a mismatch. One that is found all the same is counted and healed: the due event is applied at its
true instant, and the account is filed anew. The walk also counts the cutoffs in each second of the coming hour.

**Cost.** `ACCOUNTS_A_STEP` accounts a step (a millisecond), one step a second, a round at most every `ROUND_NS`: with a
million accounts in two shards 0.1 % of a core each, and a round in some eight minutes. Pure: the time is an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from billing.expirationd.coming import SECOND_NS, CallAt, coming_in, slices
from billing.ledger.book import SLOT_BITS, Book
from billing.ledger.money import INT64_MAX

ACCOUNTS_A_STEP: Final = 1_000
ROUND_NS: Final = 60 * SECOND_NS
HORIZON_NS: Final = 3_600 * SECOND_NS


class WheelScrubber:
    """The walk over the books of one shard. `heal(refs, now_ns)` applies what is due and files the
    accounts anew."""

    def __init__(self, books: dict[int, Book], heal: Callable[[list[int], int], object], call_at_ns: CallAt) -> None:
        self._books = books
        self._call_at_ns = call_at_ns
        self._heal = heal
        self._parts: Iterator[list[tuple[Book, int, int]]] | None = None
        self._next_round_ns = 0
        self._counting: Counter[int] = Counter()
        self.checked = 0
        self.mismatches = 0
        self.rounds = 0
        self.seconds: list[tuple[int, int]] = []  # (second, cutoffs) of the coming hour, from the last whole round

    def step(self, now_ns: int, wheel_next_ns: int) -> int:
        """Checks the next accounts; returns the number of mismatches. `wheel_next_ns`: `next_due_ns` of the wheel."""
        if self._parts is None:
            if now_ns < self._next_round_ns:
                return 0
            self._next_round_ns = now_ns + ROUND_NS
            self._parts = slices(self._books, ACCOUNTS_A_STEP)
            self._counting = Counter()
        part = next(self._parts, None)
        if part is None:
            self._parts = None
            self.rounds += 1
            self.seconds = sorted(self._counting.items())
            return 0
        behind = 0 <= wheel_next_ns <= now_ns  # the wheel has work to do now: an instant that just passed is part of it
        wrong = []
        for book, first, count in part:
            if self._books.get(book.bucket_id) is not book or not book.awake:
                continue
            self.checked += count
            armed_ns = book.armed_ns
            for slot, called_ns, coming_ns in coming_in(book, self._call_at_ns, first, count):
                if coming_ns <= INT64_MAX and (armed_ns[slot] > coming_ns or (coming_ns <= now_ns and not behind)):
                    wrong.append(book.bucket_id << SLOT_BITS | slot)
                elif called_ns < now_ns + HORIZON_NS:
                    self._counting[called_ns // SECOND_NS] += 1
        self._heal(wrong, now_ns)
        self.mismatches += len(wrong)
        return len(wrong)

    def begin_again(self) -> None:
        """Has the next step begin a new round; called after an error in a step."""
        self._parts = None

    def coming(self, now_ns: int) -> list[tuple[int, int]]:
        """(second, cutoffs) of the seconds that are still to come, from the last whole round."""
        return [row for row in self.seconds if row[0] * SECOND_NS >= now_ns]
