"""A bucket as one block of bytes: for snapshots and moves. Equal states give equal bytes.

A block holds whole columns, not one account after another. Grammar, little-endian; a part is `u32 length, bytes`:

    block       = "BOOK" version u16, bucket_id u32, pending_cutoffs u32, part*10
    parts:
    totals        5 numbers of 32 bytes, signed, in internal units: top_ups, debits, accrued, adjustments, paid_out
    lengths       u8 for each row: the length of its user_id, 0 if the row is free
    users         the user_ids, one behind the other
    rows          as they are in memory
    free          u32 each: the free rows; the last one is used first
    extra slots   u32 each, ascending: the rows that have an `Extra`
    extras        u32 length and bytes each, as `Extra.pack` makes them, in the order of the extra slots
    tombstones    each user_id (u8 length), settled_ns, entry_id i64, exhaustion_seq u32, u32 count of quiet lines,
                  u16 length of `off`, each line (rate_seq, since_ns i64, u8 length, resource), off; in order of closing
    fading        the user_ids (u8 length) of closed accounts whose tombstones hold rate_seqs, in order of closing
    request ids   u32 length and bytes each: the stored entries, oldest first

Example: the empty bucket 7 is "BOOK", 0300, 07000000, 00000000, a0000000 and 160 zeros, then nine empty parts of
00000000.

A block comes from a snapshot or a move whose checksums have been verified, so a fault in a block is a bug, or the block
is of another version; `load` then raises ValueError or AssertionError. A block does not hold the filings in the wheel
and the presumed attempts: they are not state.
"""

import struct
from array import array
from collections.abc import Generator, Iterable, Iterator
from itertools import accumulate, islice
from typing import Final, TypeVar

from billing.ledger.book import ROW, SLICE_ROWS, Book, Tombstone, Totals, shared_slots
from billing.ledger.extra import unpack as unpack_extra

T = TypeVar("T")

VERSION: Final = 3

_HEAD = struct.Struct("<4sHII")
_MAGIC: Final = b"BOOK"
_U32 = struct.Struct("<I")
_TOMBSTONE = struct.Struct("<qqIIH")
_QUIET = struct.Struct("<qqB")
_TOTAL_BYTES: Final = 32


def dump(book: Book) -> bytes:
    """Packs a book into a block."""
    return run(dumping(book))


def dumping(book: Book) -> Generator[None, None, bytes]:
    """`dump` in slices; the book must not change between them."""
    slots = sorted(book.extras)
    extras = []
    for first in range(0, len(slots), SLICE_ROWS):
        extras += [book.extras[slot].pack() for slot in slots[first : first + SLICE_ROWS]]
        yield
    lengths, users = bytearray(), bytearray()
    for first in range(0, len(book.users), SLICE_ROWS):
        names = book.users[first : first + SLICE_ROWS]
        lengths += bytes(map(len, names))
        users += b"".join(names)
        yield
    parts: list[bytes | bytearray] = [
        b"".join(getattr(book.totals, name).to_bytes(_TOTAL_BYTES, "little", signed=True) for name in Totals.NAMES),
        lengths,
        users,
        book.rows,
        struct.pack(f"<{len(book.free)}I", *book.free),
        struct.pack(f"<{len(slots)}I", *slots),
        _join(extras),
        b"".join(_pack_tombstone(user_id, tombstone) for user_id, tombstone in book.closed.items()),
        b"".join(bytes((len(user_id),)) + user_id for user_id in book.fading),
        _join(book.ids),
    ]
    return _HEAD.pack(_MAGIC, VERSION, book.bucket_id, book.pending_cutoffs) + _join(parts)


def load(bucket_id: int, dumped: bytes) -> Book:
    """Unpacks the block of this bucket into a book; time stands still in it. Raises ValueError if the block is of
    another bucket or version.
    """
    return run(loading(bucket_id, dumped))


def run(slices: Generator[None, None, T]) -> T:
    """Runs a generator that works in slices to its end, without a pause; returns its result."""
    while True:
        try:
            next(slices)
        except StopIteration as done:
            result: T = done.value
            return result


def is_of_other_version(dumped: bytes) -> bool:
    """Whether `dumped` is a block of another version."""
    magic, version, _, _ = _HEAD.unpack_from(dumped)
    return bool(magic == _MAGIC and version != VERSION)


