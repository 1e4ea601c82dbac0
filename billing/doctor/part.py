"""Parses a bucket in a snapshot a second time: from the grammars in `shards.shard`, `billing.ledger.block`,
`billing.ledger.book` and `billing.ledger.extra`, not with their code.

    part    kind u8 | bucket u16 | generation u32 | position i64 | block
            kind 2: the bucket; 3: it is not at this shard; 4: it is unchanged since a move to this shard, which may
            not be decided
    block   "BOOK" | u16 3 | bucket u32 | pending u32 | ten times: u32 length, bytes
            1 totals, five of 32 bytes   2 lengths of user_ids, u8 a row   3 user_ids   4 rows
            5 free rows, u32 each   6 rows with an extra, u32 each   7 extras, u32 length each
            8 graves   9 names   10 kept entries, u32 length each
    row     settled_ns, balance nanos, frac, rate, entry_id i64 | seq, flags u32
    extra   credit limit, holds, overrun nanos, frac i64 | off_seq u32, off i64 | on_seq, restore attempts u32
            | has lines u8 | counts: lines, quiet, holds u32, thresholds u8, cutoffs u32
            | u16 length of the restore's error
            | lines and quiet: i64 i64 u8 name | holds: i64 u64 u8 name | thresholds: u8 i64
            | cutoffs: seq u32, at i64, attempts u32, status u8, released u8, u16 error | the restore's error
            | sections: tag u8, length u32; 1 leases: ends i64, u8 name
            | 2 credits: ends, rest nanos, frac, entry_id, amount i64, u8 kind; 3 the class
            | 4 cutoffs that had a grace: seq u32, instant from which it is called i64
            | 5 cutoffs that had their 2xx: seq u32, instant of the 2xx i64
            | 6 cutoffs whose restore had its 2xx: seq u32, instant of that 2xx i64
    grave   u8 user_id | settled_ns, entry_id i64 | seq, quiet u32 | u16 length of off
            | quiet: rate_seq, since i64, u8 name | off: an extra with latest cutoff, off_seq, off and on_seq alone

The number of an account's row is no fact about the account, and is not compared.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from billing.doctor.entry import UNIT, Garbled, read_entry
from billing.doctor.replay import digest
from billing.doctor.state import IN_GRACE, TOTALS, Account, Bucket, Credit, Cutoff, Grave

_ENVELOPE = struct.Struct("<BHIq")
_BLOCK = struct.Struct("<4sHII")
_ROW = struct.Struct("<qqqqqII")
_EXTRA = struct.Struct("<qqqqIqIIBIIIBIH")
_LINE = struct.Struct("<qqB")
_HOLD = struct.Struct("<qQB")
_THRESHOLD = struct.Struct("<Bq")
_CUTOFF = struct.Struct("<IqIBBH")
_SECTION = struct.Struct("<BI")
_LEASE = struct.Struct("<qB")
_CREDIT = struct.Struct("<qqqqqB")
_INSTANT = struct.Struct("<Iq")
_LEASES, _CREDITS, _CLASS, _GRACES, _DELIVERIES, _RESTORES = 1, 2, 3, 4, 5, 6
_GRAVE = struct.Struct("<qqIIH")
_OWN, _LEAVE, _RECEIVED = 2, 3, 4
_EXHAUSTED, _HAS_EXTRA, _ACCRUING = 1, 2, 4


class Head(NamedTuple):
    """The fields before the block: the bucket, its generation, and the position up to which the block has its
    records.
    """

    bucket_id: int
    generation: int
    position: int
    is_here: bool
    is_untouched: bool  # moved here, without an entry since: the move may never have been decided


class Part(NamedTuple):
    """A bucket at a position of its shard's log."""

    head: Head
    bucket: Bucket | None  # None if the bucket is not at this shard
    pending: int  # the block's own count of cutoffs to be delivered


