"""Fields that few accounts have: credit limit, holds, named rate lines, leases, thresholds, credits, cutoffs, a class,
overrun.

A plain account (one unnamed rate line, never exhausted) is a row of its `Book` and nothing else. An account that has
any of these fields gets an `Extra` beside the row, and loses the `Extra` when all of them are empty again. An `Extra`
only holds state; it makes no decisions.

**Rate lines.** `lines` is None while the account has only the unnamed line: its rate is then the row's. Otherwise it
maps each resource whose rate is above zero to (rate, rate_seq), rate_seq -1 if none was ever given. A line at zero
that has a rate_seq is kept in `quiet`, resource to (rate_seq, since_ns), oldest first, so that a late retry of an old
rate stays harmless; a line at zero without a rate_seq is not kept. `leases` maps each line above zero that has a lease
to the instant at which the lease ends; `lines` is then not None.

`next_expiry_ns` is the nearest instant at which a hold is given back, a lease ends, or a grace ends.

**Cutoffs.** `cutoffs` is in order of seq and holds the cutoffs that are still to be delivered, and always the latest
cutoff, whatever its status. `off_seq` is the highest seq for which an attempt began and `off_ns` the exhaustion instant
of that cutoff; `on_seq` is the highest seq that a restore has revoked: the user's machines may be off while off_seq >
on_seq. A cutoff is owed from its `due_ns` on, which is its exhaustion instant, or later if the account's class gives a
grace: until then its status is IN_GRACE, and the account has no other cutoff.

Packed form, little-endian: `_HEAD`, then lines, quiet lines, holds, thresholds and cutoffs, as many as the head states,
then restore_error. Then come the sections that are not empty, in the order of their tags, each as tag u8, length u32
and bytes:

    1   the leases: end i64, length u8, resource
    2   the credits, in the order in which they are spent: end i64, the rest as (nanos, frac) i64 i64, entry_id i64,
        amount i64, length u8, kind
    3   the name of the class
    4   of each cutoff that had a grace: seq u32, due_ns i64
    5   of each cutoff whose call got a 2xx: seq u32, the instant of the 2xx i64
    6   of each cutoff whose restore got a 2xx: seq u32, the instant of the 2xx i64
"""

import struct
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from billing.ledger.entry import IN_GRACE, PENDING
from billing.ledger.money import NANO

NEVER_NS: Final = 2**64 - 1  # no such instant is coming; above every instant there is

_HEAD = struct.Struct("<qqqqIqIIBIIIBIH")
_LINE = struct.Struct("<qqB")  # of lines: rate, rate_seq; of quiet ones: rate_seq, since_ns; then the resource
_HOLD = struct.Struct("<qQB")  # amount_nanos, expires_ns; then the hold_id
_THRESHOLD = struct.Struct("<Bq")
_CUTOFF = struct.Struct("<IqIBBH")  # then the last error
_SECTION = struct.Struct("<BI")
_LEASE = struct.Struct("<qB")  # ends_ns; then the resource
_CREDIT = struct.Struct("<qqqqqB")  # then the kind
_INSTANT = struct.Struct("<Iq")  # seq, due_ns or delivered_ns or restored_ns
_LEASES, _CREDITS, _CLASS, _GRACES, _DELIVERIES, _RESTORES = 1, 2, 3, 4, 5, 6  # tags of sections


class Credit(NamedTuple):
    """A part of the balance that ends, see `credits`. Credits are spent in the order of these tuples."""

    ends_ns: int
    left: int  # internal units, above zero
    entry_id: int  # of its top-up
    amount_nanos: int  # of its top-up
    kind: bytes


