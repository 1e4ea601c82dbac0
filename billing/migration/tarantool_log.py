"""Tarantool's `.snap` and `.xlog` files, as the rows they hold. Pure: bytes in, rows out.

A file is a text header, then blocks, then an end marker, which a file being written lacks:

    header      "SNAP" | "XLOG" LF "0.12" | "0.13" LF "Key: value" LF … LF LF
    block       magic (4 bytes) | length | previous CRC | CRC | padding up to 19 bytes, then `length` bytes
                d5 ba 0b ab     the bytes are rows
                d5 ba 0b ba     the bytes are rows, compressed with Zstandard
    end         d5 10 ad ed

`length` and the CRCs are MessagePack integers, the padding is a MessagePack string. The CRC is CRC-32C (initial value
0, no final xor) of the block's bytes as they are in the file. A row is two MessagePack maps, header and body, keyed by
Tarantool's protocol numbers (`IPROTO_*`); a row of the type NOP has no body. Source: Tarantool's documentation, "File
formats", checked against files that Tarantool 2.6 wrote.

An incomplete last block, or a missing end marker, is where a running Tarantool had got to: the rows before it are good,
and `Log.is_whole` is false. A wrong CRC or magic is damage and raises `LogError`, which names the offset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgpack
from crc32c import crc32c

MAGIC_PLAIN: Final = b"\xd5\xba\x0b\xab"
MAGIC_COMPRESSED: Final = b"\xd5\xba\x0b\xba"
MAGIC_END: Final = b"\xd5\x10\xad\xed"
BLOCK_HEADER_BYTES: Final = 19
HEADER_BYTES_MAX: Final = 64 * 1024
BLOCK_BYTES_MAX: Final = 256 * 1024 * 1024  # in one block, unpacked
PART_BYTES: Final = 1024 * 1024  # are unpacked at a time

REQUEST_TYPE: Final = 0x00
REPLICA_ID: Final = 0x02
LSN: Final = 0x03
NOP: Final = 12

_CLOCK: Final = re.compile(rb"(\d+): (\d+)")
_DECIMAL: Final = 1  # the extension type of Tarantool's decimal


class LogError(Exception):
    """The file is no Tarantool log, or is damaged."""


class Row(NamedTuple):
    """One request as Tarantool logged it. `kind`: its IPROTO request type; `lsn`: its number at the replica that made
    it (in a snapshot, only a count).
    """

    kind: int
    replica_id: int
    lsn: int
    body: dict[int, Any]


class Log:
    """The rows of one file. `kind` is "SNAP" or "XLOG". `clock`: for each replica, the number of its newest row that a
    snapshot includes, or that precedes a log. `instance`: the identity of the Tarantool that wrote it; empty if the
    file does not say. `is_whole` is valid once `rows` has ended.
    """

    def __init__(self, data: bytes, name: str = "the file") -> None:
        end = data.find(b"\n\n", 0, HEADER_BYTES_MAX)
        lines = data[: max(end, 0)].split(b"\n")
        if end < 0 or lines[0] not in (b"SNAP", b"XLOG"):
            raise LogError(f"{name} is not a .snap or .xlog file of Tarantool")
        if len(lines) < 2 or lines[1] not in (b"0.12", b"0.13"):
            raise LogError(f"{name} has format {lines[1:2]!r}; 0.12 and 0.13 are known")
        self.kind = lines[0].decode()
        clock = next((line for line in lines if line.startswith(b"VClock:")), b"")
        self.clock = {int(replica): int(lsn) for replica, lsn in _CLOCK.findall(clock)}
        instance = next((line for line in lines if line.startswith((b"Instance:", b"Server:"))), b":")
        self.instance = instance.partition(b":")[2].strip().decode(errors="replace")
        self.name = name
        self.is_whole = False
        self._data = data
        self._start = end + 2

    def rows(self) -> Iterator[Row]:
        """All rows, in order. Raises LogError where the file is damaged."""
        data, at = self._data, self._start
        while at < len(data):
            magic = data[at : at + 4]
            if magic == MAGIC_END:
                self.is_whole = True
                return
            if len(magic) < 4 or at + BLOCK_HEADER_BYTES > len(data):
                return
            if magic not in (MAGIC_PLAIN, MAGIC_COMPRESSED):
                raise LogError(f"{self.name} is damaged at offset {at}: no block begins there")
            length, checksum = self._block_header(at)
            begin = at + BLOCK_HEADER_BYTES
            if begin + length > len(data):
                return
            block = data[begin : begin + length]
            if crc32c(block, 0xFFFFFFFF) ^ 0xFFFFFFFF != checksum:
                raise LogError(f"{self.name} is damaged at offset {at}: the checksum of the block is wrong")
            yield from self._rows_of(decompressed(block) if magic == MAGIC_COMPRESSED else block, at)
            at = begin + length

    def _block_header(self, at: int) -> tuple[int, int]:
        unpacker = msgpack.Unpacker()
        unpacker.feed(self._data[at + 4 : at + BLOCK_HEADER_BYTES])
        try:
            length, _, checksum = unpacker.unpack(), unpacker.unpack(), unpacker.unpack()
        except (msgpack.UnpackException, ValueError):
            length = checksum = None
        if not isinstance(length, int) or not isinstance(checksum, int) or not 0 <= length <= BLOCK_BYTES_MAX:
            raise LogError(f"{self.name} is damaged at offset {at}: the block's header cannot be read")
        return length, checksum

    def _rows_of(self, block: bytes, at: int) -> Iterator[Row]:
        unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=False,
            unicode_errors="surrogateescape",
            max_buffer_size=BLOCK_BYTES_MAX,
            ext_hook=_extension,
        )
        unpacker.feed(block)
        try:
            while True:
                try:
                    header = unpacker.unpack()
                except msgpack.OutOfData:
                    return
                kind = header.get(REQUEST_TYPE, 0)
                body = {} if kind == NOP else unpacker.unpack()
                if not isinstance(body, dict):
                    raise ValueError("a row's body is no map")
                yield Row(kind, header.get(REPLICA_ID, 0), header.get(LSN, 0), body)
        except (msgpack.UnpackException, ValueError, AttributeError) as error:
            raise LogError(f"{self.name} is damaged in the block at offset {at}: {error}") from None


def _extension(code: int, packed: bytes) -> Any:
    """Tarantool's decimal as a Decimal: its scale, a MessagePack integer, then the digits, two a byte, of which the
    last half byte is the sign. Any other extension is left as it is.
    """
    if code == _DECIMAL:
        unpacker = msgpack.Unpacker()
        unpacker.feed(packed)
        scale, digits = unpacker.unpack(), packed[unpacker.tell() :].hex()
        if isinstance(scale, int) and digits[:-1].isdecimal() and digits[-1] in "abcdef":
            return Decimal((int(digits[-1] in "bd"), tuple(map(int, digits[:-1])), -scale))
    return msgpack.ExtType(code, packed)


def decompressed(block: bytes, bytes_max: int = BLOCK_BYTES_MAX) -> bytes:
    """Returns the rows of a compressed block. Raises LogError for bytes that are not Zstandard's, or unpack to more
    than `bytes_max`: a few bytes may unpack to any number, so unpacking ends there.
    """
    import zstandard

    reader, unpacked = zstandard.ZstdDecompressor().stream_reader(block), bytearray()
    try:
        while part := reader.read(PART_BYTES):
            unpacked += part
            if len(unpacked) > bytes_max:
                raise LogError(f"a compressed block unpacks to more than {bytes_max} bytes")
    except zstandard.ZstdError as error:
        raise LogError(f"a compressed block cannot be unpacked: {error}") from None
    return bytes(unpacked)
