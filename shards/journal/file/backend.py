"""The backend of local files: below one directory, `shard-1`, `shard-2` … hold the shards' journals, and `map` the map.

Settings: `directory`, which must exist; `sync`, `sync_interval_ns` and `segment_bytes` as `FileSettings` has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shards.journal import Backend, Journal, LastSign, MapLog, Reader
from shards.journal.backends import check_kind
from shards.journal.file.journal import FileJournal, FileSettings
from shards.journal.file.map_log import FileMapLog
from shards.journal.file.reader import FileReader
from shards.journal.file.recovery import PREFIX as SEGMENT
from shards.system.host import Host

MAP_SEGMENT_BYTES = 1024 * 1024


class FileBackend:
    """Implements `shards.journal.Backend`."""

    def __init__(self, settings: dict[str, Any], host: Host) -> None:
        self._directory = settings["directory"]
        self._settings = settings
        self._host = host

    node, cluster, grant_ns = "", "", 0  # a directory belongs to one host

    def signs(self) -> dict[int, LastSign]:
        return {}

    def settings_of_worker(self) -> dict[str, Any]:
        return self._settings

    def journal(self, shard: int, now_ns: Callable[[], int], line_ns: Callable[[], int] | None = None) -> Journal:
        return self._journal(shard, now_ns, self._settings["sync"], self._settings["segment_bytes"])

    def map_log(self, now_ns: Callable[[], int]) -> MapLog:
        return FileMapLog(self._journal(0, now_ns, "always", MAP_SEGMENT_BYTES))

    def reader(self, shard: int) -> Reader:
        return FileReader(self._host.disk, self._directory_of(shard), shard)

    def holds(self, shard: int) -> bool:
        disk, directory = self._host.disk, self._directory_of(shard)
        return disk.exists(directory) and any(name.startswith(SEGMENT) for name in disk.listdir(directory))

    def prepare(self) -> list[str]:
        check_kind("file", self._directory, self._host.disk)
        return []  # `FileJournal.open` checks each directory when it takes its lock

    def _directory_of(self, shard: int) -> str:
        return f"{self._directory}/{f'shard-{shard}' if shard else 'map'}"

    def _journal(self, shard: int, now_ns: Callable[[], int], sync: str, segment_bytes: int) -> FileJournal:
        host = self._host
        settings = FileSettings(sync, self._settings["sync_interval_ns"], segment_bytes, ballast_bytes=segment_bytes)
        return FileJournal(
            self._directory_of(shard), host.disk, settings, now_ns=now_ns, salt=lambda: host.randbits(64)
        )


def backend(settings: dict[str, Any], host: Host) -> Backend:
    """Returns the backend, for `shards.journal.backends`."""
    return FileBackend(settings, host)
