"""Requests out of bytes: the input half of MessagePack-RPC, without I/O.

The owner passes in each read as a whole (`feed`), and the reader takes it in slices (`next_slice`), so that the decoder
never holds more than a slice beyond an unfinished frame. After each slice, `frames` yields the frames that are whole:

    feed(data)
    more = has_input
    while more:
        next_slice(length)
        for frame in frames(): …         may be left after any frame; then `keep`, and later `next_slice` goes on there
        more = end_slice()               refuses a frame that grows too large

Most reads of a client that waits for each reply are one whole frame. `single` decodes such a read at once, without a
streaming decoder, and leaves any other read to the loop above.

A frame is the value that the decoder returns: a list, or whatever else the client sent. For a request with a value that
the decoder does not take, the frame is a `NotTaken`. The caller checks whether a frame is a request at all. States:

    BETWEEN        no frame has begun; `rest` gives the decoder of 41 KB back, so an idle connection holds none
    INSIDE         a frame has begun and is not whole
    PASSING_OVER   the frame has a value that the decoder does not take: the reader skips it (`billing.api.frames`)

Where the rest of the stream cannot be read, because a frame is too large or is no MessagePack, `next_slice` and
`end_slice` raise Refused, and the reader is of no further use.

Invariant: every byte that was fed is decoded once, in order, or skipped, or dropped by `close`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from billing.api.frames import Malformed, PassedOver
from billing.api.wire import DECODE_ERRORS, decode_single
from billing.ledger.errors import Refused

BETWEEN: Final = "between"
INSIDE: Final = "inside"
PASSING_OVER: Final = "passing over"


class NotTaken(NamedTuple):
    """A frame that was skipped. `msgid`: of the request; None for a notification, which gets no reply."""

    msgid: int | None


class Decoders(Protocol):
    """Lends decoders to readers, and takes them back between two frames."""

    def lend_unpacker(self) -> Any:
        """Returns a decoder that holds no bytes."""

    def take_back(self, unpacker: Any) -> None:
        """Takes back a decoder that holds no bytes any more."""


class RequestReader:
    """The input of one connection."""

    __slots__ = (
        "_at",
        "_decoders",
        "_fed",
        "_frame_start",
        "_input",
        "_not_taken",
        "_partial",
        "_passed",
        "_piece",
        "_unpacker",
        "frame_bytes_max",
        "progressed",
    )

    def __init__(self, decoders: Decoders, frame_bytes_max: int) -> None:
        """`frame_bytes_max`: limit of an unfinished frame; the owner may change it."""
        self.frame_bytes_max = frame_bytes_max
        self.progressed = False  # a frame has ended since the owner set this to False
        self._decoders = decoders
        self._input: bytes | memoryview = b""  # the bytes that were fed; those before `_at` are taken
        self._at = 0
        self._unpacker: Any = None  # None between two frames
        self._fed = 0  # offset in the decoder's stream up to which it was fed
        self._frame_start = 0  # offset in the decoder's stream at which the unfinished frame begins
        self._piece: bytes | memoryview = b""  # the newest slice
        self._partial = b""  # the part of the unfinished frame that came in earlier slices
        self._passed: PassedOver | None = None  # the frame that is being skipped
        self._not_taken: NotTaken | None = None  # a skipped frame that `frames` has not yielded yet

    @property
    def state(self) -> str:
        """BETWEEN, INSIDE or PASSING_OVER, after all input is taken."""
        if self._passed is not None:
            return PASSING_OVER
        return BETWEEN if self._frame_start == self._fed else INSIDE

    @property
    def has_input(self) -> bool:
        """Whether some input is not taken yet."""
        return self._at < len(self._input)

    def single(self, data: bytes | memoryview) -> Any:
        """Returns the frame where `data` is exactly one and no frame has begun. Otherwise returns None and takes
        nothing, and the owner calls `feed`.
        """
        if self._unpacker is not None or self._input or self._passed is not None or self._not_taken is not None:
            return None
        try:
            return decode_single(data)
        except DECODE_ERRORS:
            return None

    def feed(self, data: bytes | memoryview) -> None:
        """Appends a read to the input. Where all earlier input is taken, `data` is not copied before `keep`."""
        if self._at < len(self._input):
            data = bytes(self._input[self._at :]) + data
        self._input, self._at = data, 0

    def next_slice(self, length: int) -> None:
        """Takes at most `length` bytes of input, or all input of a frame that is being skipped. Raises Refused."""
        if self._passed is not None:
            self._pass_over(self._passed)
            return
        unpacker = self._unpacker
        if unpacker is None:
            unpacker = self._unpacker = self._decoders.lend_unpacker()
            self._frame_start = self._fed = unpacker.tell()
        at = self._at
        piece = self._input
        if at or len(piece) > length:
            piece = piece[at : at + length]
        self._piece = piece
        size = len(piece)
        self._at = at + size
        self._fed += size
        unpacker.feed(piece)

    def frames(self) -> Iterator[Any]:
        """Yields the frames that are whole, from where the last iteration was left."""
        if self._not_taken is not None:
            not_taken, self._not_taken = self._not_taken, None
            yield not_taken
            return
        unpacker = self._unpacker
        if unpacker is None:
            return
        tell, begun = unpacker.tell, self._frame_start
        while True:
            try:
                frame = next(unpacker)
            except StopIteration:
                self.progressed = self.progressed or self._frame_start != begun
                return
            except DECODE_ERRORS:
                self._begin_to_pass_over()
                return
            self._frame_start = tell()
            yield frame

    def end_slice(self) -> bool:
        """Ends a slice, all frames of which were taken; returns whether there is another slice. Raises Refused where
        the unfinished frame is too large.
        """
        if self._unpacker is not None:
            unread_bytes = self._fed - self._frame_start
            if not unread_bytes:
                self._partial = b""
            elif unread_bytes >= self.frame_bytes_max:
                raise self._too_large()
            elif unread_bytes > len(self._piece):
                self._partial += self._piece
            else:
                self._partial = bytes(self._piece[len(self._piece) - unread_bytes :])
        if self._at < len(self._input):
            return True
        self._input, self._at, self._piece = b"", 0, b""
        return False

    def keep(self) -> None:
        """Copies the input that is not taken, and gives up the decoder. The owner calls this where it has left the loop
        over `frames` and goes on later.
        """
        unpacker, unread = self._unpacker, b""
        if unpacker is not None:
            unread = self._unread()
            if len(unpacker.read_bytes(len(unread))) == len(unread):  # else the decoder is within a frame, and useless
                self._decoders.take_back(unpacker)
            self._drop_decoder()
        self._input, self._at = unread + bytes(self._input[self._at :]), 0

    def rest(self) -> bool:
        """Gives the decoder back if the reader is between two frames; returns whether it is."""
        if self._frame_start != self._fed or self._passed is not None:
            return False
        if self._unpacker is not None:
            self._decoders.take_back(self._unpacker)
            self._unpacker, self._partial = None, b""
        return True

    def close(self) -> None:
        """Drops all input that is not taken."""
        self._input, self._at = b"", 0
        self._passed = self._not_taken = None
        self._drop_decoder()

    def _drop_decoder(self) -> None:
        self._unpacker, self._piece, self._partial = None, b"", b""
        self._frame_start = self._fed

    def _unread(self) -> bytes:
        """Returns the bytes that the decoder has and that belong to no frame yielded so far."""
        fed = self._partial + bytes(self._piece)
        return fed[len(fed) - (self._fed - self._frame_start) :]

    def _begin_to_pass_over(self) -> None:
        """Drops the decoder, which is of no further use, and begins to skip the frame from its first byte."""
        self._input, self._at = self._unread() + bytes(self._input[self._at :]), 0
        self._drop_decoder()
        self._passed = PassedOver()

    def _pass_over(self, passed: PassedOver) -> None:
        try:
            self._at += passed.feed(bytes(self._input[self._at :]))
            if passed.is_over:
                self._not_taken, self._passed = NotTaken(passed.addressee()), None
                self.progressed = True
        except Malformed:
            raise Refused("PROTOCOL_ERROR", "this is no MessagePack, or no request") from None
        if passed.least_bytes > self.frame_bytes_max:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused("FRAME_TOO_LARGE", f"a frame may have {self.frame_bytes_max} bytes")
