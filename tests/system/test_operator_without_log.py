"""A log on servers without a majority: an operator's orders that need the map say why nothing comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from billing.cli.calling import Target
from billing.client.client import TIMEOUT_S
from shards.journal.jetstream.publisher import DOUBT_S
from shards.supervisor.operator_api import ORDER_LOOK_S, ORDER_S
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import SHARDS, daemon_on
from tests.system.rpc import Rpc
from tests.system.two_hosts import both_serve, two_hosts

WHY = "cannot be written: "  # of the map; what its log says, or that it is silent, stands behind that

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@contextmanager
def no_majority(servers: NatsCluster) -> Iterator[None]:
    """Two of the three servers are gone."""
    for number in (0, 1):
        servers.kill(number)
    try:
        yield
    finally:
        for number in (0, 1):
            servers.start_server(number)
        servers.wait_ready()


async def refusals(daemon: Daemon) -> list[str]:
    """What each order is refused with."""
    orders: list[tuple[str, list[int]]] = [("pin_bucket", [2]), ("move_bucket", [1, 2]), ("rebalance", [])]
    rpcs = [await Rpc.connect(daemon.rpc_port) for _ in orders]
    replies = await asyncio.gather(*(rpc.call(name, *fields) for rpc, (name, fields) in zip(rpcs, orders, strict=True)))
    for rpc in rpcs:
        rpc.close()
    return [str(error) for error, _ in replies]


def test_a_reason_comes_before_clients_give_up_and_before_a_host_does_that_is_in_doubt_about_its_record() -> None:
    assert min(Target("", "").timeout_s, TIMEOUT_S, DOUBT_S) > ORDER_S + ORDER_LOOK_S


async def test_orders_say_that_the_log_is_out_of_reach(servers: NatsCluster, data_dir: Path) -> None:
    servers.make_all(SHARDS)
    daemon = daemon_on(servers, data_dir / "host")
    with killed_in_the_end(daemon):
        daemon.start()
        with no_majority(servers):
            for refusal in await refusals(daemon):
                assert WHY in refusal, refusal


async def test_orders_say_so_at_one_of_two_hosts_that_serve_at_once(servers: NatsCluster, data_dir: Path) -> None:
    hosts = await two_hosts(servers, data_dir, SHARDS)
    with killed_in_the_end(*hosts):
        await both_serve(hosts)
        with no_majority(servers):
            for refusal in (await refusals(hosts[1]))[::2]:  # of the move, it may be that the other host is away
                assert WHY in refusal, refusal
