"""The file journal keeps the contract of a journal: on a simulated disk, and on the real one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.journal.file.journal import FileJournal
from shards.journal.file.reader import FileReader
from shards.system.disk import RealDisk
from tests.shards.journal.contract import JournalContract
from tests.shards.journal.contract_beside import BesideContract
from tests.shards.journal.contract_machine import PowerContract, RoomContract
from tests.shards.journal.contract_snapshots import SnapshotContract
from tests.shards.journal.journal_machine import DIRECTORY, SHARD, START_NS, JournalMachine, file_journal
from tests.simulation.disk import SimDisk


class SimulatedFiles:
    """The file journal on a simulated disk."""

    can_lose_power = True

    def __init__(self) -> None:
        self.machine = JournalMachine(segment_bytes=16_384)
        self.disks: list[SimDisk] = []

    def journal(self, sync: str = "always") -> FileJournal:
        journal = self.machine.journal(sync=sync)
        self.disks.append(self.machine.disk)
        return journal

    def reader(self) -> FileReader:
        return FileReader(self.machine.process(), DIRECTORY, SHARD)

    def kill(self) -> None:
        for disk in self.disks:
            disk.kill()

    def lose_power(self) -> None:
        self.machine.lose_power()

    def fill(self) -> None:
        self.machine.medium.capacity_bytes = self.machine.medium.used_bytes()

    def free(self) -> None:
        self.machine.medium.capacity_bytes = None

    def step_clock(self, by_ns: int) -> None:
        self.machine.now_ns += by_ns


class Process(RealDisk):
    """The files of one process, which may be killed: the handles it holds are closed by nobody but the kernel."""

    def __init__(self) -> None:
        self.handles: set[int] = set()

    def create(self, path: str) -> int:
        return self._held(super().create(path))

    def open(self, path: str, *, write: bool = False) -> int:
        return self._held(super().open(path, write=write))

    def lock(self, path: str) -> int:
        return self._held(super().lock(path))

    def close(self, handle: int) -> None:
        self.handles.remove(handle)
        super().close(handle)

    def kill(self) -> None:
        for handle in list(self.handles):
            self.close(handle)

    def _held(self, handle: int) -> int:
        self.handles.add(handle)
        return handle


class RealFiles:
    """The file journal on the disk of this machine."""

    can_lose_power = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rng = random.Random(1)
        self.now_ns = START_NS
        self.processes: list[Process] = []

    def journal(self, sync: str = "always") -> FileJournal:
        self.processes.append(Process())
        return file_journal(str(self.directory / "journal"), self.processes[-1], self.tick, self.rng, sync, 16_384)

    def reader(self) -> FileReader:
        return FileReader(RealDisk(), str(self.directory / "journal"), SHARD)

    def tick(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def lose_power(self) -> None:
        raise AssertionError("not here")

    fill = free = lose_power

    def step_clock(self, by_ns: int) -> None:
        self.now_ns += by_ns


class TestFileJournalOnASimulatedDisk(JournalContract, SnapshotContract, BesideContract, PowerContract, RoomContract):
    @pytest.fixture
    def backend(self) -> SimulatedFiles:
        return SimulatedFiles()


class TestFileJournalOnTheRealDisk(JournalContract, SnapshotContract, BesideContract):
    @pytest.fixture
    def backend(self, data_dir: Path) -> Iterator[RealFiles]:
        files = RealFiles(data_dir)
        yield files
        files.kill()
