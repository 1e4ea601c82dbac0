"""How far billing time and the wall clock of this host may lie apart, as far as replies tell.

A command is stamped after it was sent and before it was answered, so the difference lies between `low_ns` and `high_ns`
of the reply that came back fastest. (Of others the stamp may be a little older than the sending: a worker reads its
clock once a turn.) With it, arrivals stamped by the one clock can be judged by the other.
"""

from __future__ import annotations


class Skew:
    """By how much billing time is ahead of the wall clock."""

    def __init__(self) -> None:
        self.low_ns = -(2**63)
        self.high_ns = 2**63

    def learn(self, at_ns: int, sent_ns: int, received_ns: int) -> None:
        """A command stamped `at_ns` left and was answered at these instants of the wall clock."""
        self.narrow(at_ns - received_ns, at_ns - sent_ns)

    def narrow(self, low_ns: int, high_ns: int) -> None:
        """What another one learned."""
        if low_ns > self.low_ns:
            self.low_ns, self.high_ns = low_ns, high_ns

    @property
    def shift_ns(self) -> int:
        """What to add to an instant of the wall clock: nothing as long as the two may be equal."""
        return max(self.low_ns, min(self.high_ns, 0))
