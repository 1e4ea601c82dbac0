"""A host that serves beside others takes what is free, and lets go what another one has taken or wishes for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shards.control import ShardsChanged, Stop
from shards.supervisor.placement import Own
from shards.supervisor.settings import ShareSettings
from shards.supervisor.sharing import Sharing
from tests.shards.supervisor.hosts import HostRegistry, PartOf, part
from tests.shards.supervisor.supervisor_parts import SupervisorParts, until

__all__ = ["part"]

BESIDE = ShareSettings(2, "127.0.0.1:0", "host-a", "", None)
SECOND_NS = 1_000_000_000


class TwoHosts:
    """One host, which shares from here on, and another one that a test speaks for."""

    def __init__(self, host: HostRegistry, peer: HostRegistry) -> None:
        self.host = host
        self.other = peer
        self.parts = SupervisorParts(host.registry, host.log, {1, 2}, BESIDE)
        self.sharing: Sharing = self.parts.sharing(host.machine.host())
        self.running = asyncio.ensure_future(self.sharing.run())

    def owner_of(self, shard: int) -> Own:
        return self.host.registry.shares.owns[shard]

    async def has_both(self) -> None:
        """It takes one shard after the other, as time goes on."""
        await until(lambda: 1 in self.parts.workers)
        self.host.machine.boot_ns += 60 * SECOND_NS
        await until(lambda: len(self.parts.workers) == 2 and all(process.told for process in self.parts.started[:2]))
        for worker in self.parts.workers.values():
            self.parts.processes.set_state(worker, "serving")


@pytest.fixture
async def two_hosts(part: PartOf) -> AsyncIterator[TwoHosts]:
    hosts_made = TwoHosts(part("a").joined(), part("b").joined())
    await hosts_made.has_both()
    yield hosts_made
    hosts_made.running.cancel()
    await hosts_made.parts.close()


async def test_what_is_free_is_taken_and_others_hear_where_it_is_served(two_hosts: TwoHosts) -> None:
    parts = two_hosts.parts
    assert parts.owners is not None
    assert [two_hosts.owner_of(shard).node for shard in (1, 2)] == ["a", "a"]
    assert two_hosts.sharing.taken == 2
    assert not parts.registry.stands_by
    assert await parts.owners.confirm(1)
    await parts.owners.arrived(1, "0.0.0.0:7000", "host-a:7001")
    await two_hosts.other.registry.catch_up()
    own = two_hosts.other.registry.shares.owns[1]
    assert (own.links, own.direct, own.voice) == ("host-a:7000", "host-a:7001", (1, 1))


async def test_a_host_that_was_forgotten_and_lives_joins_again_and_keeps_its_shards(
    two_hosts: TwoHosts,
) -> None:
    peer = two_hosts.other.registry
    await peer.catch_up()
    await peer.record(["drained", "a", True], ["gone", "a"])
    assert [member.node for member in peer.shares.members.values()] == ["b"]
    assert peer.shares.is_used
    await until(lambda: two_hosts.host.registry.version > peer.version)
    await peer.catch_up()
    assert sorted(member.node for member in peer.shares.members.values()) == ["a", "b"]
    assert [peer.shares.owns[shard].node for shard in (1, 2)] == ["a", "a"]
    assert not peer.shares.drained
    assert two_hosts.sharing.lost == 0


async def test_what_another_host_has_taken_is_let_go_and_the_others_hear_where_it_is(two_hosts: TwoHosts) -> None:
    parts = two_hosts.parts
    await two_hosts.other.registry.catch_up()
    assert await two_hosts.other.take(2)
    await until(lambda: 2 not in parts.workers)
    assert two_hosts.sharing.lost == 1
    assert two_hosts.owner_of(2).node == "b", "it was not given to anybody else"
    remaining = next(process for process in parts.started if not process.heard(Stop))
    places = [["at", 2, two_hosts.other.registry.shares.owns[2].number, "host-b:7000", ""]]
    await two_hosts.other.registry.record(["life", 2, places[0][2], 1], *places)
    await until(lambda: remaining.heard(ShardsChanged) and 2 in remaining.heard(ShardsChanged)[-1].far)


async def test_a_shard_that_another_host_wishes_for_is_that_ones_once_its_worker_has_ended(two_hosts: TwoHosts) -> None:
    parts, peer_registry = two_hosts.parts, two_hosts.other.registry
    ending = next(process for process in parts.started if process.told and process.pid == parts.workers[2].pid)
    ending.is_deaf = True
    await peer_registry.catch_up()
    await peer_registry.record(["wish", 2, peer_registry.shares.owns[2].number, peer_registry.host_id])
    await until(lambda: ending.heard(Stop))
    assert two_hosts.owner_of(2).node == "a"
    ending.ends(0)
    await until(lambda: two_hosts.owner_of(2).node == "b")
    assert (two_hosts.sharing.handed_over, two_hosts.sharing.lost) == (1, 0)
    assert list(parts.workers) == [1]


async def test_a_host_that_stops_gives_each_shard_back_as_its_worker_ends(two_hosts: TwoHosts) -> None:
    parts = two_hosts.parts
    parts.stopping.set()
    late = next(process for process in parts.started if process.told and process.pid == parts.workers[2].pid)
    late.is_deaf = True
    giving = asyncio.ensure_future(two_hosts.sharing.give_back())
    ending = asyncio.ensure_future(parts.processes.stop())
    await until(lambda: two_hosts.owner_of(1).node == "")
    assert two_hosts.owner_of(2).wish == two_hosts.other.registry.host_id, "the heir looks out for it"
    assert two_hosts.owner_of(2).node == "a"
    late.ends(0)
    await asyncio.gather(giving, ending)
    assert two_hosts.owner_of(2).node == ""
