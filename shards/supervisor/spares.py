"""Worker processes that are started ahead of time, on a host that stands by: a takeover finds them loaded.

A started worker does nothing before it is told its shard and its map; so one that was started for a shard is as good as
one that is started now, only half a second earlier. `spawn` stands in for `shards.system.host.spawn`: it hands out the
spare that was started by the same command with the same sockets, or starts a process. One that ends while it waits is
thrown away, and nothing is said: the next start says what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from shards.system.host import Child, Spawn

END_TIMEOUT_S = 5.0


Spawned = tuple[Child, socket.socket]


def _key(command: list[str], inherited: list[socket.socket]) -> tuple[str, ...]:
    return (*command, *(str(listener.fileno()) for listener in inherited))


class Spares:
    """Worker processes that one supervisor has started and not given a shard yet."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._starting: dict[tuple[str, ...], asyncio.Task[Spawned]] = {}  # also those that have been started
        self._waits: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._starting)

    async def prepare(self, command: list[str], inherited: list[socket.socket]) -> None:
        """Starts a process, unless there is one. OSError: it cannot be started."""
        key, loop = _key(command, inherited), asyncio.get_running_loop()
        if key in self._starting:
            return
        starting = self._starting[key] = loop.create_task(self._started(command, inherited))
        try:
            child, _ = await starting
        except OSError:
            self._starting.pop(key, None)
            raise
        wait = loop.create_task(self._until_end(key, starting, child))
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    async def _started(self, command: list[str], inherited: list[socket.socket]) -> Spawned:
        return await self._spawn(command, inherited)

    async def _until_end(self, key: tuple[str, ...], started: asyncio.Task[Spawned], child: Child) -> None:
        await child.wait()
        if self._starting.get(key) is started:
            del self._starting[key]
            started.result()[1].close()

    async def spawn(self, command: list[str], inherited: list[socket.socket]) -> Spawned:
        """As `shards.system.host.spawn`; hands out a prepared process where there is one."""
        starting = self._starting.pop(_key(command, inherited), None)
        return await (self._spawn(command, inherited) if starting is None else starting)

    async def close(self) -> None:
        """Ends the processes that were not needed."""
        unused = list(self._starting.values())
        self._starting.clear()
        for starting in unused:
            with contextlib.suppress(OSError, ProcessLookupError):
                child, channel = await starting
                channel.close()
                child.terminate()
        if self._waits and unused:
            await asyncio.wait(self._waits, timeout=END_TIMEOUT_S)
        for wait in self._waits:
            wait.cancel()
