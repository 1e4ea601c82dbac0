"""Reads a log again whose segments are known to be whole: from a position on, or the chain at one position.

Opening has judged all of the log before (`shards.journal.file.recovery`). Every checksum and link is checked again all
the same: a batch that is bad or missing now is damage, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shards.journal import Corrupt
from shards.journal.file.record import BARRIER, SegmentHeader, walk
from shards.system.disk import Disk, read_file


class Segment(NamedTuple):
    """A segment's file and the fields of its first block."""

    name: str
    header: SegmentHeader
    size: int


def covering(segments: list[Segment], position: int) -> int:
    """Returns the index of the segment in which this position lies or will lie; -1 where it lies before all
    of them.
    """
    index = -1
    for number, segment in enumerate(segments):
        if segment.header.first_position <= position:
            index = number
    return index


def reaching(segments: list[Segment], start: int, head: int) -> list[Segment]:
    """Returns the segments that hold `start` to `head`, and none behind them; an empty list where `start` is not in the
    log.
    """
    index = covering(segments, start)
    if index < 0 or not 1 <= start <= head + 1:
        return []
    return [segment for segment in segments[index:] if segment.header.first_position <= max(start, head)]


def batches(disk: Disk, directory: str, segments: list[Segment], start: int, head: int) -> Iterator[tuple[int, bytes]]:
    """Yields (position, payload) from `start` to `head`; `start` must lie in the first segment. Raises Corrupt,
    OSError.
    """
    for number, segment in enumerate(segments):
        until = segments[number + 1].header.first_position - 1 if number + 1 < len(segments) else head
        path = f"{directory}/{segment.name}"
        data = read_file(disk, path)
        position, end = segment.header.first_position - 1, 0
        for batch in walk(data, segment.header):
            if batch.position > until:
                break
            position, end = batch.position, batch.end
            if position >= start and not batch.flags & BARRIER:
                yield position, data[batch.payload_at : batch.payload_end]
        if position != until:
            raise Corrupt("no good batch where one was written", file=path, offset=end, position=position + 1)


def chain_at(disk: Disk, directory: str, segments: list[Segment], position: int) -> int:
    """Returns the chain after this position. Raises ValueError where the log does not hold it, OSError."""
    index = covering(segments, position + 1)
    if index >= 0:
        segment = segments[index]
        if segment.header.first_position == position + 1:
            return segment.header.prev_chain
        for batch in walk(read_file(disk, f"{directory}/{segment.name}"), segment.header):
            if batch.position == position:
                return batch.chain
    raise ValueError(f"position {position} is not in the log")
