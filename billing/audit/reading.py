"""Reads the operators' record: the files of all processes, from a cursor on, with bounded memory.

The files of each process, in the order of their numbers and the one without a number last, are one sequence of lines
that grows only at its end (see `trail`). A reader has read each sequence up to some place, and a cursor holds these
places. A reader that stores the cursor with the rows gets each record exactly once, even records that are written while
it reads. Records of different processes are merged by their instants; those of one process keep their order, even if
the wall clock was set back.

    cursor = base64url of a JSON object: process -> [number of the file, offset behind the line, CRC-32 of the line]

In cursors, the file without a number has the number that it will get. A cursor is refused (`UnknownCursor`) if a file
that it names is gone or has no such line: it came from another daemon, or the oldest file was removed.

A line that is no record (its writer was killed while writing it) is returned as the act `unreadable`, at the instant of
the record before. An incomplete last line of a file that is being written is not read.
"""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple
from zlib import crc32

from billing.audit.trail import Record, numbered
from shards.system.disk import Disk

CHUNK_BYTES: Final = 64 * 1024
LINE_BYTES_MAX: Final = 1 << 20
UNREADABLE: Final = "unreadable"
_KEYS: Final = ("at_ns", "actor", "act", "details")


class UnknownCursor(Exception):
    """The record cannot be read on from this cursor; the text says why."""


class Place(NamedTuple):
    """The place behind a line of one process's files; `checksum`: of that line, 0 before the first line of a
    file.
    """

    number: int
    offset: int
    checksum: int


class _Line(NamedTuple):
    """A line, the instant by which it is merged, and the place behind it."""

    at_ns: int
    name: str
    data: bytes
    place: Place


class TrailReader:
    """Reads all files of one directory."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._directory = directory

    def page(self, cursor: str, limit: int, actor: str | None = None, act: str | None = None) -> list[Record]:
        """Returns at most `limit` records behind `cursor`, each with the cursor behind it; only those of `actor` and of
        `act`, unless None. Waits for the disk. Raises UnknownCursor, OSError.
        """
        return list(islice(self.records(cursor, actor, act), limit))

    def records(self, cursor: str = "", actor: str | None = None, act: str | None = None) -> Iterator[Record]:
        """Yields all records behind `cursor`, as `page` returns them."""
        places = _decode(cursor)
        names = self._processes()
        strangers = places.keys() - set(names)
        if strangers:
            raise UnknownCursor(f"there is no record of {min(strangers)} here: the cursor is of another daemon")
        lines = merge(*(self._lines(name, places.get(name)) for name in names), key=lambda line: line.at_ns)
        for line in lines:
            places[line.name] = line.place
            record = self._record(line)
            if actor in (None, record["actor"]) and act in (None, record["act"]):
                yield {"cursor": _encode(places), **record}

    def _record(self, line: _Line) -> Record:
        record = _parsed(line.data)
        if record is not None:
            return record
        where = {"process": line.name, "file": line.place.number, "before_byte": line.place.offset}
        return {"at_ns": line.at_ns, "actor": "", "act": UNREADABLE, "details": where}

    def _processes(self) -> list[str]:
        if not self._disk.exists(self._directory):
            return []
        names = {name.split(".")[0] for name in self._disk.listdir(self._directory) if name.endswith(".jsonl")}
        return sorted(names)

    def _lines(self, name: str, place: Place | None) -> Iterator[_Line]:
        """Yields the lines of one process behind a place. Raises UnknownCursor, OSError."""
        at_ns = 0
        while (opened := self._open(name, place)) is not None:
            number, handle, is_last = opened
            offset = 0
            if place is not None and place.number == number:
                offset = place.offset
                self._check(handle, name, place)
            try:
                for data, end in self._lines_of(handle, offset):
                    record = _parsed(data)
                    at_ns = at_ns if record is None else int(record["at_ns"])
                    place = Place(number, end, crc32(data))
                    yield _Line(at_ns, name, data, place)
            finally:
                self._disk.close(handle)
            if is_last:
                return  # lines written meanwhile are read from the cursor next time
            place = Place(number + 1, 0, 0)

    def _numbers(self, name: str) -> list[int]:
        """Returns the numbers of a process's files, ascending; the last is the one that the file without a number will
        get.
        """
        numbers = numbered(self._disk, self._directory, name)
        return [*numbers, max(numbers, default=0) + 1]

    def _open(self, name: str, place: Place | None) -> tuple[int, int, bool] | None:
        """Opens the file in which to read on. Returns (number, handle, whether it is the last); None where it does not
        exist yet. Raises UnknownCursor, OSError.
        """
        while True:
            numbers = self._numbers(name)
            number = numbers[0] if place is None else place.number
            if number not in numbers:
                raise UnknownCursor(f"file {number} of the record of {name} is not here: begin again")
            is_last = number == numbers[-1]
            path = f"{self._directory}/{name}.jsonl" if is_last else f"{self._directory}/{name}.{number}.jsonl"
            try:
                handle = self._disk.open(path)
            except FileNotFoundError:
                if numbers == self._numbers(name):
                    return None  # the file was just rotated or never created, and the next one does not exist yet
                continue
            if not is_last or numbers == self._numbers(name):
                return number, handle, is_last
            self._disk.close(handle)  # the file was rotated between the two listings

    def _check(self, handle: int, name: str, place: Place) -> None:
        """Raises UnknownCursor if the line before a place does not match the place's checksum."""
        begin = max(0, place.offset - LINE_BYTES_MAX)
        data = self._disk.pread(handle, place.offset - begin, begin)
        line = data[:-1].rpartition(b"\n")[2]
        is_intact = len(data) == place.offset - begin and data.endswith(b"\n") and crc32(line) == place.checksum
        if place.offset and not is_intact:
            self._disk.close(handle)
            raise UnknownCursor(f"the record of {name} is not the one that the cursor is of: begin again")

    def _lines_of(self, handle: int, offset: int) -> Iterator[tuple[bytes, int]]:
        """Yields (line, the offset behind it) of each complete line."""
        rest = b""
        at = offset
        while chunk := self._disk.pread(handle, CHUNK_BYTES, at):
            at += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                offset += len(line) + 1
                yield line, offset


def _parsed(data: bytes) -> Record | None:
    """Returns the record of a line; None where the line is none."""
    try:
        record = json.loads(data)
        fields: Record = {key: record[key] for key in _KEYS}
    except (ValueError, KeyError, TypeError):
        return None
    return fields if type(fields["at_ns"]) is int else None


def _encode(places: dict[str, Place]) -> str:
    packed = json.dumps(places, separators=(",", ":"), sort_keys=True).encode()
    return urlsafe_b64encode(packed).decode().rstrip("=")


def _decode(text: str) -> dict[str, Place]:
    """Returns the places of a cursor. Raises UnknownCursor."""
    if not text:
        return {}
    try:
        decoded: dict[str, Any] = json.loads(b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", True))
        places = {name: Place(*place) for name, place in decoded.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        places = {"": Place(-1, -1, -1)}
    if not all(type(number) is int and 0 <= number < 1 << 63 for place in places.values() for number in place):
        raise UnknownCursor("the cursor is no text that this daemon gave out; the empty text is the beginning")
    return places
