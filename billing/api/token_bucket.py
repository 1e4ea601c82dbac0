"""Limits how many requests per second a connection may make, where a limit is configured (`rpc.requests_per_s_max`).

A `TokenBucket` holds the number of requests that may still be made. Each second adds the limit to it, up to one
second's worth, and each request that is carried out takes one. The hot path does not use the bucket: a connection asks
it once per piece of input, and `piece_bytes` makes the next piece so short that hardly more requests fit into it than
are left. At most `SMALLEST_PIECE_BYTES // FRAME_BYTES_MIN` more are carried out than the limit allows, and the bucket
subtracts them from the following requests.

It reads no clock.
"""

from typing import Final

from billing.api.wire import FRAME_BYTES_MAX

SECOND_NS: Final = 1_000_000_000
FRAME_BYTES_MIN: Final = 8  # of the shortest request, [2, "ping", []]
SMALLEST_PIECE_BYTES: Final = 64


class TokenBucket:
    """The bucket of one connection."""

    __slots__ = ("_since_ns", "_stock_ns")

    def __init__(self, now_ns: int) -> None:
        self._stock_ns = SECOND_NS  # the requests left, as the time in which so many are added
        self._since_ns = now_ns

    def available(self, now_ns: int, per_s_max: int) -> int:
        """Returns how many requests may be made now; 0 where none may."""
        self._stock_ns = min(SECOND_NS, self._stock_ns + now_ns - self._since_ns)
        self._since_ns = now_ns
        return max(0, self._stock_ns * per_s_max // SECOND_NS)

    def spend(self, requests: int, per_s_max: int) -> None:
        """Takes `requests` out of the bucket, which may go below zero."""
        self._stock_ns -= requests * SECOND_NS // per_s_max


def piece_bytes(requests: int) -> int:
    """Returns how much input may be decoded at once where so many requests are left. Where none is left, a whole frame
    may be, because all requests in it are refused.
    """
    return max(SMALLEST_PIECE_BYTES, requests * FRAME_BYTES_MIN) if requests else FRAME_BYTES_MAX
