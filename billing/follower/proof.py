"""Reads back from the medium what SQLite has written, past the page cache.

A checkpoint copies the newest version of each page from the write-ahead log into the database file and syncs that
file. Whether the pages are really there only the medium can tell: after a failed write-back Linux keeps the pages in
memory, marked as clean, and a second sync reports success. So the pages are read with `Disk.read_medium` and compared
with the log, byte by byte. No page is believed because of a checksum of its own.

The write-ahead log (https://www.sqlite.org/fileformat2.html#walformat), all numbers big-endian:

    32 bytes       magic u32, version u32, page size u32, sequence u32, salts 8 bytes, checksum 8 bytes
    then frames of 24 bytes and one page: page number u32, pages in the file after a commit u32 (0: no commit),
                   salts 8 bytes (those of the header), checksum 8 bytes

For example two frames of page 3, at page size 4096: the second one starts at byte 32 + 4120, and page 3 belongs at
byte 8192 of the database file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from shards.system.disk import Disk

HEADER: Final = struct.Struct(">4I8s8s")
FRAME_BYTES: Final = 24
SPAN_BYTES: Final = 1 << 20  # bytes per read from the medium
FRAMES_AT_ONCE: Final = 64


class Unproved(Exception):
    """The medium does not hold what was written and synced."""


class Log(NamedTuple):
    """The contents of a write-ahead log: the offset of the newest version of each page."""

    salts: bytes
    page_bytes: int
    pages: dict[int, int]  # page number, from 1 -> offset in the log


def salts_of(disk: Disk, path: str) -> bytes:
    """Returns the salts, which differ each time that SQLite restarts the log; empty where there is no log."""
    if not disk.exists(path):
        return b""
    handle = disk.open(path)
    try:
        header = disk.pread(handle, HEADER.size, 0)
    finally:
        disk.close(handle)
    return bytes(HEADER.unpack(header)[4]) if len(header) == HEADER.size else b""


def read_log(disk: Disk, path: str, frames: int) -> Log:
    """Reads the first `frames` frames of a log, which SQLite reports as committed. Raises Unproved, OSError."""
    handle = disk.open(path)
    try:
        header = disk.pread(handle, HEADER.size, 0)
        if len(header) < HEADER.size:
            raise Unproved(f"{path} has no header, and should hold {frames} frames")
        page_bytes, salts = HEADER.unpack(header)[2], HEADER.unpack(header)[4]
        frame = struct.Struct(f">2I8s8x{page_bytes}x")
        pages: dict[int, int] = {}
        done = 0
        while done < frames:
            offset = HEADER.size + done * frame.size
            part = disk.pread(handle, min(FRAMES_AT_ONCE, frames - done) * frame.size, offset)
            frame_count = len(part) // frame.size
            if not frame_count:
                raise Unproved(f"{path} ends after {done} of {frames} frames")
            at = offset + FRAME_BYTES
            for number, _, frame_salts in frame.iter_unpack(part[: frame_count * frame.size]):
                if frame_salts != salts:
                    raise Unproved(f"{path}: the frame before byte {at} is of another filling of the log")
                pages[number] = at
                at += frame.size
            done += frame_count
    finally:
        disk.close(handle)
    return Log(salts, page_bytes, pages)


def prove_checkpoint(disk: Disk, path: str, log: Log) -> None:
    """Checks that the database file on the medium holds the log's version of each page. Raises Unproved, OSError."""
    page_bytes = log.page_bytes
    handle = disk.open(f"{path}-wal")
    try:
        for first, count in _runs(sorted(log.pages), SPAN_BYTES // page_bytes):
            on_medium = disk.read_medium(path, (first - 1) * page_bytes, count * page_bytes)
            for number in range(first, first + count):
                start = (number - first) * page_bytes
                if on_medium[start : start + page_bytes] != disk.pread(handle, page_bytes, log.pages[number]):
                    raise Unproved(f"{path}: page {number} was written and synced, but the medium does not hold it")
    finally:
        disk.close(handle)


def differs(disk: Disk, path: str) -> bool:
    """Whether the page cache and the medium hold different contents of a file. Raises OSError."""
    handle = disk.open(path)
    try:
        size = disk.size(handle)
        return any(
            disk.pread(handle, SPAN_BYTES, offset) != disk.read_medium(path, offset, SPAN_BYTES)
            for offset in range(0, size, SPAN_BYTES)
        )
    finally:
        disk.close(handle)


def copy_from_medium(disk: Disk, source: str, target: str) -> None:
    """Copies `source`, as the medium holds it, to `target`, which is synced and proved. Raises Unproved, OSError."""
    if disk.exists(target):
        disk.unlink(target)
    handle = disk.create(target)
    try:
        offset = 0
        while part := disk.read_medium(source, offset, SPAN_BYTES):
            written = 0
            while written < len(part):
                written += disk.pwrite(handle, part[written:], offset + written)
            offset += len(part)
        disk.fsync(handle)
    finally:
        disk.close(handle)
    if differs(disk, target):
        raise Unproved(f"{target} was written and synced, but the medium does not hold it")


def _runs(numbers: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yields (first, count) of each run of consecutive numbers in a rising list; a run has at most `most`
    numbers.
    """
    starts = [
        0,
        *(at for at, (number, following) in enumerate(pairwise(numbers), 1) if following != number + 1),
        len(numbers),
    ]
    for start, end in pairwise(starts):
        for at in range(start, end, most):
            yield numbers[at], min(most, end - at)
