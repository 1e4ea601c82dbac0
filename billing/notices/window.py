"""The owed notices that are in memory: the next few of some users, in order. Pure.

The file holds all of them. The window is filled from it in the order of `seq` up to `cursor`, and holds the first
`each_max` notices of at most `users_max` users. A user whose further notices were passed over has `more`: those up to
the cursor are read again, by user, when the first ones are done.

A user whose notice fails is *unloaded*: the notices leave the memory, and the next one is read again when it is tried
again. An unloaded user costs some 500 bytes, its item in the outbox included, and takes no place among `users_max`, so
users whose notices are refused delay no other user, unless there are `failing_max` of them. While there is no room for
one more user, single notices are read. So an endpoint that is down costs a bounded amount of memory, and so does its
backlog once it is back.

**Invariants.** A user's notices are in the order of seq, and none is lost: each owed notice is in the window, or behind
the cursor, or its user has `more`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

USERS_MAX: Final = 2048
EACH_MAX: Final = 8
FAILING_MAX: Final = 50_000

Row = tuple[int, int, int, bytes, int, str, bytes]  # seq, bucket_id, generation, user_id, at_ns, name, body


class Next(NamedTuple):
    """One waiting notice."""

    seq: int
    at_ns: int
    name: str
    body: bytes


class Queue:
    """The next notices of one user."""

    __slots__ = ("bucket_id", "last_seq", "more", "unloaded", "waiting")

    def __init__(self, bucket_id: int) -> None:
        self.bucket_id = bucket_id
        self.waiting: deque[Next] = deque()
        self.last_seq = 0  # the last seq that was ever put here
        self.more = False
        self.unloaded = False


_NOTHING: Final[deque[Next]] = deque(maxlen=0)  # of all unloaded users: a deque of its own takes 600 bytes


class Window:
    """The users with notices in memory."""

    def __init__(self, users_max: int = USERS_MAX, each_max: int = EACH_MAX, failing_max: int = FAILING_MAX) -> None:
        self.users_max = users_max
        self.each_max = each_max
        self.failing_max = failing_max
        self.cursor = 0
        self._unloaded = 0  # how many of the users are
        self.queues: dict[bytes, Queue] = {}

    @property
    def has_room(self) -> bool:
        """Whether one more user fits."""
        users = len(self.queues)
        return users - self._unloaded < self.users_max and users < self.users_max + self.failing_max

    def put(self, row: Row) -> bool:
        """Takes the next row behind the cursor. Returns True if its user was not in the window."""
        seq, bucket_id, _, user_id, at_ns, name, body = row
        assert seq > self.cursor, "a row is taken once"
        self.cursor = seq
        queue = self.queues.get(user_id)
        is_new = queue is None
        if queue is None:
            queue = self.queues[user_id] = Queue(bucket_id)
        if queue.more or len(queue.waiting) >= self.each_max:
            queue.more = True
        else:
            queue.waiting.append(Next(seq, at_ns, name, body))
            queue.last_seq = seq
        return is_new

    def skip(self, seq: int) -> None:
        """Passes over a row that is not to be sent from here, or not now."""
        self.cursor = max(self.cursor, seq)

    def first(self, bucket_id: int, user_id: bytes) -> Next | None:
        """Returns the user's next notice; None where there is none, or it belongs to another bucket."""
        queue = self.queues.get(user_id)
        return queue.waiting[0] if queue is not None and queue.bucket_id == bucket_id and queue.waiting else None

    def done(self, user_id: bytes, seq: int) -> Queue | None:
        """Removes the user's next notice after its 2xx. Returns the queue if more of it has to be read
        (`refill`).
        """
        queue = self.queues.get(user_id)
        if queue is None or not queue.waiting or queue.waiting[0].seq != seq:
            return None
        queue.waiting.popleft()
        if queue.waiting:
            return None
        if queue.more:
            return queue
        del self.queues[user_id]
        return None

    def unload(self, user_id: bytes, seq: int) -> None:
        """The user's next notice failed: forgets what it says until it is tried again (`is_unloaded`, `refill`)."""
        queue = self.queues.get(user_id)
        if queue is not None and queue.waiting and queue.waiting[0].seq == seq:
            queue.waiting, queue.last_seq, queue.more, queue.unloaded = _NOTHING, seq - 1, True, True
            self._unloaded += 1

    def is_unloaded(self, user_id: bytes) -> bool:
        """Whether the user's next notice has to be read (`refill`) before `first` can return it."""
        queue = self.queues.get(user_id)
        return queue is not None and queue.unloaded

    def refill(
        self, user_id: bytes, rows: list[Row], limit: int, is_ours: Callable[[Row], bool] = lambda row: True
    ) -> bool:
        """Adds the user's rows behind `last_seq` and up to the cursor, of which at most `limit` were read. Passes over
        those that are not to be sent from here. Returns whether further rows have to be read at once, because all of
        these were passed over.
        """
        queue = self.queues[user_id]
        if queue.unloaded:
            queue.waiting, queue.unloaded = deque(), False
            self._unloaded -= 1
        for row in rows:
            seq, _, _, _, at_ns, name, body = row
            queue.last_seq = seq
            if is_ours(row):
                queue.waiting.append(Next(seq, at_ns, name, body))
        queue.more = len(rows) >= limit
        if queue.waiting:
            return False
        if not queue.more:
            del self.queues[user_id]
        return queue.more

    def drop(self, bucket_id: int) -> None:
        """Removes the users of a bucket that has left, or whose notices have new seqs."""
        for user_id in [user_id for user_id, queue in self.queues.items() if queue.bucket_id == bucket_id]:
            self._unloaded -= self.queues.pop(user_id).unloaded
