"""How sound bytes are broken: by a seeded generator, so that every input can be made again from its number."""

from __future__ import annotations

import random

from crc32c import crc32c

LENGTHS = (0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
TOKENS = (
    *(b"\xc0", b"\xc1", b"\xc2", b"\xca\x7f\xc0\x00\x00", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xd9\xff"),
    *(b"\xdb\x7f\xff\xff\xff", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc7\x0c\xff"),
    *(b"\x9f" * 40, b"\x91" * 200, b"\x81" * 40, b"\xdc\x00\x40" * 30, b"\x94\x00\x01", b"\x93\x02", b"[[", b'"""'),
    *(b"=", b"\n[", b"]\n", b"[a.b]\n", b"1e999", b"nan", b"0x" + b"f" * 40, b"9" * 400, b"\\uD800", b"\xff\xfe", b"{"),
)


def mutated(rng: random.Random, data: bytes, donors: list[bytes], longest: int) -> bytes:
    """One to six changes, of bits, bytes, lengths, and whole parts; also out of others."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice((1, 2, 4, 8, 16, rng.randrange(1, 200)))
        kind = rng.randrange(9)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size] * rng.randint(1, 8)
        elif kind == 4:
            changed[at:at] = rng.randbytes(size)
        elif kind == 5:
            changed[at : at + size] = bytes(size)
        elif kind == 6:
            order = rng.choice(("big", "little"))
            changed[at : at + 4] = rng.choice(LENGTHS).to_bytes(4, order)  # type: ignore[arg-type]
        elif kind == 7:
            changed[at:at] = rng.choice(TOKENS)
        else:
            donor = rng.choice(donors)
            begin = rng.randrange(len(donor) + 1)
            changed[at:] = donor[begin:]
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed[:longest])


def mended_snapshot(data: bytes) -> bytes:
    """A snapshot whose head and first frame have their checksums right again: so that what is behind is looked at."""
    changed = bytearray(data)
    for begin, end in ((0, 40), (44, 56)):
        if len(changed) >= end + 4:
            changed[end : end + 4] = crc32c(bytes(changed[begin:end])).to_bytes(4, "little")
    return bytes(changed)
