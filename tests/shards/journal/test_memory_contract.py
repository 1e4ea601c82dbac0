"""The backend in memory keeps the contract of a journal, so the contract asks for nothing that only files have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shards.journal.contract import OWNER, JournalContract
from tests.shards.journal.contract_beside import BesideContract
from tests.shards.journal.contract_machine import RoomContract
from tests.shards.journal.contract_snapshots import SnapshotContract
from tests.shards.journal.journal_machine import START_NS
from tests.shards.journal.memory import GRANT_NS, Client, MemoryJournal, MemoryReader, MemoryServer


class InMemory:
    """A server of its own; a process that is killed just says no more."""

    can_lose_power = False

    def __init__(self, path: str) -> None:
        self.server = MemoryServer(path)
        self.path = path
        self.now_ns = START_NS

    def journal(self, sync: str = "always") -> MemoryJournal:
        return MemoryJournal(self.path, self.tick)

    def reader(self) -> MemoryReader:
        return MemoryReader(Client(self.path), 7)

    def tick(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def kill(self) -> None:
        """Nothing of a dead process matters to the server."""

    def lose_power(self) -> None:
        raise AssertionError("not here")

    def fill(self) -> None:
        self.server.memory.capacity_bytes = 0

    def free(self) -> None:
        self.server.memory.capacity_bytes = -1

    def step_clock(self, by_ns: int) -> None:
        self.now_ns += by_ns


class TestMemoryJournal(JournalContract, SnapshotContract, BesideContract, RoomContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[InMemory]:
        memory = InMemory(str(tmp_path / "m"))
        yield memory
        memory.server.close()

    def test_a_newer_owner_begins_where_the_grant_of_the_older_one_ends(self, backend: InMemory) -> None:
        older, newer = backend.journal(), backend.journal()
        assert older.open(7, OWNER).began_ns == older.granted_ns == 0
        older.append(b"x")
        assert older.granted_ns == backend.now_ns + GRANT_NS
        assert newer.open(7, OWNER).began_ns == older.granted_ns

    def test_a_clean_close_leaves_nobody_to_wait_for(self, backend: InMemory) -> None:
        older, newer = backend.journal(), backend.journal()
        older.open(7, OWNER)
        older.append(b"x")
        older.close()
        assert newer.open(7, OWNER).began_ns <= backend.now_ns + 1
