"""Skips one MessagePack-RPC frame without decoding it: finds its end and the msgid to refuse.

The decoder gives up at a value beyond its limits: a long text, a large array, an extension type such as a timestamp,
deep nesting. `PassedOver` still finds the end of such a frame, so the request gets its refusal and the connection
stays open.

To find the end, `PassedOver` neither decodes values nor remembers nesting. A frame is over when as many values have
ended as were announced:

    left = 1;  each value: left -= 1;  an array of n: left += n;  a map of n: left += 2 n;  a text of n: skip n bytes

It keeps a count and the first bytes of the frame, which hold its type and msgid. It never recurses, and its memory does
not grow with the lengths or the depth of a frame.
"""

from typing import Final

import msgpack

from billing.api.wire import DECODE_ERRORS, MSGID_MAX, NOTIFICATION, REQUEST

# Lead byte of a text -> (bytes of the length that follows it, bytes to skip beside the text).
_TEXTS: Final = {
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),  # extension types carry a type byte
}
_CONTAINERS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # -> (the same, values per element)
_FIXED: Final = {
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
}
_NEVER: Final = 0xC1  # no value begins with this byte
_HEAD_BYTES: Final = 32  # the head of an array of four, the type and the msgid take at most 23


class Malformed(Exception):
    """The bytes are no MessagePack, or no frame of MessagePack-RPC: the rest of the stream cannot be read."""


class PassedOver:
    """One frame that is skipped: call `feed` from its first byte on until `is_over`."""

    __slots__ = ("_collected", "_head", "_skip", "_values_left", "_wanted", "size")

    def __init__(self) -> None:
        self.size = 0  # bytes of the frame seen
        self._head = bytearray()
        self._values_left = 1  # values that have not begun
        self._skip = 0  # bytes that remain to be skipped of a value
        self._wanted = 0  # size of the value's head that is being collected: lead byte and length; 0: none is
        self._collected = bytearray()

    @property
    def is_over(self) -> bool:
        """Whether the frame has ended."""
        return not self._values_left and not self._skip and not self._wanted

    @property
    def least_bytes(self) -> int:
        """A lower bound of the size of the whole frame, in bytes."""
        return self.size + self._skip + self._values_left + max(0, self._wanted - len(self._collected))

    def feed(self, data: bytes) -> int:
        """Consumes the bytes of `data` that belong to the frame, and returns how many there are. Raises Malformed."""
        at, size = 0, len(data)
        while at < size and not self.is_over:
            if self._skip:
                passed = min(self._skip, size - at)
                self._skip -= passed
                at += passed
            else:
                self._take(data[at])
                at += 1
        if len(self._head) < _HEAD_BYTES:
            self._head += data[: min(at, _HEAD_BYTES - len(self._head))]
        self.size += at
        return at

    def _take(self, byte: int) -> None:
        """Consumes one byte of a value's head."""
        collected = self._collected
        if not self._wanted:
            self._values_left -= 1
            if 0x80 <= byte <= 0x8F:
                self._values_left += 2 * (byte & 0x0F)
            elif 0x90 <= byte <= 0x9F:
                self._values_left += byte & 0x0F
            elif 0xA0 <= byte <= 0xBF:
                self._skip = byte & 0x1F
            elif byte == _NEVER:
                raise Malformed
            elif byte in _FIXED:
                self._skip = _FIXED[byte]
            elif byte in _TEXTS:
                self._wanted = 1 + _TEXTS[byte][0]
                collected.append(byte)
            elif byte in _CONTAINERS:
                self._wanted = 1 + _CONTAINERS[byte][0]
                collected.append(byte)
            return
        collected.append(byte)
        if len(collected) == self._wanted:
            lead, length = collected[0], int.from_bytes(collected[1:], "big")
            if lead in _TEXTS:
                self._skip = length + _TEXTS[lead][1]
            else:
                self._values_left += length * _CONTAINERS[lead][1]
            self._wanted = 0
            collected.clear()

    def addressee(self) -> int | None:
        """Returns the msgid of a request; None for a notification, which gets no reply. Raises Malformed where the
        frame is neither.
        """
        unpacker = msgpack.Unpacker(raw=True, strict_map_key=False, object_pairs_hook=tuple)
        unpacker.feed(bytes(self._head))
        try:
            length = unpacker.read_array_header()
            kind = unpacker.unpack()
            msgid = unpacker.unpack() if length == 4 else None
        except (*DECODE_ERRORS, TypeError):
            raise Malformed from None
        if length == 3 and kind == NOTIFICATION and type(kind) is int:
            return None
        if length != 4 or kind != REQUEST or type(kind) is not int or type(msgid) is not int:
            raise Malformed
        if not 0 <= msgid <= MSGID_MAX:
            raise Malformed
        return msgid