class Cutoff:
    """One cutoff and the state of its call. `status` is an index of `entry.STATUS_NAMES`."""

    __slots__ = (
        *("attempts", "delivered_ns", "due_ns", "exhausted_at_ns"),
        *("last_error", "released", "restored_ns", "seq", "status"),
    )

    def __init__(self, seq: int, exhausted_at_ns: int) -> None:
        self.seq = seq
        self.exhausted_at_ns = exhausted_at_ns
        self.due_ns = exhausted_at_ns  # the call is owed from this instant on
        self.status = PENDING
        self.delivered_ns = 0  # the instant of its 2xx; 0: there was none yet, or an older version did not keep it
        self.restored_ns = 0  # likewise, the instant of its restore's 2xx
        self.attempts = 0
        self.last_error = b""
        self.released = False  # an operator released it after it was held back at a start

    def copied(self) -> "Cutoff":
        """Returns a copy."""
        copy = Cutoff(self.seq, self.exhausted_at_ns)
        copy.due_ns, copy.status, copy.attempts = self.due_ns, self.status, self.attempts
        copy.delivered_ns, copy.restored_ns = self.delivered_ns, self.restored_ns
        copy.last_error, copy.released = self.last_error, self.released
        return copy


class Extra:
    """The rare part of one account. Money in nanos, `overrun` in internal units."""

    __slots__ = (
        "class_name",
        "credit_limit_nanos",
        "credits",
        "cutoffs",
        "holds",
        "holds_nanos",
        "lease_ends",
        "leases",
        "lines",
        "next_expiry_ns",
        "off_ns",
        "off_seq",
        "on_seq",
        "overrun",
        "presumed_seq",
        "quiet",
        "restore_attempts",
        "restore_error",
        "thresholds",
    )

    def __init__(self) -> None:
        self.credit_limit_nanos = 0
        self.holds: dict[bytes, tuple[int, int]] = {}  # hold_id -> (amount_nanos, expires_ns)
        self.holds_nanos = 0
        self.next_expiry_ns = NEVER_NS
        self.lines: dict[bytes, tuple[int, int]] | None = None
        self.credits: tuple[Credit, ...] = ()
        self.class_name = b""  # of cutoffs; empty: the default
        self.leases: dict[bytes, int] = {}  # resource -> ends_ns; `lease` adds one
        self.lease_ends: list[tuple[int, bytes]] | None = None  # not state: a heap of them, with some that are no more
        self.quiet: dict[bytes, tuple[int, int]] = {}
        self.thresholds: tuple[tuple[int, int], ...] = ()  # (kind, value), sorted
        self.cutoffs: list[Cutoff] = []
        self.off_seq = 0
        self.off_ns = 0
        self.on_seq = 0
        self.restore_attempts = 0
        self.restore_error = b""
        self.overrun = 0
        self.presumed_seq = 0  # not state: cutoffs up to this one may have been attempted before the last start

    def copied(self) -> "Extra":
        """Returns a copy that shares nothing that changes."""
        copy = Extra()
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.holds, copy.leases, copy.quiet = dict(self.holds), dict(self.leases), dict(self.quiet)
        copy.lines = None if self.lines is None else dict(self.lines)
        copy.lease_ends = None if self.lease_ends is None else list(self.lease_ends)
        copy.cutoffs = [cutoff.copied() for cutoff in self.cutoffs]
        return copy

    def is_empty(self) -> bool:
        """Whether the account needs no `Extra`: its row holds all of its state."""
        return not (
            self.credit_limit_nanos
            or self.holds
            or self.lines is not None
            or self.quiet
            or self.thresholds
            or self.credits
            or self.class_name
            or self.cutoffs
            or self.overrun
            or self.off_seq
        )

    def lease(self, resource: bytes, ends_ns: int) -> None:
        """Gives a line a lease, or another end to its lease."""
        self.leases[resource] = ends_ns
        ends = self.lease_ends
        if ends is None or len(ends) > 2 * len(self.leases):
            ends = self.lease_ends = [(lease_ns, name) for name, lease_ns in self.leases.items()]
            heapify(ends)
        else:
            heappush(ends, (ends_ns, resource))
        self.next_expiry_ns = min(self.next_expiry_ns, ends_ns)

    def next_lease(self) -> tuple[int, bytes] | None:
        """(end, resource) of the lease that ends next, of several the first by name; None if there is none. An account
        may have 10,000 leases, which end one after another: none of them costs a look at all others.
        """
        ends = self.lease_ends
        while ends and self.leases.get(ends[0][1]) != ends[0][0]:
            heappop(ends)
        return ends[0] if ends else None

    def find_next_expiry(self) -> None:
        """Computes `next_expiry_ns` anew."""
        next_ns = min((expires for _, expires in self.holds.values()), default=NEVER_NS)
        if (lease := self.next_lease()) is not None:
            next_ns = min(next_ns, lease[0])
        grace = self.grace()
        self.next_expiry_ns = next_ns if grace is None else min(next_ns, grace.due_ns)

    def grace(self) -> Cutoff | None:
        """The cutoff whose grace is running; None if there is none."""
        return self.cutoffs[-1] if self.cutoffs and self.cutoffs[-1].status == IN_GRACE else None

    def pending(self) -> list[Cutoff]:
        """The cutoffs still to be delivered, oldest first."""
        return [cutoff for cutoff in self.cutoffs if cutoff.status == PENDING]

    def begun(self, cutoff: Cutoff) -> None:
        """Notes that an attempt for this cutoff began, or may have begun."""
        if cutoff.seq > self.off_seq:
            self.off_seq, self.off_ns = cutoff.seq, cutoff.exhausted_at_ns

    def pack(self) -> bytes:
        """The packed form; leaves out `presumed_seq` and `next_expiry_ns`, which are not stored."""
        lines = {} if self.lines is None else self.lines
        overrun_nanos, overrun_frac = divmod(self.overrun, NANO)
        parts = [
            _HEAD.pack(
                self.credit_limit_nanos,
                self.holds_nanos,
                overrun_nanos,
                overrun_frac,
                self.off_seq,
                self.off_ns,
                self.on_seq,
                self.restore_attempts,
                self.lines is not None,
                len(lines),
                len(self.quiet),
                len(self.holds),
                len(self.thresholds),
                len(self.cutoffs),
                len(self.restore_error),
            )
        ]
        for table in (lines, self.quiet):
            parts += [_LINE.pack(first, second, len(name)) + name for name, (first, second) in table.items()]
        parts += [_HOLD.pack(amount, expires, len(name)) + name for name, (amount, expires) in self.holds.items()]
        parts += [_THRESHOLD.pack(kind, value) for kind, value in self.thresholds]
        parts += [
            _CUTOFF.pack(c.seq, c.exhausted_at_ns, c.attempts, c.status, c.released, len(c.last_error)) + c.last_error
            for c in self.cutoffs
        ]
        parts.append(self.restore_error)
        if self.leases:
            packed = b"".join(_LEASE.pack(ends_ns, len(name)) + name for name, ends_ns in self.leases.items())
            parts += [_SECTION.pack(_LEASES, len(packed)), packed]
        if self.credits:
            packed = b"".join(
                _CREDIT.pack(c.ends_ns, *divmod(c.left, NANO), c.entry_id, c.amount_nanos, len(c.kind)) + c.kind
                for c in self.credits
            )
            parts += [_SECTION.pack(_CREDITS, len(packed)), packed]
        if self.class_name:
            parts += [_SECTION.pack(_CLASS, len(self.class_name)), self.class_name]
        if packed := b"".join(_INSTANT.pack(c.seq, c.due_ns) for c in self.cutoffs if c.due_ns != c.exhausted_at_ns):
            parts += [_SECTION.pack(_GRACES, len(packed)), packed]
        if packed := b"".join(_INSTANT.pack(c.seq, c.delivered_ns) for c in self.cutoffs if c.delivered_ns):
            parts += [_SECTION.pack(_DELIVERIES, len(packed)), packed]
        if packed := b"".join(_INSTANT.pack(c.seq, c.restored_ns) for c in self.cutoffs if c.restored_ns):
            parts += [_SECTION.pack(_RESTORES, len(packed)), packed]
        return b"".join(parts)


