"""A book: the accounts of one bucket, as columns.

Every account is one row of 48 bytes in a bytearray: one `unpack_from` reads the row, one `pack_into` writes it, it is
smaller than a cache line, and the garbage collector has nothing to walk. Other columns hold the instant of the
account's live filing in the timing wheel (8 bytes) and its user_id; an index maps user_id to row. The fields that few
accounts have are in an `Extra`. With its user_id and the index an account takes about 170 bytes.

A closed account leaves a tombstone: the numbers that must go on rising if the account is opened again, the rate_seqs of
its lines for as long as a late retry of a rate report could do harm, and whether the user's machines may be off. The
row is wiped and used again.

`ref = bucket_id << 32 | slot` names an account for the wheel. `armed_ns[slot]` is the instant at which the account's
live filing stands: `NEVER_NS` if there is none, 0 in a book in which time stands still (loaded, replayed, about to be
moved away). An account is filed only at an instant below its live filing, so in such a book none ever is.

The totals are sums over all entries ever made in the bucket, in internal units; `audit` compares them with the
balances.
"""

import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from billing.ledger.extra import NEVER_NS, Extra
from billing.ledger.requests import RequestIds

# settled_ns, balance nanos and frac, rate (nanos per hour), entry_id, exhaustion_seq, flags
ROW: Final = struct.Struct("<qqqqqII")
_FLAGS_AT: Final = struct.calcsize("<qqqqqI")  # the first byte of the flags
BLANK: Final = bytes(ROW.size)

# Flags of a row.
EXHAUSTED: Final = 1
HAS_EXTRA: Final = 2
ACCRUING: Final = 4  # the account is exhausted and goes on below zero

SLOT_BITS: Final = 32
SLOT_MASK: Final = (1 << SLOT_BITS) - 1
SLICE_ROWS: Final = 2048  # accounts of a large bucket in one slice of work, before other work gets its turn

_SLOTS: Final = tuple(range(1 << 14))  # row numbers shared by all books


def shared_slots(count: int) -> Iterable[int]:
    """0, 1, ... count - 1; the first `2**14` numbers are the same objects in all books, which saves memory."""
    return chain(_SLOTS[:count], range(len(_SLOTS), count))


Filing = tuple[int, int]  # (ref, filed_ns): an account, and the instant at which a filing of it stands in the wheel


class Tombstone(NamedTuple):
    """The state of a closed account that is kept, beside its request ids."""

    settled_ns: int
    entry_id: int
    exhaustion_seq: int
    quiet: tuple[tuple[bytes, int, int], ...]  # (resource, rate_seq, since_ns), oldest first
    off: bytes  # if the user's machines may be off, a packed `Extra` with the latest cutoff; else empty


class Totals:
    """Sums over all entries of one bucket, in internal units; all are 0 or more except `adjustments`."""

    NAMES: Final = ("top_ups", "debits", "accrued", "adjustments", "paid_out")
    __slots__ = NAMES

    def __init__(self) -> None:
        self.top_ups = 0
        self.debits = 0  # with captures of holds, and the rests of credits that ended
        self.accrued = 0
        self.adjustments = 0
        self.paid_out = 0  # on closing, with forfeited credits

    def balance(self) -> int:
        """The sum that all balances of the bucket must have."""
        return self.top_ups - self.debits - self.accrued + self.adjustments - self.paid_out


class Book:
    """The accounts of one bucket, its tombstones, request ids and totals. Only the ledger changes a book."""

    __slots__ = (
        "armed_ns",
        "awake",
        "bucket_id",
        "closed",
        "extras",
        "fading",
        "free",
        "ids",
        "order",
        "pending_cutoffs",
        "rows",
        "slots",
        "totals",
        "users",
    )

    def __init__(self, bucket_id: int) -> None:
        self.bucket_id = bucket_id
        self.slots: dict[bytes, int] = {}
        self.users: list[bytes] = []  # b"" where the slot is free
        self.rows = bytearray()
        self.armed_ns: array[int] = array("Q")
        self.awake = False  # time passes: coming instants are filed
        self.free: list[int] = []
        self.extras: dict[int, Extra] = {}
        self.closed: dict[bytes, Tombstone] = {}
        self.fading: deque[bytes] = deque()  # closed accounts whose tombstones hold rate_seqs, in order of closing
        self.ids = RequestIds()
        self.order: list[bytes] | None = None  # the sorted user_ids, see `ordered`; not state
        self.totals = Totals()
        self.pending_cutoffs = 0

    def is_exhausted(self, slot: int) -> bool:
        """Whether the account in this row is exhausted; makes no working copy."""
        return self.rows[slot * ROW.size + _FLAGS_AT] & EXHAUSTED != 0

    def open_slot(self, user_id: bytes) -> int:
        """Takes a blank row for a user who has none; returns its number."""
        assert user_id, "a free row has no user"
        assert user_id not in self.slots, "an account is opened once"
        if self.free:
            slot = self.free.pop()
            self.users[slot] = user_id
        else:
            slot = len(self.users)
            assert slot < 1 << SLOT_BITS
            if slot < len(_SLOTS):
                slot = _SLOTS[slot]
            self.users.append(user_id)
            self.rows += BLANK
            self.armed_ns.append(0)
        self.slots[user_id] = slot
        self.order = None
        self.armed_ns[slot] = NEVER_NS if self.awake else 0
        return slot

    def excerpt(self, user_id: bytes) -> "Book":
        """A new book of the same bucket with only a copy of this account, or of its tombstone."""
        copy = Book(self.bucket_id)
        slot = self.slots.get(user_id)
        if slot is not None:
            copied = copy.open_slot(user_id)
            copy.rows[copied * ROW.size :] = self.rows[slot * ROW.size : (slot + 1) * ROW.size]
            extra = self.extras.get(slot)
            if extra is not None:
                copy.extras[copied] = extra.copied()
                copy.pending_cutoffs = len(extra.pending())
        elif user_id in self.closed:
            copy.closed[user_id] = self.closed[user_id]
        return copy

    def shrinking(self) -> Iterator[None]:
        """Frees the memory of a book that is no longer used, in slices: freeing a large book at once would pause the
        worker.
        """
        for table in (self.slots, self.extras, self.closed):
            while table:
                for _ in range(min(SLICE_ROWS, len(table))):
                    table.popitem()
                yield
        while self.users:
            del self.users[-SLICE_ROWS:]
            yield

    def close_slot(self, user_id: bytes) -> None:
        """Wipes the row of a user and frees it for another. The user's filing in the wheel, if any, becomes stale."""
        slot = self.slots.pop(user_id)
        self.order = None
        self.users[slot] = b""
        self.rows[slot * ROW.size : (slot + 1) * ROW.size] = BLANK
        self.extras.pop(slot, None)
        self.free.append(slot)

    def ordered(self) -> list[bytes]:
        """The sorted user_ids; the caller must not change the list. It is made anew after an account was opened or
        closed.
        """
        if self.order is None:
            self.order = sorted(self.slots)
        return self.order
