"""A crowd that comes back at once, as after a restart, is let into the kernel's queue before anybody accepts it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import time
from pathlib import Path
from typing import cast

import pytest
import trustme

from billing.api.auth import Guard
from billing.api.door import Door
from billing.api.listener import ACCEPTS_AT_ONCE, Listener, PlainEntrance
from billing.api.opening import Doors
from shards.system.host import BACKLOG, bind_tcp
from tests.api.outside import FakeGate

MAX_BACKLOG_AT = 28  # tcpi_sacked of a listening socket (Linux, tcp_get_info): the most that its queue takes


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


@pytest.mark.parametrize("listens", [True, False], ids=["listening", "bound"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["tcp", "http", "tarantool"])
async def test_the_queue_is_as_long_as_it_was_meant_to_be(kind: str, is_tls: bool, listens: bool) -> None:
    door = Door(FakeGate(), Guard(), time.monotonic_ns, dict)
    doors = Doors(door, server_context() if is_tls else None, time.time_ns, os.urandom)
    listener = bind_tcp("127.0.0.1", 0, BACKLOG if listens else 0)
    queue = listener.dup()
    doors.listen(kind, listener)
    (most,) = struct.unpack_from("I", queue.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), MAX_BACKLOG_AT)
    queue.close()
    await doors.stop_listening()
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert most == min(BACKLOG, somaxconn)


async def test_clients_are_connected_before_the_worker_has_a_turn() -> None:
    door = Door(FakeGate(), Guard(), time.monotonic_ns, dict)
    doors = Doors(door, None, time.time_ns, os.urandom)
    listener = bind_tcp("127.0.0.1", 0, 0)
    address = listener.getsockname()
    doors.listen("tcp", listener)
    crowd = [socket.create_connection(address, timeout=60) for _ in range(300)]  # the loop stands still meanwhile
    assert not door.connections
    async with asyncio.timeout(60):
        while len(door.connections) < len(crowd):
            await asyncio.sleep(0.005)
    for client in crowd:
        client.close()
    await doors.stop_listening()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_turn_of_the_loop_accepts_several(kind: str, data_dir: Path) -> None:
    door = Door(FakeGate(), Guard(), time.monotonic_ns, dict)
    doors = Doors(door, None, time.time_ns, os.urandom)
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(data_dir / "door"))
    else:
        listener = bind_tcp("127.0.0.1", 0, 0)
    address, family = listener.getsockname(), listener.family
    doors.listen(kind, listener)
    crowd = [socket.socket(family, socket.SOCK_STREAM) for _ in range(10 * ACCEPTS_AT_ONCE)]
    for client in crowd:
        client.connect(address)
    turns = 0
    async with asyncio.timeout(60):
        while len(door.connections) < len(crowd):
            turns += 1
            await asyncio.sleep(0)
    assert turns < len(crowd) / 2, "one a turn"
    for client in crowd:
        client.close()
    await doors.stop_listening()


async def test_replies_are_not_put_together_by_the_kernel() -> None:
    """Without TCP_NODELAY a reply may wait 40 ms for an acknowledgement."""
    transports = list[asyncio.Transport]()

    class Kept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(cast(asyncio.Transport, transport))

    listener = bind_tcp("127.0.0.1", 0, 0)
    address = listener.getsockname()
    entrance = PlainEntrance()
    listening = Listener(listener, entrance, Kept)
    with socket.create_connection(address, timeout=60):
        async with asyncio.timeout(60):
            while not transports:
                await asyncio.sleep(0.005)
        assert transports[0].get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transports[0].close()
    listening.close()
    entrance.close()


async def test_no_more_are_under_way_than_there_is_room_for_and_all_are_known_at_the_stop() -> None:
    door = Door(FakeGate(), Guard(), time.monotonic_ns, dict)
    doors = Doors(door, None, time.time_ns, os.urandom)
    crowd = list[socket.socket]()
    for kind in ("tcp", "direct", "tcp"):
        listener = bind_tcp("127.0.0.1", 0, 0)
        address = listener.getsockname()
        doors.listen(kind, listener)
        crowd += [socket.create_connection(address, timeout=60) for _ in range(2 * ACCEPTS_AT_ONCE)]
    before = len(os.listdir("/proc/self/fd"))
    async with asyncio.timeout(60):
        while not door.connections:
            assert len(os.listdir("/proc/self/fd")) < before + 2 * ACCEPTS_AT_ONCE, "each socket has its own"
            await asyncio.sleep(0)
    await doors.stop_listening()
    open_connections = len(door.connections)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(door.connections) == open_connections < len(crowd)
    door.close()
    for client in crowd:
        client.close()
