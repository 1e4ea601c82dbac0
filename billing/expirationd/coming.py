"""Finds the coming instants of a book's accounts straight from its columns. Pure; reads neither the wheel nor a clock.

These are the same instants as those of `billing.ledger.schedule`: for a plain account this module computes E from the
row with one division, for any other it calls the ledger's function. `forecast` counts the instants, and the wheel
scrubber compares them with the wheel. One account costs some 0.5 µs; between slices of `SLICE_ACCOUNTS` the worker
serves other work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from billing.ledger.account import Account
from billing.ledger.book import ROW, Book
from billing.ledger.exhaustion import exhaustion_ns
from billing.ledger.extra import NEVER_NS
from billing.ledger.money import NANO
from billing.ledger.schedule import coming_ns

SLICE_ACCOUNTS: Final = 1_000
SECOND_NS: Final = 10**9

CallAt = Callable[[Account], int]


def coming_in(book: Book, call_at_ns: CallAt, first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """For each of `count` rows from `first` on that has something coming: (slot, the instant of the next cutoff call,
    the coming instant of any kind).

    Both may be NEVER_NS or lie beyond 2**63-1. The book must not change meanwhile. `call_at_ns`: the instant of an
    account's next cutoff call, see `Ledger.call_at_ns`; for a plain account that is E.
    """
    slot = first - 1
    for row in ROW.iter_unpack(memoryview(book.rows)[first * ROW.size : (first + count) * ROW.size]):
        slot += 1
        settled_ns, nanos, frac, rate, _, _, flags = row
        if flags:
            account = Account(book, slot, book.users[slot])
            next_ns = coming_ns(account)
            if next_ns < NEVER_NS:
                yield slot, call_at_ns(account), next_ns
        elif rate:
            runs_out_ns = exhaustion_ns(settled_ns, nanos * NANO + frac, rate)
            yield slot, runs_out_ns, runs_out_ns


def slices(books: dict[int, Book], accounts: int = SLICE_ACCOUNTS) -> Iterator[list[tuple[Book, int, int]]]:
    """The rows of all books, in slices of `accounts` rows: lists of (book, first row, number of rows). Leaves out books
    that come or go meanwhile.
    """
    part: list[tuple[Book, int, int]] = []
    remaining = accounts
    for bucket_id in sorted(books):
        first = 0
        while (book := books.get(bucket_id)) is not None and first < len(book.users):
            count = min(remaining, len(book.users) - first)
            part.append((book, first, count))
            first += count
            remaining -= count
            if remaining == 0:
                yield part
                part, remaining = [], accounts
    if part:
        yield part


def forecast(
    books: dict[int, Book], call_at_ns: CallAt, now_ns: int, until_ns: int
) -> Generator[None, None, dict[str, Any]]:
    """Counts the cutoff calls in each second from `now_ns` to before `until_ns`. Returns plain data: `{"from_ns",
    "seconds": [(second since the epoch, count), …], "next"}`, seconds ascending; `"next"` is (instant, user id) of the
    first call, or None. Yields between slices.
    """
    counts: Counter[int] = Counter()
    first_ns, first_user = until_ns, b""
    for part in slices(books):
        for book, first, count in part:
            if books.get(book.bucket_id) is not book:
                continue
            for slot, called_ns, _ in coming_in(book, call_at_ns, first, count):
                if now_ns <= called_ns < until_ns:
                    counts[called_ns // SECOND_NS] += 1
                    if called_ns < first_ns:
                        first_ns, first_user = called_ns, book.users[slot]
        yield
    following = (first_ns, first_user) if first_user else None
    return {"from_ns": now_ns, "seconds": sorted(counts.items()), "next": following}


def merged(parts: list[dict[str, Any]], within_ns: int, step_ns: int) -> dict[str, Any]:
    """Joins the parts of all shards into the answer of the method `forecast`. Each part has `takes_per_second`, the
    calls per second that the shard last measured (see `throughput`).

    The sum of these is given only if every shard with a coming cutoff has measured: a sum over some of the shards would
    be too low.
    """
    from_ns = min(part["from_ns"] for part in parts) // SECOND_NS * SECOND_NS
    seconds: Counter[int] = Counter()
    for part in parts:
        for second, count in part["seconds"]:
            seconds[second] += count
    rows: dict[int, list[int]] = {}
    for second, count in sorted(seconds.items()):
        index = (second * SECOND_NS - from_ns) // step_ns
        row = rows.setdefault(index, [0, 0])
        row[0] += count
        row[1] = max(row[1], count)
    peak = max(seconds.items(), key=lambda item: (item[1], -item[0]), default=None)
    takes = [part["takes_per_second"] for part in parts if part["seconds"]]
    is_known = takes and min(takes) >= 0
    following = min((tuple(part["next"]) for part in parts if part["next"]), default=None)
    return {
        "from_ns": from_ns,
        "within_ns": within_ns,
        "step_ns": step_ns,
        "cutoffs": sum(seconds.values()),
        "next_at_ns": None if following is None else following[0],
        "next_user_id": None if following is None else following[1].decode(),
        "peak_at_ns": None if peak is None else peak[0] * SECOND_NS,
        "peak_per_second": 0 if peak is None else peak[1],
        "endpoint_takes_per_second": sum(takes) if is_known else None,
        "steps": [
            {"at_ns": from_ns + index * step_ns, "cutoffs": row[0], "most_in_a_second": row[1]}
            for index, row in rows.items()
        ],
    }
