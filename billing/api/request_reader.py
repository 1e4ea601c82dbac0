"""Requests out of bytes: the input half of MessagePack-RPC, without I/O.

What was read is given in whole (`feed`) and taken in slices (`next_slice`), so that the decoder never holds more than a
slice beyond an unfinished frame. Between two slices stand the frames that are whole by now (`frames`):

    feed(data)
    more = has_input
    while more:
        next_slice(length)
        for frame in frames(): …         may be left at any frame; then `keep`, and later `next_slice` goes on behind it
        more = end_slice()               refuses a frame that grows too large

Most reads of a client that waits for each reply are one whole frame. `single` decodes such a read at once, without a
decoder that goes on, or leaves it all to the way above.

A frame is what the decoder makes of it: a list, or whatever else the client sent; or `NotTaken`, for a request with a
value that the decoder does not take. Whether it is a request at all is for the caller to see. States:

    BETWEEN        no frame has begun; `rest` gives the decoder back, of 41 KB, so a connection that rests owns none
    INSIDE         a frame has begun and is not whole
    PASSING_OVER   the frame has a value that is not taken: only its end is looked for (`billing.api.frames`)

Where the stream itself cannot be followed, because a frame is too large or is no MessagePack, `next_slice` and
`end_slice` raise Refused, and the reader is of no further use.

Invariant: every byte that was fed is decoded once, in order, or passed over, or given up with `close`.
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
    """A frame that was passed over. `msgid`: of the request; None for a notification, which nobody is told of."""

    msgid: int | None


class Decoders(Protocol):
    """Where decoders are lent from, and given back to between two frames."""

    def lend_unpacker(self) -> Any:
        """One that holds nothing."""

    def take_back(self, unpacker: Any) -> None:
        """One that holds nothing any more."""


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
        """`frame_bytes_max`: of an unfinished frame; may be changed."""
        self.frame_bytes_max = frame_bytes_max
        self.progressed = False  # a frame has come since the owner said otherwise
        self._decoders = decoders
        self._input: bytes | memoryview = b""  # what was fed, and up to `_at` taken
        self._at = 0
        self._unpacker: Any = None  # None between two frames
        self._fed = 0  # bytes the decoder was given, by its own count
        self._frame_start = 0  # of these, where the unfinished frame begins
        self._piece: bytes | memoryview = b""  # the newest slice
        self._partial = b""  # of the unfinished frame, what the decoder was given in earlier slices
        self._passed: PassedOver | None = None  # the frame that is passed over now
        self._not_taken: NotTaken | None = None  # a frame that was, and is not told yet

    @property
    def state(self) -> str:
        """BETWEEN, INSIDE or PASSING_OVER, after all that was fed is taken."""
        if self._passed is not None:
            return PASSING_OVER
        return BETWEEN if self._frame_start == self._fed else INSIDE

    @property
    def has_input(self) -> bool:
        """Whether something that was fed is not taken yet."""
        return self._at < len(self._input)

    def single(self, data: bytes | memoryview) -> Any:
        """The frame that all of `data` is, where none has begun; else None, and nothing is taken: `feed` follows."""
        if self._unpacker is not None or self._input or self._passed is not None or self._not_taken is not None:
            return None
        try:
            return decode_single(data)
        except DECODE_ERRORS:
            return None

    def feed(self, data: bytes | memoryview) -> None:
        """What was read, behind what is not taken yet. It is not copied before `keep`."""
        if self._at < len(self._input):
            data = bytes(self._input[self._at :]) + data
        self._input, self._at = data, 0

    def next_slice(self, length: int) -> None:
        """Takes at most `length` bytes more, or all there is of a frame that is passed over. Raises Refused."""
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
        """The frames that are whole, from where it was left."""
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
        """All frames of the slice were taken; whether there is another slice. Raises Refused where the frame that has
        begun is too large.
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
        """The loop over `frames` was left, and goes on later: what is not taken is copied, and no decoder is kept."""
        unpacker, unread = self._unpacker, b""
        if unpacker is not None:
            unread = self._unread()
            if len(unpacker.read_bytes(len(unread))) == len(unread):  # else it is within a frame, and of no further use
                self._decoders.take_back(unpacker)
            self._drop_decoder()
        self._input, self._at = unread + bytes(self._input[self._at :]), 0

    def rest(self) -> bool:
        """Between two frames: gives the decoder back. Whether it is there."""
        if self._frame_start != self._fed or self._passed is not None:
            return False
        if self._unpacker is not None:
            self._decoders.take_back(self._unpacker)
            self._unpacker, self._partial = None, b""
        return True

    def close(self) -> None:
        """Gives up whatever is not taken."""
        self._input, self._at = b"", 0
        self._passed = self._not_taken = None
        self._drop_decoder()

    def _drop_decoder(self) -> None:
        self._unpacker, self._piece, self._partial = None, b"", b""
        self._frame_start = self._fed

    def _unread(self) -> bytes:
        """What the decoder was given of the frame that has begun, and of what is behind it."""
        fed = self._partial + bytes(self._piece)
        return fed[len(fed) - (self._fed - self._frame_start) :]

    def _begin_to_pass_over(self) -> None:
        """The decoder is of no further use: the frame is read again from its first byte, by where it ends alone."""
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
