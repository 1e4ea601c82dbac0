"""Verification: which delivered cutoffs are to be checked again, and when. Pure.

A cutoff that got its 2xx is *effective* once the account's rate is zero. A cutoff that is not effective `wait_ns` after
the 2xx is sent again under the same event_id. This module only keeps the instants of the checks; the ledger decides
whether a cutoff is sent again. After a start, or when a bucket arrives, the wait begins anew.
"""

from __future__ import annotations

from collections import deque

Look = tuple[int, int, bytes, int]  # when, bucket_id, user_id, seq


class Rechecks:
    """Delivered cutoffs in the order of their 2xx; one entry each."""

    def __init__(self, wait_ns: int) -> None:
        self._wait_ns = wait_ns
        self._looks: deque[Look] = deque()
        self._latest: dict[tuple[int, bytes], int] = {}  # account -> instant of its latest check; earlier ones are void

    @property
    def are_wanted(self) -> bool:
        """Whether delivered cutoffs are checked at all."""
        return self._wait_ns > 0

    def delivered(self, bucket_id: int, user_id: bytes, seq: int, now_ns: int) -> None:
        """This cutoff got its 2xx now, or some time before: schedules a check `wait_ns` from now."""
        if self._wait_ns:
            self._latest[bucket_id, user_id] = at_ns = now_ns + self._wait_ns
            self._looks.append((at_ns, bucket_id, user_id, seq))

    def next_ns(self) -> int:
        """The instant of the first check; -1 if there is none."""
        return self._looks[0][0] if self._looks else -1

    def due(self, now_ns: int, limit: int) -> list[Look]:
        """Removes and returns the checks that are due now, at most `limit`."""
        due_looks: list[Look] = []
        while self._looks and self._looks[0][0] <= now_ns and len(due_looks) < limit:
            look = self._looks.popleft()
            if self._latest.get(look[1:3]) == look[0]:
                del self._latest[look[1:3]]
                due_looks.append(look)
        return due_looks
