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

Source: Tarantool's documentation, "Binary protocol"; checked against the connectors in `tests/outsiders`. Two facts
that it does not tell: connectors may use SYNC 0 for every request, and net.box of 2.6 takes no header without
SCHEMA_VERSION.

CHAP-SHA1 proves a password without sending it: scramble = SHA1(password) xor SHA1(salt[:20] + SHA1(SHA1(password))). So
the server keeps SHA1(SHA1(password)) and nothing from which the password could be had.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from billing.api.wire import DECODE_ERRORS, FRAME_BYTES_MAX, make_unpacker
from billing.ledger.errors import Refused

GREETING_BYTES: Final = 128
SALT_BYTES: Final = 32
SCRAMBLE_BYTES: Final = 20
VERSION: Final = "Tarantool 2.6.0 (Binary)"  # what connectors choose their words by

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

_SIZE_BYTES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_OK: Final = b"\x83\x00\x00\x01\xcf%b\x05\x01"
_ERROR: Final = b"\x83\x00\xcd%b\x01\xcf%b\x05\x01"
_DATA: Final = b"\x81\x30"
NO_BODY: Final = b"\x80"
NO_VALUES: Final = b"\x90"


class ProtocolError(Exception):
    """The bytes cannot be followed any further: the connection ends."""


class Request(NamedTuple):
    """One request. `body`: its fields by key, texts as bytes, maps as tuples of pairs."""

    kind: int
    sync: int
    body: dict[int, Any]


def greeting(salt: bytes, instance: str) -> bytes:
    """What the server says first. `salt`: 32 random bytes; `instance`: a UUID as text."""
    lines = f"{VERSION} {instance}".encode(), b64encode(salt)
    return b"".join(line.ljust(63) + b"\n" for line in lines)


def proof_of(password: bytes) -> bytes:
    """What a server keeps of a password."""
    return hashlib.sha1(hashlib.sha1(password).digest()).digest()


def scramble_of(password: bytes, salt: bytes) -> bytes:
    """What a client sends for a password."""
    hashed = hashlib.sha1(password).digest()
    mask = hashlib.sha1(salt[:SCRAMBLE_BYTES] + proof_of(password)).digest()
    return bytes(one ^ other for one, other in zip(hashed, mask, strict=True))


def proves(scramble: bytes, salt: bytes, proof: bytes) -> bool:
    """Whether a scramble was made with the password of this proof."""
    if len(scramble) != SCRAMBLE_BYTES:
        return False
    mask = hashlib.sha1(salt[:SCRAMBLE_BYTES] + proof).digest()
    hashed = bytes(one ^ other for one, other in zip(scramble, mask, strict=True))
    return hmac.compare_digest(hashlib.sha1(hashed).digest(), proof)


class Decoder:
    """`feed(bytes)`, then requests. Keeps at most one unfinished packet, of `limit_bytes` at most."""

    def __init__(self) -> None:
        self.limit_bytes = FRAME_BYTES_MAX
        self._kept = bytearray()

    @property
    def waits(self) -> bool:
        """Whether a packet has begun and is not whole."""
        return bool(self._kept)

    def feed(self, data: bytes) -> Iterator[Request]:
        """The requests that are whole now. Raises ProtocolError; after it the decoder is of no further use."""
        kept = self._kept
        kept += data
        start = 0
        try:
            while (found := self._packet(start)) is not None:
                begin, end = found
                start = end
                yield _request_of(bytes(kept[begin:end]))
        finally:
            del kept[:start]

    def _packet(self, start: int) -> tuple[int, int] | None:
        """Where the packet that begins at `start` has its header, and where it ends; None while it is not whole."""
        kept = self._kept
        if start >= len(kept):
            return None
        head = kept[start]
        if head <= 0x7F:
            size, begin = head, start + 1
        elif head in _SIZE_BYTES:
            begin = start + 1 + _SIZE_BYTES[head]
            if begin > len(kept):
                return None
            size = int.from_bytes(kept[start + 1 : begin], "big")
        else:
            raise ProtocolError("a packet begins with its size")
        if size > self.limit_bytes:
            raise ProtocolError(f"a packet may have {self.limit_bytes} bytes")
        return (begin, begin + size) if begin + size <= len(kept) else None


def _request_of(packet: bytes) -> Request:
    unpacker = make_unpacker()
    unpacker.feed(packet)
    try:
        header = _fields(unpacker.unpack())
        body = _fields(unpacker.unpack()) if unpacker.tell() < len(packet) else {}
        if unpacker.tell() != len(packet):
            raise ProtocolError("there is more in the packet than a header and a body")
    except DECODE_ERRORS:
        raise ProtocolError("this is no MessagePack that is taken") from None
    kind, sync = header.get(REQUEST_TYPE), header.get(SYNC, 0)
    if type(kind) is not int or type(sync) is not int or not 0 <= sync < 2**64:
        raise ProtocolError("a header has a REQUEST_TYPE and a SYNC")
    return Request(kind, sync, body)


def _fields(pairs: object) -> dict[int, Any]:
    """A map with small integers as keys, each of them once."""
    if type(pairs) is not tuple:
        raise ProtocolError("header and body are maps")
    fields = {key: value for key, value in pairs if type(key) is int}
    if len(fields) != len(pairs):
        raise ProtocolError("the keys of header and body are integers, each of them once")
    return fields


def values(sync: int, data: bytes | memoryview) -> bytes:
    """A reply with a result. `data`: an array, as MessagePack."""
    header = _OK % sync.to_bytes(8, "big")
    size = len(header) + len(_DATA) + len(data)
    return b"".join((b"\xce", size.to_bytes(4, "big"), header, _DATA, data))


def done(sync: int, body: bytes = NO_BODY) -> bytes:
    """A reply without a result. `body`: a map, as MessagePack."""
    header = _OK % sync.to_bytes(8, "big")
    return b"".join((b"\xce", (len(header) + len(body)).to_bytes(4, "big"), header, body))


def error(sync: int, code: int, message: str) -> bytes:
    """A reply that is an error."""
    text = message.encode()
    header = _ERROR % ((0x8000 | code).to_bytes(2, "big"), sync.to_bytes(8, "big"))
    body = b"\x81\x31\xdb" + len(text).to_bytes(4, "big") + text
    return b"".join((b"\xce", (len(header) + len(body)).to_bytes(4, "big"), header, body))


def refusal(sync: int, refused: Refused, name: str) -> bytes:
    """What the daemon refuses, as Tarantool says such things. `name`: of the procedure that was called."""
    if refused.name == "UNKNOWN_METHOD":
        return error(sync, ER_NO_SUCH_PROC, f"Procedure '{name}' is not defined")
    code = ER_ACCESS_DENIED if refused.name in ("FORBIDDEN", "UNAUTHENTICATED") else ER_PROC_LUA
    return error(sync, code, str(refused))
