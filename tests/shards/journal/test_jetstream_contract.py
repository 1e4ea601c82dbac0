"""The journal in JetStream keeps the contract of a journal, on three real servers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from shards.journal import Fenced, Opened
from shards.journal.jetstream.journal import JetStreamJournal, Terms
from shards.journal.jetstream.reader import JetStreamReader
from shards.journal.jetstream.witness import Witness
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk
from tests.shards.journal.contract import Backend, JournalContract
from tests.shards.journal.contract_beside import BesideContract
from tests.shards.journal.contract_machine import RoomContract
from tests.shards.journal.contract_snapshots import SnapshotContract
from tests.shards.journal.journal_machine import SHARD, START_NS
from tests.shards.journal.nats_cluster import NatsCluster

GRANT_NS = 200_000_000


class PatientJournal(JetStreamJournal):
    """Waits at `open` until the killed owner's grant is over, as a worker does."""

    waits = False

    def open(self, shard: int, owner: str) -> Opened:
        while True:
            try:
                return super().open(shard, owner)
            except Fenced:
                if not self.waits:
                    raise
                time.sleep(0.01)


class OnServers:
    """Journals of shard 7 on a cluster; a process that is killed just says no more."""

    can_lose_power = False

    def __init__(self, cluster: NatsCluster) -> None:
        self.cluster = cluster
        self.now_ns = START_NS
        self.killed = False
        self.journals: list[JetStreamJournal] = []

    def journal(self, sync: str = "always") -> JetStreamJournal:
        terms, witness = Terms(GRANT_NS, 0), Witness(RealDisk(), "", MACHINE_CLOCKS.boot_ns)
        journal = PatientJournal(self.cluster.connect, SHARD, terms, witness, self.tick, MACHINE_CLOCKS.boot_ns)
        journal.waits = self.killed
        self.journals.append(journal)
        return journal

    def reader(self) -> JetStreamReader:
        return JetStreamReader(self.cluster.connect(), SHARD, MACHINE_CLOCKS.boot_ns)

    def tick(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def kill(self) -> None:
        self.killed = True

    def lose_power(self) -> None:
        raise AssertionError("not here")

    def fill(self) -> None:
        for name in (f"J_{SHARD}", f"S_{SHARD}"):
            self.cluster.limit(name, self.cluster.ask(f"STREAM.INFO.{name}")["state"]["bytes"] + 1000)

    def free(self) -> None:
        for name in (f"J_{SHARD}", f"S_{SHARD}"):
            self.cluster.limit(name, -1)

    def step_clock(self, by_ns: int) -> None:
        self.now_ns += by_ns

    def close(self) -> None:
        for journal in self.journals:
            for connection in journal._connections:
                connection.close()


class TestJetStreamJournal(JournalContract, SnapshotContract, BesideContract, RoomContract):
    @pytest.fixture
    def backend(self, cluster: NatsCluster) -> Iterator[OnServers]:
        cluster.make(SHARD)
        servers = OnServers(cluster)
        yield servers
        servers.close()

    @pytest.mark.parametrize("seed", range(4))  # each call waits for a majority; the other backends have all seeds
    def test_any_order_of_calls_ends_and_starts_keeps_what_was_answered(self, backend: Backend, seed: int) -> None:
        super().test_any_order_of_calls_ends_and_starts_keeps_what_was_answered(backend, seed)

    def test_a_grant_is_counted_from_the_clock_and_not_from_time_that_stands_still(self, backend: OnServers) -> None:
        """Billing time stands behind a host whose clock is ahead, until this host's clock has come as far."""
        ahead_ns = 10 * GRANT_NS
        terms, witness = Terms(GRANT_NS, 0), Witness(RealDisk(), "", MACHINE_CLOCKS.boot_ns)
        journal = JetStreamJournal(
            backend.cluster.connect, SHARD, terms, witness, backend.tick, MACHINE_CLOCKS.boot_ns,
            line_ns=lambda: backend.now_ns - ahead_ns,
        )  # fmt: skip
        backend.journals.append(journal)
        journal.open(SHARD, "behind")
        began_ns = journal.granted_ns
        journal.append(b"while time stands")
        assert journal.granted_ns == max(began_ns, backend.now_ns - ahead_ns + GRANT_NS)
        backend.now_ns += began_ns + ahead_ns
        journal.append(b"the clock has come as far")
        assert began_ns < journal.granted_ns <= backend.now_ns - ahead_ns + GRANT_NS
        journal.close()
