"""Verification: which delivered cutoffs are to be looked at again, and when. Pure.

A cutoff that had its 2xx is *effective* once the account's rate is zero. One that is not, `wait_ns` after the 2xx, is
sent again under the same event_id. This remembers only when to look; what is found is the ledger's to say. After a
start, or when a bucket came, the wait begins anew, since nobody recorded when the 2xx came.
"""

from __future__ import annotations

from collections import deque

Look = tuple[int, int, bytes, int]  # when, bucket_id, user_id, seq


class Rechecks:
    """Delivered cutoffs in the order of their 2xx; one entry each."""

    def __init__(self, wait_ns: int) -> None:
        self._wait_ns = wait_ns
        self._looks: deque[Look] = deque()
        self._latest: dict[tuple[int, bytes], int] = {}  # account -> when it is to be looked at; earlier looks are void

    @property
    def are_wanted(self) -> bool:
        """Whether anything is looked at again."""
        return self._wait_ns > 0

    def delivered(self, bucket_id: int, user_id: bytes, seq: int, now_ns: int) -> None:
        """This cutoff had a 2xx now, or had one some time before."""
        if self._wait_ns:
            self._latest[bucket_id, user_id] = at_ns = now_ns + self._wait_ns
            self._looks.append((at_ns, bucket_id, user_id, seq))

    def next_ns(self) -> int:
        """When `due` has something; -1 for never."""
        return self._looks[0][0] if self._looks else -1

    def due(self, now_ns: int, limit: int) -> list[Look]:
        """Those to look at now, at most so many."""
        due_looks: list[Look] = []
        while self._looks and self._looks[0][0] <= now_ns and len(due_looks) < limit:
            look = self._looks.popleft()
            if self._latest.get(look[1:3]) == look[0]:
                del self._latest[look[1:3]]
                due_looks.append(look)
        return due_looks
