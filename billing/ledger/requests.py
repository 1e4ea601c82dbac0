"""Request ids: the stored first answers that make a retry harmless. Each bucket has one store.

The value of an id is the packed entry that its first call made, refusals included, so an id lives in the same journal
record as its effect. Ids are scoped to the user. An id is kept for 7 days after its entry's instant, and a bucket keeps
at most a configured number of ids: beyond that the oldest is removed. `evicted_early` counts the ids that were removed
before their 7 days were over.

`find` changes nothing: it does not find an id that is too old, and the next `put` removes that id. So the store follows
from the entries alone, and replay makes the same store.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from billing.ledger.entry import Entry, instant_of, unpack

KEPT_NS: Final = 7 * 24 * 3600 * 10**9

_LENGTHS: Final = tuple(bytes((length,)) for length in range(256))


class RequestIds:
    """The stored answers of one bucket, oldest first."""

    __slots__ = ("_order", "_packed", "evicted_early")

    def __init__(self) -> None:
        self._packed: dict[bytes, bytes] = {}
        self._order: deque[bytes] = deque()
        self.evicted_early = 0  # since this store was made or loaded; not state

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[bytes]:
        """The packed entries, oldest first."""
        return (self._packed[key] for key in self._order)

    def find(self, user_id: bytes, request_id: bytes, at_ns: int) -> bytes | None:
        """The packed entry of a request id, if its 7 days are not over at `at_ns`; else None."""
        packed = self._packed.get(_LENGTHS[len(user_id)] + user_id + request_id)
        return packed if packed is None or instant_of(packed) + KEPT_NS > at_ns else None

    def put(self, user_id: bytes, request_id: bytes, packed: bytes, at_ns: int, ids_max: int) -> None:
        """Stores the entry that was just made at `at_ns`. Removes ids that are too old, and the oldest if there are
        more than `ids_max`.
        """
        stored, order = self._packed, self._order
        while order and instant_of(stored[order[0]]) + KEPT_NS <= at_ns:
            del stored[order.popleft()]
        key = _LENGTHS[len(user_id)] + user_id + request_id
        if key in stored:  # too old, but behind an id that is not: only where a bucket's instants came out of order
            order.remove(key)
        stored[key] = packed
        order.append(key)
        while len(order) > ids_max:
            del stored[order.popleft()]
            self.evicted_early += 1
        assert len(order) == len(stored), "an id is in the order and not in the store, or the other way round"

    def keep_as(self, user_id: bytes, request_id: bytes, packed: bytes) -> None:
        """Replaces the stored entry of an id, if the id is stored, by the bytes that the journal holds for it."""
        key = _LENGTHS[len(user_id)] + user_id + request_id
        if key in self._packed:
            self._packed[key] = packed

    def restore(self, packed: bytes) -> None:
        """Appends a packed entry from another store of the same bucket."""
        entry = Entry._make(unpack(packed))
        user_id, request_id = entry.user_id, entry.request_id
        key = _LENGTHS[len(user_id)] + user_id + request_id
        self._packed[key] = packed
        self._order.append(key)
