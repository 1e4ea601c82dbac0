"""IPROTO, Tarantool's wire, without I/O: bytes in, requests out; replies in, bytes out.

The server speaks first, in 128 bytes of text: a line with the version, and a line with a salt of 32 bytes in base64,
each filled up with spaces to 63 bytes and a line feed. Then each side sends packets:

    packet      size | header | body       size: how many bytes follow, a MessagePack integer of any width
    header      map: REQUEST_TYPE (0), SYNC (1), in replies also SCHEMA_VERSION (5)
    body        map; a request may leave it out

A reply carries the request's SYNC. Its type is 0, with the result in DATA (0x30), or 0x8000 + error code, with a text
in ERROR_24 (0x31). Worked example, PING with SYNC 1 and its answer:

    06  82 00 40 01 01  80
    ce 00 00 00 10  83 00 00 01 cf 00 00 00 00 00 00 00 01 05 01  80

Source: Tarantool's documentation, "Binary protocol"; checked against the connectors in `tests/outsiders`. The
documentation does not mention two facts: connectors may use SYNC 0 for every request, and net.box of 2.6 accepts no
header without SCHEMA_VERSION.

CHAP-SHA1 proves a password without sending it: scramble = SHA1(password) xor SHA1(salt[:20] + SHA1(SHA1(password))). So
the server keeps only SHA1(SHA1(password)), from which the password cannot be computed.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from base64 import b64encode
from collections.abc import Generator, Iterator
from typing import Any, Final

from billing.api.wire import DECODE_ERRORS, FRAME_BYTES_MAX, SLICE_BYTES_MAX, make_unpacker
from billing.ledger.errors import Refused

GREETING_BYTES: Final = 128
SALT_BYTES: Final = 32
SCRAMBLE_BYTES: Final = 20
VERSION: Final = "Tarantool 2.6.0 (Binary)"  # connectors choose the form of their requests by it

# Request types.
SELECT: Final = 1
CALL_16: Final = 6
AUTH: Final = 7
CALL: Final = 10
PING: Final = 64
ID: Final = 73

# Keys of headers and bodies.
REQUEST_TYPE: Final = 0x00
SYNC: Final = 0x01
SPACE_ID: Final = 0x10
TUPLE: Final = 0x21
FUNCTION_NAME: Final = 0x22
USER_NAME: Final = 0x23

# Error codes, with Tarantool's own words where connectors look for them.
ER_INVALID_MSGPACK: Final = 20
ER_PROC_LUA: Final = 32
ER_NO_SUCH_PROC: Final = 33
ER_ACCESS_DENIED: Final = 42
ER_PASSWORD_MISMATCH: Final = 47
ER_UNKNOWN_REQUEST_TYPE: Final = 48

_OK: Final = b"\x83\x00\x00\x01\xcf%b\x05\x01"
_ERROR: Final = b"\x83\x00\xcd%b\x01\xcf%b\x05\x01"
_DATA: Final = b"\x81\x30"
NO_BODY: Final = b"\x80"
NO_VALUES: Final = b"\x90"
_VALUE_BEFORE: Final = b"\x83\x00\x00\x01\xcf"  # a reply of one value, up to its SYNC
_VALUE_BEHIND: Final = b"\x05\x01" + _DATA + b"\x91"  # and from there up to the value
_VALUE_BYTES: Final = len(_VALUE_BEFORE) + 8 + len(_VALUE_BEHIND)
_value_head: Final = struct.Struct(f">BI{len(_VALUE_BEFORE)}sQ{len(_VALUE_BEHIND)}s").pack
_INTEGERS: Final = frozenset((int,))
_KEYS: Final = "the keys of header and body are integers, each of them once"


class ProtocolError(Exception):
    """The rest of the stream cannot be read: the connection ends."""


# kind, SYNC, fields of the body by key: texts as bytes, maps as pairs. None: a body with a value that is not taken
Request = tuple[int, int, dict[int, Any] | None]


def greeting(salt: bytes, instance: str) -> bytes:
    """Returns the greeting, which the server sends first. `salt`: 32 random bytes; `instance`: a UUID as text."""
    lines = f"{VERSION} {instance}".encode(), b64encode(salt)
    return b"".join(line.ljust(63) + b"\n" for line in lines)


def proof_of(password: bytes) -> bytes:
    """Returns what a server stores of a password."""
    return hashlib.sha1(hashlib.sha1(password).digest()).digest()


def scramble_of(password: bytes, salt: bytes) -> bytes:
    """Returns what a client sends to prove a password."""
    hashed = hashlib.sha1(password).digest()
    mask = hashlib.sha1(salt[:SCRAMBLE_BYTES] + proof_of(password)).digest()
    return bytes(byte ^ mask_byte for byte, mask_byte in zip(hashed, mask, strict=True))


def proves(scramble: bytes, salt: bytes, proof: bytes) -> bool:
    """Whether a scramble was made with the password of this proof."""
    if len(scramble) != SCRAMBLE_BYTES:
        return False
    mask = hashlib.sha1(salt[:SCRAMBLE_BYTES] + proof).digest()
    hashed = bytes(byte ^ mask_byte for byte, mask_byte in zip(scramble, mask, strict=True))
    return hmac.compare_digest(hashlib.sha1(hashed).digest(), proof)


class Decoder:
    """`feed(bytes)`, then requests. Keeps at most one unfinished packet, of `limit_bytes` at most, and one slice more.

    One decoder of MessagePack reads the stream: size, header and, where the size leaves room, body. Their end is
    compared with the size. A body with a value that the decoder does not take (too long a text, an extension type) is
    skipped, as its end is known; a new decoder goes on behind it.
    """

    def __init__(self) -> None:
        self.limit_bytes = FRAME_BYTES_MAX
        self._unpacker = make_unpacker()
        self._fed = 0  # bytes of the stream so far
        self._end = 0  # offset in the stream at which the begun packet ends; 0: none has begun
        self._header: tuple[int, int] | None = None  # kind and sync of that packet while its body is not read
        self._skipped: tuple[int, int] | None = None  # kind and sync of a packet whose rest is being skipped
        self._to_skip = 0  # bytes of that rest

    @property
    def waits(self) -> bool:
        """Whether a packet has begun and is not whole."""
        return self._end > 0 or self._skipped is not None or self._fed > self._unpacker.tell()

    def feed(self, data: bytes) -> Iterator[Request]:
        """Yields the requests that are whole now. Raises ProtocolError; then the decoder is of no further use."""
        at = 0
        while at < len(data):
            if self._skipped is None:
                at = yield from self._decoded(data, at)
            else:
                skipped = min(self._to_skip, len(data) - at)
                at, self._to_skip = at + skipped, self._to_skip - skipped
            if self._skipped is not None and not self._to_skip:
                (kind, sync), self._skipped = self._skipped, None
                yield kind, sync, None

    def _skip(self) -> int:
        """Skips the rest of the packet with a body that is not taken, or raises ProtocolError where its end is not
        known. Returns how many of the bytes fed lie behind the packet.
        """
        header, beyond = self._header, self._fed - self._end
        if header is None:
            raise ProtocolError("this is no MessagePack that is taken")
        self._unpacker = make_unpacker()
        self._fed = self._end = 0
        self._header, self._skipped, self._to_skip = None, header, max(0, -beyond)
        return max(0, beyond)

    def _decoded(self, data: bytes, start: int) -> Generator[Request, None, int]:
        """Yields the requests that are whole in the next slice of `data`, or in what is left of it. Returns the offset
        up to which `data` is read.
        """
        unpacker = self._unpacker
        tell = unpacker.tell
        part = data[start : start + SLICE_BYTES_MAX] if start or len(data) > SLICE_BYTES_MAX else data
        self._fed += len(part)
        try:
            unpacker.feed(part)
            while True:
                if not self._end:
                    size = next(unpacker)
                    if type(size) is not int or not 0 < size <= self.limit_bytes:
                        raise ProtocolError(f"a packet begins with its size, {self.limit_bytes} bytes at most")
                    self._end = tell() + size
                header = self._header
                if header is None:
                    header = self._header = _header_of(next(unpacker))
                body = _fields(next(unpacker)) if tell() < self._end else {}
                if tell() != self._end:
                    raise ProtocolError("a packet is as long as its size says: a header and a body")
                self._header, self._end = None, 0
                kind, sync = header
                yield kind, sync, body
        except StopIteration:
            pass
        except DECODE_ERRORS:
            return start + len(part) - self._skip()
        if 0 < self._end <= self._fed:
            raise ProtocolError("a packet is longer than its size says")
        return start + len(part)


def _header_of(pairs: object) -> tuple[int, int]:
    """Returns kind and sync of a request. Raises ProtocolError."""
    if type(pairs) is tuple and len(pairs) == 2:  # as most connectors send it
        (first, kind), (second, sync) = pairs
        if first == REQUEST_TYPE and second == SYNC and type(kind) is int and type(sync) is int and sync >= 0:
            return kind, sync
    fields = _fields(pairs)
    kind, sync = fields.get(REQUEST_TYPE), fields.get(SYNC, 0)
    if type(kind) is not int or type(sync) is not int or not 0 <= sync < 2**64:
        raise ProtocolError("a header has a REQUEST_TYPE and a SYNC")
    return kind, sync


def _fields(pairs: object) -> dict[int, Any]:
    """Returns a map whose keys are integers, each of them once, as a dict. Raises ProtocolError for any other value."""
    if type(pairs) is not tuple:
        raise ProtocolError("header and body are maps")
    try:
        fields = dict(pairs)
    except TypeError:  # a key is an array
        raise ProtocolError(_KEYS) from None
    if len(fields) != len(pairs) or not _INTEGERS.issuperset(map(type, fields)):
        raise ProtocolError(_KEYS)
    return fields


def plain_value(sync: int, data: bytes | memoryview) -> bytes:
    """Encodes a reply with one value. `data`: that value, as MessagePack."""
    size = _VALUE_BYTES + len(data)
    return _value_head(0xCE, size, _VALUE_BEFORE, sync, _VALUE_BEHIND) + data


def values(sync: int, data: bytes | memoryview) -> bytes:
    """Encodes a reply with a result. `data`: an array, as MessagePack."""
    header = _OK % sync.to_bytes(8, "big")
    size = len(header) + len(_DATA) + len(data)
    return b"".join((b"\xce", size.to_bytes(4, "big"), header, _DATA, data))


def done(sync: int, body: bytes = NO_BODY) -> bytes:
    """Encodes a reply without a result. `body`: a map, as MessagePack."""
    header = _OK % sync.to_bytes(8, "big")
    return b"".join((b"\xce", (len(header) + len(body)).to_bytes(4, "big"), header, body))


def error(sync: int, code: int, message: str) -> bytes:
    """Encodes a reply that is an error."""
    text = message.encode()
    header = _ERROR % ((0x8000 | code).to_bytes(2, "big"), sync.to_bytes(8, "big"))
    body = b"\x81\x31\xdb" + len(text).to_bytes(4, "big") + text
    return b"".join((b"\xce", (len(header) + len(body)).to_bytes(4, "big"), header, body))


def refusal(sync: int, refused: Refused, name: str) -> bytes:
    """Encodes a refusal as an error of Tarantool. `name`: of the procedure that was called."""
    if refused.name == "UNKNOWN_METHOD":
        return error(sync, ER_NO_SUCH_PROC, f"Procedure '{name}' is not defined")
    code = ER_ACCESS_DENIED if refused.name in ("FORBIDDEN", "UNAUTHENTICATED") else ER_PROC_LUA
    return error(sync, code, str(refused))