def loading(bucket_id: int, dumped: bytes) -> Generator[None, None, Book]:
    """`load` in slices."""
    magic, version, of_bucket, pending_cutoffs = _HEAD.unpack_from(dumped)
    if (magic, version, of_bucket) != (_MAGIC, VERSION, bucket_id):
        raise ValueError(f"not a block of bucket {bucket_id} in version {VERSION}: {magic!r} {version} {of_bucket}")
    totals, lengths, users, rows, free, extra_slots, extras, tombstones, fading, ids = _split(dumped, _HEAD.size)
    book = Book(bucket_id)
    book.pending_cutoffs = pending_cutoffs
    for number, name in enumerate(Totals.NAMES):
        raw = totals[number * _TOTAL_BYTES : (number + 1) * _TOTAL_BYTES]
        setattr(book.totals, name, int.from_bytes(raw, "little", signed=True))
    end = 0
    slots = iter(shared_slots(len(lengths)))
    for first in range(0, len(lengths), SLICE_ROWS):
        piece = lengths[first : first + SLICE_ROWS]
        ends = list(accumulate(piece, initial=end))
        end = ends.pop()
        names = [users[begin : begin + length] for begin, length in zip(ends, piece, strict=True)]
        book.users += names
        book.slots.update(pair for pair in zip(names, islice(slots, len(names)), strict=True) if pair[0])
        yield
    book.rows = bytearray(rows)
    book.armed_ns = array("Q", bytes(8 * len(lengths)))
    book.free = [slot for (slot,) in _U32.iter_unpack(free)]
    book.extras = {
        slot: unpack_extra(packed)
        for (slot,), packed in zip(_U32.iter_unpack(extra_slots), _split(extras), strict=True)
    }
    book.closed = dict(_unpack_tombstones(tombstones))
    book.fading.extend(_names(fading))
    for packed in _split(ids):
        book.ids.restore(packed)
    assert len(rows) == len(lengths) * ROW.size, "a block with rows for other accounts"
    assert len(book.slots) + len(book.free) == len(lengths), "a row is neither used nor free"
    return book


def _join(parts: Iterable[bytes | bytearray]) -> bytes:
    pieces: list[bytes | bytearray] = []
    for part in parts:
        pieces.append(_U32.pack(len(part)))
        pieces.append(part)
    return b"".join(pieces)


def _split(joined: bytes, at: int = 0) -> Iterator[bytes]:
    """The parts that `_join` joined, from `at` on. Raises ValueError if one is cut short."""
    while at < len(joined):
        end = at + _U32.size + _U32.unpack_from(joined, at)[0]
        if end > len(joined):
            raise ValueError("a part of a block ends behind it")
        yield joined[at + _U32.size : end]
        at = end


def _names(joined: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(joined):
        end = at + 1 + joined[at]
        yield joined[at + 1 : end]
        at = end


def _pack_tombstone(user_id: bytes, tombstone: Tombstone) -> bytes:
    settled_ns, entry_id, exhaustion_seq, quiet, off = tombstone
    return (
        bytes((len(user_id),))
        + user_id
        + _TOMBSTONE.pack(settled_ns, entry_id, exhaustion_seq, len(quiet), len(off))
        + b"".join(_QUIET.pack(rate_seq, since_ns, len(resource)) + resource for resource, rate_seq, since_ns in quiet)
        + off
    )


def _unpack_tombstones(joined: bytes) -> Iterator[tuple[bytes, Tombstone]]:
    at = 0
    while at < len(joined):
        end = at + 1 + joined[at]
        user_id = joined[at + 1 : end]
        settled_ns, entry_id, exhaustion_seq, count, off_len = _TOMBSTONE.unpack_from(joined, end)
        at = end + _TOMBSTONE.size
        quiet = []
        for _ in range(count):
            rate_seq, since_ns, length = _QUIET.unpack_from(joined, at)
            at += _QUIET.size + length
            quiet.append((joined[at - length : at], rate_seq, since_ns))
        off = joined[at : at + off_len]
        at += off_len
        yield user_id, Tombstone(settled_ns, entry_id, exhaustion_seq, tuple(quiet), off)
