"""How many requests a connection may make a second, where that is limited at all (`rpc.requests_per_s_max`).

A `TokenBucket` holds what may still be asked for: it fills by the limit each second up to one second's worth, and each
request that is carried out takes one. The hot path knows nothing of it. It is asked once per piece of input, and says
how long the next piece may be so that hardly more requests fit into it than are left: at most `SMALLEST_PIECE_BYTES //
FRAME_BYTES_MIN` more are carried out than the limit allows, and those are paid for by the ones after.

It reads no clock.
"""

from typing import Final

from billing.api.wire import FRAME_BYTES_MAX

SECOND_NS: Final = 1_000_000_000
FRAME_BYTES_MIN: Final = 8  # of the shortest request, [2, "ping", []]
SMALLEST_PIECE_BYTES: Final = 64


class TokenBucket:
    """One connection's."""

    __slots__ = ("_since_ns", "_stock_ns")

    def __init__(self, now_ns: int) -> None:
        self._stock_ns = SECOND_NS  # what is left, in the time that it takes to fill
        self._since_ns = now_ns

    def available(self, now_ns: int, per_s_max: int) -> int:
        """How many requests may be made now; 0 where none may."""
        self._stock_ns = min(SECOND_NS, self._stock_ns + now_ns - self._since_ns)
        self._since_ns = now_ns
        return max(0, self._stock_ns * per_s_max // SECOND_NS)

    def spend(self, requests: int, per_s_max: int) -> None:
        """So many were made."""
        self._stock_ns -= requests * SECOND_NS // per_s_max


def piece_bytes(requests: int) -> int:
    """How much input may be decoded at once where so many requests are left; any amount where none is, since all that
    it holds is refused.
    """
    return max(SMALLEST_PIECE_BYTES, requests * FRAME_BYTES_MIN) if requests else FRAME_BYTES_MAX
