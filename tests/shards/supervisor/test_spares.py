"""Workers that were started ahead of time are handed out once, to whoever starts the same with the same sockets."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator

import pytest

from shards.supervisor.spares import Spares
from shards.system.host import Child, spawn

# Says who it is as soon as it is told anything, and ends when its channel closes.
PROGRAM = """
import os, socket, sys
channel = socket.socket(fileno=int(sys.argv[-1]))
if channel.recv(1):
    channel.send(b"%d" % os.getpid())
"""
COMMAND = [sys.executable, "-c", PROGRAM]


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    yield sockets
    for listener in sockets:
        listener.close()


async def said_by(child: Child, channel: socket.socket) -> int:
    """The pid that the process tells."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(channel, b"?")
    pid = int(await loop.sock_recv(channel, 100))
    channel.close()
    await child.wait()
    return pid


async def test_what_was_started_ahead_is_handed_out_once(listeners: list[socket.socket]) -> None:
    spares = Spares(spawn)
    await spares.prepare(COMMAND, listeners)
    await spares.prepare(COMMAND, listeners)
    assert len(spares) == 1
    first, second = [await spares.spawn(COMMAND, listeners) for _ in range(2)]
    assert len(spares) == 0
    assert await said_by(*first) == first[0].pid != await said_by(*second)
    await spares.close()


async def test_one_with_other_sockets_is_another(listeners: list[socket.socket]) -> None:
    spares = Spares(spawn)
    await spares.prepare(COMMAND, listeners)
    child, channel = await spares.spawn(COMMAND, listeners[:1])
    assert len(spares) == 1
    await said_by(child, channel)
    await spares.close()
    assert len(spares) == 0


async def test_one_that_is_being_started_is_waited_for(listeners: list[socket.socket]) -> None:
    gate, started = asyncio.Event(), 0

    async def slowly(command: list[str], inherited: list[socket.socket]) -> tuple[Child, socket.socket]:
        nonlocal started
        started += 1
        await gate.wait()
        return await spawn(command, inherited)

    spares = Spares(slowly)
    preparing = asyncio.create_task(spares.prepare(COMMAND, listeners))
    while not started:
        await asyncio.sleep(0)
    taking = asyncio.create_task(spares.spawn(COMMAND, listeners))
    await asyncio.sleep(0)
    gate.set()
    child, channel = await taking
    await preparing
    assert started == 1
    assert await said_by(child, channel) == child.pid
    await spares.close()


async def test_one_that_died_while_it_waited_is_replaced_by_a_start(listeners: list[socket.socket]) -> None:
    children: list[Child] = []

    async def noted(command: list[str], inherited: list[socket.socket]) -> tuple[Child, socket.socket]:
        child, channel = await spawn(command, inherited)
        children.append(child)
        return child, channel

    spares = Spares(noted)
    await spares.prepare(COMMAND, listeners)
    children[0].kill()
    while len(spares):
        await asyncio.sleep(0.01)
    child, channel = await spares.spawn(COMMAND, listeners)
    assert child is children[1]
    assert await said_by(child, channel) == child.pid
    await spares.close()


async def test_a_start_that_fails_is_told_and_nothing_is_left(listeners: list[socket.socket]) -> None:
    spares = Spares(spawn)
    with pytest.raises(OSError, match="no-such-program"):
        await spares.prepare(["/no-such-program"], listeners)
    assert len(spares) == 0
    await spares.close()
