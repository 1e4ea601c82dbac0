"""The wires between processes: frames on a unix socket, a socket pair or a TCP connection.

A frame is `u32 length` (little-endian) and that many bytes of MessagePack. Decoding a frame is one call on bytes of
known length, so a broken peer cannot make this process allocate more than it sent. uvloop joins all writes of one turn
of the loop into one.

Three kinds of traffic use it. Workers pass requests on to each other (`PeerLink` and `PeerCaller` of
`shards.worker.router`), also to those of other hosts, over TCP (`shards.links.far`). The supervisor talks with each
worker over a socket pair that the worker inherits (`shards.control`). Workers talk with the processes of their
histories and notices. `decode` makes a message of the bytes of a frame: `untyped` takes any MessagePack, with tuples
for arrays; a protocol of typed messages has a decoder of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import msgpack
import msgspec

FRAME_BYTES_MAX = 64 * 1024 * 1024
WRITE_BUFFER_BYTES_MAX = 64 * 1024 * 1024  # a peer that leaves more unread is disconnected
_LENGTH = struct.Struct("<I")
# The errors of decoding. TypeError: a map as key of a map; RecursionError: arrays nested too deep.
UNDECODABLE = (ValueError, TypeError, RecursionError, msgpack.UnpackException, msgspec.MsgspecError)
_encode = msgspec.msgpack.Encoder().encode
_unpack = msgpack.unpackb  # the length of the frame limits what it allocates
Decode = Callable[[bytes | bytearray], Any]


class FrameError(Exception):
    """The peer sent bytes that are no frame."""


def untyped(body: bytes | bytearray) -> Any:
    """Decodes any MessagePack; arrays become tuples."""
    return _unpack(body, use_list=False, strict_map_key=False)


class FrameDecoder:
    """Splits bytes into frames and decodes them. No I/O."""

    def __init__(self, decode: Decode = untyped, bytes_max: int = FRAME_BYTES_MAX) -> None:
        """`bytes_max`: the limit of one frame, lower for a peer that is not known yet."""
        self._buffer = bytearray()
        self._decode = decode
        self._bytes_max = bytes_max

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yields the decoded frames that `data` completes. Raises FrameError."""
        buffer, decode = self._buffer, self._decode
        buffer += data
        offset, size = 0, len(buffer)
        try:
            while size - offset >= 4:
                (length,) = _LENGTH.unpack_from(buffer, offset)
                if length > self._bytes_max:
                    raise FrameError(f"a frame of {length} bytes")
                if size - offset - 4 < length:
                    break
                try:
                    frame = decode(buffer[offset + 4 : offset + 4 + length])
                except UNDECODABLE as error:
                    raise FrameError(f"a frame that is no message: {error}") from None
                offset += 4 + length
                yield frame
        finally:
            del buffer[:offset]


def frame_of(message: Any) -> bytes:
    """Encodes a message as one frame. Raises FrameError where it is too large."""
    body = _encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise FrameError(f"a message of {len(body)} bytes")
    return _LENGTH.pack(len(body)) + body


class Wire(asyncio.Protocol):
    """Frames over a stream: calls `on_frame` for each message, and `on_closed` once."""

    def __init__(
        self,
        on_frame: Callable[[Wire, Any], None],
        on_closed: Callable[[Wire], None],
        on_open: Callable[[Wire], None],
        decode: Decode = untyped,
    ) -> None:
        self._decoder = FrameDecoder(decode)
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._on_open = on_open
        self._transport: asyncio.Transport | None = None
        self._parting: asyncio.Transport | None = None

    @property
    def is_parting(self) -> bool:
        """Whether `part` was called and the wire has not closed yet."""
        return self._parting is not None

    @property
    def is_open(self) -> bool:
        """Whether a message that is sent now may arrive."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(self, frame)
        except FrameError:
            self.close()

    def pause_writing(self) -> None:
        """Closes the connection: the peer hangs, for it has left 64 MiB unread. Requests to it are answered
        as unknown.
        """
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._parting = None
        self._on_closed(self)

    def send(self, message: Any) -> None:
        """Sends one message; does nothing where the wire is closed, which `on_closed` has reported."""
        if self._transport is not None:
            self._transport.write(frame_of(message))

    def send_all(self, messages: Iterable[Any]) -> None:
        """Sends several messages as one write."""
        if self._transport is not None:
            self._transport.write(b"".join(map(frame_of, messages)))

    def part(self) -> None:
        """Ends sending; the wire closes once the peer has read everything and closed. To be called before the process
        ends: where something in its socket is unread then, the kernel sends a reset, and the peer may lose the last
        messages.
        """
        if self._transport is not None:
            self._parting, self._transport = self._transport, None
            self._parting.write_eof()

    def abort(self) -> None:
        """Closes at once; what was sent and has not left is lost."""
        transport = self._transport or self._parting
        if transport is not None:
            transport.abort()

    def close(self) -> None:
        """Closes once what was sent has left."""
        transport = self._transport or self._parting
        if transport is not None:
            transport.close()


class SocketDirectory:
    """Unix sockets by name in a directory whose path may be longer than the 107 bytes of a socket address."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._inodes: dict[str, int] = {}  # name -> its inode

    def address(self, name: str) -> str:
        """Returns the path at which this process connects to a socket."""
        return f"/proc/self/fd/{self._handle}/{name}"

    def listen(self, name: str) -> socket.socket:
        """Returns a listening socket; it replaces what an earlier process left under that name."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._handle)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self.address(name))
            listener.listen(64)
            listener.setblocking(False)
            self._inodes[name] = self._inode(name)
        except OSError:
            listener.close()
            raise
        return listener

    def _inode(self, name: str) -> int:
        return os.stat(name, dir_fd=self._handle, follow_symlinks=False).st_ino

    def close(self) -> None:
        """Removes the names that no other process has taken since, and closes the directory."""
        for name, inode in self._inodes.items():
            with contextlib.suppress(OSError):
                if self._inode(name) == inode:
                    os.unlink(name, dir_fd=self._handle)
        os.close(self._handle)
