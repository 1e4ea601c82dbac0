"""One MessagePack-RPC frame that is not decoded: where it ends, and whom to tell that it was not taken.

The decoder gives up at a value beyond its limits: a long text, a large array, an extension type such as a timestamp,
deep nesting. Where the frame ends can still be told, and so the request gets its refusal and the connection lives.

To find the end no value has to be made, and no nesting to be remembered. A frame is over when as many values have
ended as were announced:

    left = 1;  each value: left -= 1;  an array of n: left += n;  a map of n: left += 2 n;  a text of n: n bytes passed

It keeps the first bytes of the frame, which hold its type and msgid, and a count. It never recurses, and costs memory
for neither lengths nor depth.
"""

from typing import Final

import msgpack

from billing.api.wire import DECODE_ERRORS, MSGID_MAX, NOTIFICATION, REQUEST

# Lead byte -> bytes of the length that follows it, for texts (with what is passed over beside the text) and containers.
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
_CONTAINERS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # (…, values an element)
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
_NEVER: Final = 0xC1  # no value begins with it
_HEAD_BYTES: Final = 32  # the widest forms of an array of four, the type and the msgid take 23


class Malformed(Exception):
    """What follows is no MessagePack: the stream cannot be followed."""


class PassedOver:
    """One frame from its first byte on. `feed` until it `is_over`."""

    __slots__ = ("_collected", "_head", "_skip", "_values_left", "_wanted", "size")

    def __init__(self) -> None:
        self.size = 0  # bytes of the frame seen
        self._head = bytearray()
        self._values_left = 1  # values that have not begun
        self._skip = 0  # bytes of a value that only have to pass
        self._wanted = 0  # bytes of a value's own head: its lead byte and the length behind it
        self._collected = bytearray()

    @property
    def is_over(self) -> bool:
        """Whether the frame has ended."""
        return not self._values_left and not self._skip and not self._wanted

    @property
    def least_bytes(self) -> int:
        """The frame has at least so many bytes in all."""
        return self.size + self._skip + self._values_left + max(0, self._wanted - len(self._collected))

    def feed(self, data: bytes) -> int:
        """Takes what belongs to the frame, and says how many bytes of `data` that is. Raises Malformed."""
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
        """One byte of a value's head."""
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
        """The msgid of a request; None for a notification, which nobody is told of. Raises Malformed where the frame
        is neither.
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