def unpack(packed: bytes) -> Extra:
    """Unpacks the result of `Extra.pack`."""
    extra = Extra()
    (
        extra.credit_limit_nanos,
        extra.holds_nanos,
        overrun_nanos,
        overrun_frac,
        extra.off_seq,
        extra.off_ns,
        extra.on_seq,
        extra.restore_attempts,
        has_lines,
        line_count,
        quiet_count,
        hold_count,
        threshold_count,
        cutoff_count,
        error_len,
    ) = _HEAD.unpack_from(packed)
    extra.overrun = overrun_nanos * NANO + overrun_frac
    at = _HEAD.size
    lines, at = _unpack_table(_LINE, packed, at, line_count)
    extra.lines = lines if has_lines else None
    extra.quiet, at = _unpack_table(_LINE, packed, at, quiet_count)
    extra.holds, at = _unpack_table(_HOLD, packed, at, hold_count)
    thresholds_end = at + threshold_count * _THRESHOLD.size
    extra.thresholds = tuple((kind, value) for kind, value in _THRESHOLD.iter_unpack(packed[at:thresholds_end]))
    at = thresholds_end
    for _ in range(cutoff_count):
        seq, exhausted_at_ns, attempts, status, released, length = _CUTOFF.unpack_from(packed, at)
        at += _CUTOFF.size
        cutoff = Cutoff(seq, exhausted_at_ns)
        cutoff.attempts, cutoff.status, cutoff.released = attempts, status, bool(released)
        cutoff.last_error = packed[at : at + length]
        at += length
        extra.cutoffs.append(cutoff)
    extra.restore_error = packed[at : at + error_len]
    at += error_len
    while at < len(packed):
        tag, length = _SECTION.unpack_from(packed, at)
        at += _SECTION.size + length
        _unpack_section(extra, tag, packed[at - length : at])
    assert at == len(packed), "the parts of an account's extra do not fill it"
    extra.find_next_expiry()
    return extra


