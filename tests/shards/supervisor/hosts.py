"""Hosts that share one log in memory: the registry of each, on clocks that a test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shards.journal import LastSign
from shards.supervisor.registry import Registry
from shards.system.clock import Clocks
from shards.system.host import REAL, Host
from shards.system.serial_executor import SerialExecutor
from tests.shards.journal.memory import MemoryBackend, MemoryServer

BUCKETS, WANTED, GRANT_NS, SECOND = 4, {1: 1, 2: 1}, 2_000_000_000, 1_000_000_000
WALL_NS = 1_727_000_000_000_000_000


class Machine:
    """The clocks of a host."""

    def __init__(self) -> None:
        self.boot_ns = SECOND

    def host(self) -> Host:
        clocks = Clocks(lambda: self.boot_ns, lambda: WALL_NS + self.boot_ns)
        return REAL._replace(clocks=clocks)


class SharedLog(MemoryBackend):
    """The log in memory as hosts share it; the shards' journals are silent, or move with every look."""

    grant_ns = GRANT_NS

    def __init__(self, path: str, node: str) -> None:
        super().__init__(path)
        self.node = node
        self.is_moving = False
        self.refusal: Exception | None = None  # what `prepare` raises
        self._sequence = 0

    def prepare(self) -> list[str]:
        if self.refusal is not None:
            raise self.refusal
        return super().prepare()

    def signs(self) -> dict[int, LastSign]:
        self._sequence += self.is_moving
        return {shard: LastSign(self._sequence, False, 1) for shard in WANTED}


class HostRegistry:
    """One host: its registry, over the log that it shares with the others."""

    def __init__(self, directory: Path, server: str, node: str, workers: int) -> None:
        self.assigned: list[tuple[int, int, int]] = []  # what it was told that others have decided
        self.machine = Machine()
        self.log = SharedLog(server, node)
        directory.mkdir(mode=0o700)
        host = self.machine.host()
        self.registry = Registry(str(directory), host, self.log, lambda: 0, 0, workers, self.assigned.extend)
        self.executor = SerialExecutor(node, asyncio.get_running_loop())
        self.registry.use(self.executor)

    def joined(self) -> HostRegistry:
        self.registry.open(BUCKETS, WANTED)
        return self

    async def take(self, shard: int) -> bool:
        """By what is known here: False where another was faster."""
        registry = self.registry
        own_before = registry.shares.owns.get(shard)

        def records() -> list[list[Any]]:
            shares = registry.shares
            is_newest = shares.owns.get(shard) == own_before
            return [shares.next_own(shard, self.log.node, registry.host_id)] if is_newest else []

        return await registry.record_if(records)

    def close(self) -> None:
        self.executor.close()
        self.registry.close()


PartOf = Callable[..., HostRegistry]


@pytest.fixture
async def part(data_dir: Path) -> AsyncIterator[PartOf]:
    server = MemoryServer(str(data_dir / "log"))
    parts: list[HostRegistry] = []

    def new(node: str, workers: int = 2) -> HostRegistry:
        parts.append(HostRegistry(data_dir / f"{node}-{len(parts)}", str(data_dir / "log"), node, workers))
        return parts[-1]

    yield new
    for part_made in parts:
        part_made.close()
    server.close()
