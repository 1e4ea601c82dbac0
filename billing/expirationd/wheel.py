"""The timing wheel: which accounts fall due, exactly and in order, at a cost that does not grow with their number.

The wheel holds *filings*. A filing is a promise to look at an account (a `ref`) in time for one instant. Only the owner
knows the coming instant of an account; the wheel asks for it (`due_of`) when a filing comes up. Therefore nothing is
ever cancelled:

- if the coming instant moves **later**, the owner does nothing: the filing comes up too early and is moved on;
- if it moves **earlier** than the live filing, the owner makes a new filing, and the old one is *stale*: when that
  comes up, `due_of` answers -1 and the wheel drops it;
- so re-arming is, for the owner, one comparison of the coming instant with `filed_ns`, the place of its live filing.

**Places.** Near instants (less than 67 ms away) lie in an exact heap. All others lie in slots, plain arrays of 8 bytes
a filing, without any order inside. A slot of level L is `2**(20 + 8 * L)` ns wide, six levels reach over 2**63 ns, and
a filing goes to the level where its instant is between 2 and 512 slots ahead. A slot is opened *before* it begins, by
one whole width (of level 0: by 66 ms), and its filings go to lower levels or to the heap. So a slot with a million
filings can be opened in slices of bounded size while the heap goes on firing, and a million filings that fall due in
one instant are in order when it comes. Of several slots that may be opened, the one that begins first comes first.
`next_due_ns` asks for an `advance` when a slot has to be opened. That `advance` also opens the slots of level 0 that
would have to be opened within the next 33 ms, so that instants far apart cost one wake-up each, not two.

**Invariants.** A ref is returned only at or after its exact instant, in the order of the instants; the wheel asks about
every live filing before the instant that it was made for; a live filing is never lost. `position_ns`, the latest
instant the wheel was advanced to, never goes back.

**Bounds.** An owner whose instants move to and fro leaves stale filings behind in far slots. When the number of filings
exceeds a multiple of those left after the last sweep, the slots are swept in slices and stale filings are dropped, so
the wheel holds at most a constant multiple of the live filings. To tell two filings of one ref in one slot apart,
`filed_ns` is not the bare beginning of the slot but up to 65,535 ns after it (never after the instant itself); those 16
bits are kept beside the ref, which thus has 48.

The wheel never reads a clock, calls the owner only through the two functions given to `advance`, and knows no money. It
asks for all filings of a piece at once: a storm is thousands of filings, and each is asked for several times.

Worked example, position 0: an instant of 200 ms (200_000_000 ns) is less than 512 slots of 1_048_576 ns ahead, so it
is filed at level 0 in the slot that begins at 199_229_440. `advance(133_169_152)` opens that slot and puts the instant
into the heap; `advance(199_999_999)` returns nothing; `advance(200_000_000)` returns the ref.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

REF_MAX: Final = 2**48 - 1
DUE_NS_MAX: Final = 2**63 - 1
SOON_PIECE: Final = 64

_REF_BITS: Final = 48
_SALT_MASK: Final = 2**16 - 1
_SLOT_BITS: Final = 20  # a slot of level 0 is 2**20 ns wide, about a millisecond
_LEVEL_BITS: Final = 8
_LEVELS: Final = 6
_NEAR_NS: Final = 64 << _SLOT_BITS  # nearer than this: exact heap
_WIDTHS_NS: Final = tuple(1 << (_SLOT_BITS + _LEVEL_BITS * level) for level in range(_LEVELS))
_LEADS_NS: Final = (_NEAR_NS - _WIDTHS_NS[0], *_WIDTHS_NS[1:])  # a slot has to be opened so long before it begins
_ON_THE_WAY_NS: Final = 32 << _SLOT_BITS  # a slot of level 0 may be opened so much earlier, on the way
_BEGIN_MASKS: Final = tuple(-width_ns for width_ns in _WIDTHS_NS)
_KEY_BITS: Final = 3  # the key of a slot is `begin_ns << 3 | level`
_NEVER_NS: Final = 2**64

# More than base * factor + spare filings start a sweep; base is what was left after the last one.
_SWEEP_FACTOR: Final = 3
_SWEEP_SPARE: Final = 65_536
# A slice and the pause after it: 256,000 filings a second, more than commands can leave behind, at 8 % of a core.
_SWEEP_SLICE: Final = 256
_SWEEP_PAUSE_NS: Final = 1_000_000

Filing = tuple[int, int]  # (ref, filed_ns)
DueOf = Callable[[Sequence[Filing]], list[int]]
Moved = Callable[[Sequence[Filing]], object]


class Wheel:
    """Filings of refs (0 ≤ ref ≤ `REF_MAX`) under instants (0 ≤ due_ns ≤ `DUE_NS_MAX`), seen from `now_ns` ≥ 0."""

    __slots__ = (
        "_begins",
        "_filings",
        "_near",
        "_next_open_ns",
        "_position_ns",
        "_salt",
        "_slots",
        "_sweep_at_ns",
        "_sweep_base",
        "_sweep_from",
        "_sweep_keys",
    )

    def __init__(self, now_ns: int) -> None:
        assert now_ns >= 0, now_ns
        self._position_ns = now_ns
        self._near: list[int] = []  # heap of due_ns << 48 | ref
        self._slots: dict[int, array[int]] = {}  # slot key -> salt << 48 | ref, in no order
        self._begins: list[list[int]] = [[] for _ in range(_LEVELS)]  # per level a heap of begin_ns
        self._next_open_ns = _NEVER_NS  # the earliest instant at which some slot has to be opened
        self._filings = 0
        self._salt = 0
        self._sweep_at_ns = now_ns  # the next slice of a sweep comes at this instant or later
        self._sweep_base = 0
        self._sweep_keys: list[int] = []  # slots still to be swept; the last one is being swept
        self._sweep_from = 0  # the filings before this index in that slot were found live

    def __len__(self) -> int:
        """The number of filings held, stale ones included."""
        return self._filings

    @property
    def position_ns(self) -> int:
        """The latest instant the wheel was advanced to."""
        return self._position_ns

    def insert(self, ref: int, due_ns: int) -> int:
        """Files `ref` under `due_ns`; returns `filed_ns` ≤ max(due_ns, 0), which the owner keeps as the place of the
        live filing.

        This makes an earlier filing of the same ref stale: from now on the owner must answer -1 to `due_of(ref, its
        filed_ns)`. A filing for an instant that has passed already comes up at the next `advance`.
        """
        assert 0 <= ref <= REF_MAX, ref
        assert 0 <= due_ns <= DUE_NS_MAX, due_ns
        self._filings += 1
        ahead_ns = due_ns - self._position_ns
        if ahead_ns < _NEAR_NS:
            heappush(self._near, due_ns << _REF_BITS | ref)
            return due_ns
        level = (ahead_ns.bit_length() - _SLOT_BITS - 2) >> 3
        begin_ns = due_ns & _BEGIN_MASKS[level]
        slot = self._slots.get(begin_ns << _KEY_BITS | level)
        if slot is None:
            slot = self._add_slot(level, begin_ns)
        self._salt = salt = (self._salt + 1) & _SALT_MASK
        filed_ns = begin_ns + salt
        if filed_ns > due_ns:
            filed_ns = due_ns
            salt = due_ns - begin_ns
        slot.append(salt << _REF_BITS | ref)
        return filed_ns

    def place_of(self, filed_ns: int) -> tuple[int, int, int]:
        """The place of a live filing, for people: level, begin and width of its slot; level -1 for the exact heap."""
        for level, width_ns in enumerate(_WIDTHS_NS):
            begin_ns = filed_ns & _BEGIN_MASKS[level]
            if filed_ns - begin_ns <= _SALT_MASK and begin_ns << _KEY_BITS | level in self._slots:
                return level, begin_ns, width_ns
        return -1, filed_ns, 1

    def count_soon(self, until_ns: int) -> int:
        """How many filings lie in the heap and in slots that begin up to `until_ns`, stale ones included."""
        slots = self._slots.items()
        return len(self._near) + sum(len(slot) for key, slot in slots if key >> _KEY_BITS <= until_ns)

    def soon(self, until_ns: int) -> Iterator[list[int]]:
        """The refs of the filings that `count_soon` counts, in no order, in pieces of `SOON_PIECE`. The wheel may be
        used between two pieces: a filing that is made or moved meanwhile may be missed, or come twice.
        """
        near = self._near[:]
        for first in range(0, len(near), SOON_PIECE):
            yield [entry & REF_MAX for entry in near[first : first + SOON_PIECE]]
        for key in [key for key in self._slots if key >> _KEY_BITS <= until_ns]:
            first = 0
            while entries := self._slots.get(key, _NO_SLOT)[first : first + SOON_PIECE]:
                first += SOON_PIECE
                yield [entry & REF_MAX for entry in entries]

    def next_due_ns(self) -> int:
        """When `advance` should be called next: at once if this is not after now; -1 when nothing is filed."""
        next_ns = self._next_open_ns
        if self._near:
            next_ns = min(next_ns, self._near[0] >> _REF_BITS)
        if self._sweep_keys or self._filings > self._sweep_base * _SWEEP_FACTOR + _SWEEP_SPARE:  # as `_sweep_owed`
            next_ns = min(next_ns, self._sweep_at_ns)
        return -1 if next_ns == _NEVER_NS else next_ns

    def advance(self, now_ns: int, due_of: DueOf, moved: Moved, limit: int) -> list[int]:
        """Moves on to `now_ns` and returns refs that are due, in the order of their instants.

        `due_of(filings)` answers for each (ref, filed_ns) the coming instant of ref (≥ filed_ns); or -1 if `filed_ns`
        is not its live filing; or -1 if nothing is coming, and then the owner forgets its live filing in the same call,
        because the wheel drops it. `moved(filings)` gives the owner the new place of each live filing. The live filing
        of a returned ref is used up: the owner forgets it, and inserts the next coming instant, if there is one, before
        it calls `advance` again. Neither function may call the wheel.

        At most `limit` ≥ 1 filings are touched, so that one call is short. An empty list does not mean that no work is
        left: see `next_due_ns`.
        """
        if now_ns > self._position_ns:
            self._position_ns = now_ns
        fired: list[int] = []
        budget = limit
        while budget > 0:
            level, begin_ns = self._openable(now_ns)
            budget = self._fire(min(now_ns, begin_ns - 1), due_of, moved, budget, fired)
            if level < 0 or budget <= 0:
                break
            budget -= self._open(level, begin_ns, due_of, moved, budget)
        if budget > 0 and self._position_ns >= self._sweep_at_ns and self._sweep_owed():
            self._sweep(due_of, min(budget, _SWEEP_SLICE))
        return fired

    def _fire(self, until_ns: int, due_of: DueOf, moved: Moved, budget: int, fired: list[int]) -> int:
        """Takes the filings up to `until_ns` out of the heap, appends those that are due to `fired` and moves the
        others on; returns the rest of the budget.
        """
        near = self._near
        bound = (until_ns + 1) << _REF_BITS
        while budget > 0 and near and near[0] < bound:
            taken: list[int] = []
            while budget > 0 and near and near[0] < bound:
                taken.append(heappop(near))
                budget -= 1
            self._filings -= len(taken)
            # The owner may have gone to another instant and back: the same filing twice.
            filings = [(entry & REF_MAX, entry >> _REF_BITS) for entry in dict.fromkeys(taken)]
            answers = zip(filings, due_of(filings), strict=True)
            coming = [due_ns << _REF_BITS | ref for (ref, _), due_ns in answers if due_ns >= 0]
            coming.sort()  # it nearly always is: an instant that moved later may be behind that of another filing
            first_left = min(bound, near[0] + 1) if near else bound  # near[0] itself may be one more of these filings
            passed = bisect_left(coming, first_left)
            fired += [entry & REF_MAX for entry in coming[:passed]]
            if passed < len(coming):
                later = [(entry & REF_MAX, entry >> _REF_BITS) for entry in coming[passed:]]
                moved([(ref, self.insert(ref, due_ns)) for ref, due_ns in later])
        return budget

    def _open(self, level: int, begin_ns: int, due_of: DueOf, moved: Moved, limit: int) -> int:
        """Moves up to `limit` filings of a slot to a lower level or the heap; returns how much work that was (≥ 1)."""
        slot = self._slots[begin_ns << _KEY_BITS | level]
        first = max(0, len(slot) - limit)
        entries = slot[first:]
        del slot[first:]
        self._filings -= len(entries)
        near, near_until_ns = self._near, self._position_ns + _NEAR_NS + _ON_THE_WAY_NS
        filings = [(entry & REF_MAX, begin_ns + (entry >> _REF_BITS)) for entry in entries]
        places: list[Filing] = []
        for (ref, filed_ns), due_ns in zip(filings, due_of(filings), strict=True):
            if due_ns < 0:
                continue
            assert due_ns >= filed_ns, (ref, due_ns, filed_ns)
            if due_ns < near_until_ns:  # as `insert` does, without the call: nearly every filing comes this way
                self._filings += 1
                heappush(near, due_ns << _REF_BITS | ref)
                places.append((ref, due_ns))
            else:
                places.append((ref, self.insert(ref, due_ns)))
        moved(places)
        if not slot:
            del self._slots[begin_ns << _KEY_BITS | level]
            begins = self._begins[level]
            if begins[0] == begin_ns:
                heappop(begins)
            else:  # an account that fired just before was filed anew, in a slot that begins before this one
                begins.remove(begin_ns)
                heapify(begins)
            self._next_open_ns = min(
                (begins[0] - lead_ns for begins, lead_ns in zip(self._begins, _LEADS_NS, strict=True) if begins),
                default=_NEVER_NS,
            )
        return max(1, len(entries))

    def _openable(self, now_ns: int) -> tuple[int, int]:
        """Level and begin of the slot to open now, of several the one that begins first; (-1, never) if none."""
        level_first, begin_first_ns = -1, _NEVER_NS
        if self._next_open_ns <= now_ns + _ON_THE_WAY_NS:
            for level, begins in enumerate(self._begins):
                until_ns = now_ns + _LEADS_NS[level] + (0 if level else _ON_THE_WAY_NS)
                if begins and begins[0] < begin_first_ns and begins[0] <= until_ns:
                    level_first, begin_first_ns = level, begins[0]
        return level_first, begin_first_ns

    def _add_slot(self, level: int, begin_ns: int) -> "array[int]":
        slot = self._slots[begin_ns << _KEY_BITS | level] = array("Q")
        heappush(self._begins[level], begin_ns)
        self._next_open_ns = min(self._next_open_ns, begin_ns - _LEADS_NS[level])
        return slot

    def _sweep_owed(self) -> bool:
        return bool(self._sweep_keys) or self._filings > self._sweep_base * _SWEEP_FACTOR + _SWEEP_SPARE

    def _sweep(self, due_of: DueOf, limit: int) -> None:
        """Looks at up to `limit` filings in slots and drops the stale ones. A whole sweep looks at every slot that
        there was when it began.
        """
        if not self._sweep_keys:
            self._sweep_keys = list(self._slots)
            self._sweep_from = 0
        while limit > 0 and self._sweep_keys:
            slot = self._slots.get(self._sweep_keys[-1], _NO_SLOT)
            begin_ns = self._sweep_keys[-1] >> _KEY_BITS
            index = self._sweep_from
            end = min(len(slot), index + limit)
            limit -= max(1, end - index)
            filings = [(entry & REF_MAX, begin_ns + (entry >> _REF_BITS)) for entry in slot[index:end]]
            live = [entry for entry, due_ns in zip(slot[index:end], due_of(filings), strict=True) if due_ns >= 0]
            index += len(live)
            stale = end - index
            slot[index - len(live) : index] = array("Q", live)
            last = slot[max(end, len(slot) - stale) :]  # the slot's last filings take the places of the stale ones
            slot[index : index + len(last)] = last
            del slot[len(slot) - stale :]
            self._filings -= stale
            self._sweep_from = index
            if index >= len(slot):
                self._sweep_keys.pop()
                self._sweep_from = 0
        if not self._sweep_keys:
            self._sweep_base = self._filings
        self._sweep_at_ns = self._position_ns + _SWEEP_PAUSE_NS


_NO_SLOT: Final = array("Q")