def _unpack_section(extra: Extra, tag: int, packed: bytes) -> None:
    assert _LEASES <= tag <= _RESTORES, f"an account's extra has the unknown section {tag}"
    if tag == _CLASS:
        extra.class_name = packed
        return
    if tag == _GRACES:
        due_ns = dict(_INSTANT.iter_unpack(packed))
        for cutoff in extra.cutoffs:
            cutoff.due_ns = due_ns.get(cutoff.seq, cutoff.due_ns)
        return
    if tag == _DELIVERIES:
        delivered_ns = dict(_INSTANT.iter_unpack(packed))
        for cutoff in extra.cutoffs:
            cutoff.delivered_ns = delivered_ns.get(cutoff.seq, 0)
        return
    if tag == _RESTORES:
        restored_ns = dict(_INSTANT.iter_unpack(packed))
        for cutoff in extra.cutoffs:
            cutoff.restored_ns = restored_ns.get(cutoff.seq, 0)
        return
    at = 0
    while at < len(packed):
        if tag == _CREDITS:
            ends_ns, nanos, frac, entry_id, amount_nanos, length = _CREDIT.unpack_from(packed, at)
            at += _CREDIT.size + length
            kind = packed[at - length : at]
            extra.credits += (Credit(ends_ns, nanos * NANO + frac, entry_id, amount_nanos, kind),)
            continue
        ends_ns, length = _LEASE.unpack_from(packed, at)
        at += _LEASE.size + length
        extra.lease(packed[at - length : at], ends_ns)


def _unpack_table(
    layout: struct.Struct, packed: bytes, at: int, count: int
) -> tuple[dict[bytes, tuple[int, int]], int]:
    """Reads `count` rows of two numbers and a name, from `at` on; returns the table and the offset behind it."""
    table: dict[bytes, tuple[int, int]] = {}
    for _ in range(count):
        first, second, length = layout.unpack_from(packed, at)
        at += layout.size
        table[packed[at : at + length]] = (first, second)
        at += length
    return table, at