class _Bytes:
    """Reads bytes from the beginning to the end. Raises Garbled if they end too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise Garbled(f"it ends at {len(self._data)}, within what goes on to {end}")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def numbers(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def counted(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "little"))

    def name(self) -> bytes:
        return self.take(self.take(1)[0])


def read_head(data: bytes) -> Head:
    """Parses the fields before the block of a part. Raises Garbled."""
    if len(data) < _ENVELOPE.size:
        raise Garbled(f"a part of {len(data)} bytes")
    kind, bucket_id, generation, position = _ENVELOPE.unpack_from(data)
    if kind not in (_OWN, _LEAVE, _RECEIVED) or (kind == _LEAVE and len(data) > _ENVELOPE.size):
        raise Garbled(f"a part of kind {kind} with {len(data)} bytes")
    return Head(bucket_id, generation, position, kind != _LEAVE, kind == _RECEIVED)


def read_part(data: bytes) -> Part:
    """Parses one part of a snapshot. Raises Garbled."""
    head = read_head(data)
    if not head.is_here:
        return Part(head, None, 0)
    return Part(head, *read_block(head.bucket_id, head.generation, data[_ENVELOPE.size :]))


def read_block(bucket_id: int, generation: int, block: bytes) -> tuple[Bucket, int]:
    """Parses a block: (the bucket, the block's own count of pending cutoffs). Raises Garbled."""
    if len(block) < _BLOCK.size:
        raise Garbled(f"a block of {len(block)} bytes")
    magic, version, of_bucket, pending = _BLOCK.unpack_from(block)
    if (magic, version, of_bucket) != (b"BOOK", 3, bucket_id):
        raise Garbled(f"no block of bucket {bucket_id} of a known kind: {magic!r} {version} {of_bucket}")
    sections = _Bytes(block[_BLOCK.size :])
    totals, lengths, users, rows, free, marked, extras, graves, _, kept_entries = (
        sections.counted() for _ in range(10)
    )
    if sections.more:
        raise Garbled("something stands behind the last part of the block")
    bucket = Bucket(bucket_id, generation)
    sums = _Bytes(totals)
    bucket.totals = {name: int.from_bytes(sums.take(32), "little", signed=True) for name in TOTALS}
    if sums.more or len(rows) != len(lengths) * _ROW.size or len(free) % 4 or len(marked) % 4:
        raise Garbled("the columns of the block have different lengths")
    of_row = dict(zip((row for (row,) in struct.iter_unpack("<I", marked)), _split(extras), strict=False))
    names = _Bytes(users)
    for number, (length, row) in enumerate(zip(lengths, _ROW.iter_unpack(rows), strict=True)):
        if length:
            account = _read_account(names.take(length), row, of_row.pop(number, None))
            bucket.accounts[account.user_id] = account
    if names.more or of_row or len(bucket.accounts) + len(free) // 4 != len(lengths):
        raise Garbled("the rows of the block do not add up")
    stones = _Bytes(graves)
    while stones.more:
        user_id = stones.name()
        settled_ns, entry_id, seq, count, off_length = stones.numbers(_GRAVE)
        quiet = {}
        for _ in range(count):
            rate_seq, since_ns, length = stones.numbers(_LINE)
            quiet[stones.take(length)] = (rate_seq, since_ns)
        grave = bucket.graves[user_id] = Grave(settled_ns, entry_id, seq, quiet)
        if off_length:
            stub = Account(user_id)
            _read_extra(stub, _Bytes(stones.take(off_length)))
            if len(stub.cutoffs) != 1:
                raise Garbled(f"the closed account {user_id!r} may be off by {len(stub.cutoffs)} cutoffs")
            grave.off = stub.cutoffs[0], stub.off_seq, stub.off_ns, stub.on_seq
    for packed in _split(kept_entries):
        entry = read_entry(packed)
        key = bytes((len(entry.user_id),)) + entry.user_id + entry.request_id
        if not entry.request_id or key in bucket.request_ids:
            raise Garbled(f"the request_id {entry.request_id!r} of {entry.user_id!r} is kept twice, or is none")
        bucket.request_ids[key] = entry.at_ns, digest(packed)
        bucket.order.append(key)
    return bucket, pending


def _split(joined: bytes) -> list[bytes]:
    rest = _Bytes(joined)
    parts = []
    while rest.more:
        parts.append(rest.counted())
    return parts


def _read_account(user_id: bytes, row: tuple[int, ...], extra: bytes | None) -> Account:
    account = Account(user_id)
    account.settled_ns, nanos, frac, account.rate, account.entry_id, account.seq, flags = row
    if not 0 <= frac < UNIT or flags & ~(_EXHAUSTED | _HAS_EXTRA | _ACCRUING):
        raise Garbled(f"account {user_id!r} has a fraction of {frac} and flags {flags}")
    if bool(flags & _HAS_EXTRA) != (extra is not None):
        raise Garbled(f"account {user_id!r}: its row and its extra disagree")
    account.balance = account.net = nanos * UNIT + frac
    account.exhausted = bool(flags & _EXHAUSTED)
    account.accruing = bool(flags & _ACCRUING)
    if account.rate:
        account.lines = {b"": (account.rate, -1)}
    if extra is not None:
        _read_extra(account, _Bytes(extra))
    return account


def _read_extra(account: Account, rest: _Bytes) -> None:
    (
        account.credit_limit_nanos, account.holds_nanos, overrun, overrun_frac, account.off_seq, account.off_ns,
        account.on_seq, account.restore_attempts, has_lines, lines, quiet, holds, thresholds, cutoffs, error_len,
    ) = rest.numbers(_EXTRA)  # fmt: skip
    account.overrun = overrun * UNIT + overrun_frac
    table = _read_lines(rest, lines)
    if has_lines:
        account.lines = table or None
    account.quiet = _read_lines(rest, quiet) or None
    held = {}
    for _ in range(holds):
        nanos, expires_ns, length = rest.numbers(_HOLD)
        held[rest.take(length)] = (nanos, expires_ns)
    account.holds = held or None
    account.thresholds = tuple((kind, value) for kind, value in (rest.numbers(_THRESHOLD) for _ in range(thresholds)))
    for _ in range(cutoffs):
        seq, at_ns, attempts, status, released, length = rest.numbers(_CUTOFF)
        if status > IN_GRACE:
            raise Garbled(f"account {account.user_id!r} has a cutoff of status {status}")
        account.cutoffs.append(Cutoff(seq, at_ns, status, attempts, bool(released), rest.take(length)))
    account.restore_error = rest.take(error_len)
    while rest.more:
        tag, length = rest.numbers(_SECTION)
        section = _Bytes(rest.take(length))
        if tag == _CLASS:
            account.class_name = section.take(length)
            continue
        if tag == _GRACES:
            for cutoff, called_ns in _read_instants(account, section, "a grace"):
                cutoff.called_ns = called_ns
            continue
        if tag == _DELIVERIES:
            for cutoff, delivered_ns in _read_instants(account, section, "a 2xx"):
                cutoff.delivered_ns = delivered_ns
            continue
        if tag == _RESTORES:
            for cutoff, restored_ns in _read_instants(account, section, "a restore's 2xx"):
                cutoff.restored_ns = restored_ns
            continue
        if tag == _CREDITS:
            while section.more:
                ends_ns, nanos, frac, entry_id, of_top_up, kind_length = section.numbers(_CREDIT)
                kind = section.take(kind_length)
                account.credits.append(Credit(ends_ns, nanos * UNIT + frac, entry_id, of_top_up, kind))
            continue
        if tag != _LEASES:
            raise Garbled(f"account {account.user_id!r}: its extra has the unknown section {tag}")
        leases = {}
        while section.more:
            ends_ns, name_length = section.numbers(_LEASE)
            leases[section.take(name_length)] = ends_ns
        account.leases = leases or None


def _read_instants(account: Account, section: _Bytes, what: str) -> Iterator[tuple[Cutoff, int]]:
    """Yields each cutoff that the section names, with its instant. Raises Garbled for one that the account lacks."""
    of_seq = {cutoff.seq: cutoff for cutoff in account.cutoffs}
    while section.more:
        seq, at_ns = section.numbers(_INSTANT)
        if seq not in of_seq:
            raise Garbled(f"account {account.user_id!r}: {what} of the cutoff {seq}, which it does not have")
        yield of_seq[seq], at_ns


def _read_lines(rest: _Bytes, count: int) -> dict[bytes, tuple[int, int]]:
    table = {}
    for _ in range(count):
        first, second, length = rest.numbers(_LINE)
        table[rest.take(length)] = (first, second)
    return table
