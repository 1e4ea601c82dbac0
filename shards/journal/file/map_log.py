"""The map's log in local files: a journal of shard 0, whose lock keeps every other supervisor away.

So no other supervisor can decide, and `decide` raises Overtaken only where its caller names an outdated version.
"""

from __future__ import annotations

from collections.abc import Callable

from shards.journal import Overtaken
from shards.journal.file.journal import FileJournal

MAP = 0  # the number of the map's journal; shards have numbers from 1


class FileMapLog:
    """Implements `shards.journal.MapLog`."""

    def __init__(self, journal: FileJournal) -> None:
        self._journal = journal
        self._is_open = False

    @property
    def version(self) -> int:
        return self._journal.head

    @property
    def warnings(self) -> list[str]:
        return self._journal.warnings

    def is_newest(self) -> bool:
        return True  # nobody else can decide while this log is open

    def load(self, owner: str) -> tuple[int, list[bytes]]:
        journal = self._journal
        if not self._is_open:
            journal.open(MAP, owner)
            self._is_open = True
        payloads: list[bytes] = []
        start = 1
        snapshot = journal.load_snapshot()
        if snapshot is not None:
            start = snapshot.position + 1
            payloads.append(b"".join(snapshot.chunks))
        payloads += [payload for _, payload in journal.replay(start)]
        return journal.head, payloads

    def follow(self, callback: Callable[[int, bytes], None]) -> None:
        """Never calls `callback`: nobody else can decide while this log is open."""

    def decide(self, version: int, payload: bytes) -> int:
        if version != self._journal.head:
            raise Overtaken(self._journal.head)
        return self._journal.append(payload)

    def compact(self, version: int, payload: bytes) -> None:
        self._journal.save_snapshot(version, [payload])
        self._journal.trim(version)

    def close(self) -> None:
        self._journal.close()
        self._is_open = False
