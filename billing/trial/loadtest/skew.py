"""Bounds of the difference between billing time and this host's wall clock, computed from replies.

The daemon stamps a command after it was sent and before it was answered, so the difference lies between the bounds
`low_ns` and `high_ns` that the fastest reply gives. (For other replies the stamp may be a little older than the
sending, because a worker reads its clock once a turn.) With the difference, arrivals that were stamped by the wall
clock can be judged in billing time.
"""

from __future__ import annotations


class Skew:
    """The bounds of how far billing time is ahead of the wall clock."""

    def __init__(self) -> None:
        self.low_ns = -(2**63)
        self.high_ns = 2**63

    def learn(self, at_ns: int, sent_ns: int, received_ns: int) -> None:
        """Narrows the bounds by one command: stamped `at_ns` in billing time, sent and answered at the other two
        instants, of the wall clock.
        """
        self.narrow(at_ns - received_ns, at_ns - sent_ns)

    def narrow(self, low_ns: int, high_ns: int) -> None:
        """Takes the bounds if their lower one is higher than the present one, as that of a faster reply is."""
        if low_ns > self.low_ns:
            self.low_ns, self.high_ns = low_ns, high_ns

    @property
    def shift_ns(self) -> int:
        """The nanoseconds to add to an instant of the wall clock to get billing time; 0 if the bounds allow 0."""
        return max(self.low_ns, min(self.high_ns, 0))
