"""The parts of a supervisor, each as it is, over a real map and over processes that do what a test says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from shards.control import (
    Message,
    Obstacle,
    ReadObstacle,
    Recovered,
    Stop,
    ToSupervisor,
    ToWorker,
    WorkerSettings,
    to_worker,
)
from shards.journal import Backend
from shards.moves.mover import Mover
from shards.supervisor.admission import Admission
from shards.supervisor.background import Background
from shards.supervisor.billing_time import BillingTime
from shards.supervisor.briefing import Briefing
from shards.supervisor.child_process import SupervisorPort, WorkerState
from shards.supervisor.owners import Owners
from shards.supervisor.registry import Registry
from shards.supervisor.retirement import Retirement
from shards.supervisor.settings import ShareSettings, SupervisorSettings
from shards.supervisor.sharing import Sharing
from shards.supervisor.worker_figures import WorkerFigures
from shards.supervisor.worker_processes import WorkerProcesses
from shards.system.host import REAL, Child, Host
from shards.system.links import Wire

T = TypeVar("T", bound=Message)


class ScriptedProcess:
    """As `shards.system.host.Child`: hears what it is told, says what stands against its end, and ends when told to."""

    def __init__(self, number: int, command: list[str]) -> None:
        self.pid = number
        self.command = command
        self.told: list[ToWorker] = []
        self.is_deaf = False  # it does not end when told to
        self.obstacle = ""
        self.is_gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._wire: Wire | None = None

    async def listen(self, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        wire = Wire(lambda _, message: self._hear(message), lambda _: None, lambda _: None, to_worker)
        await loop.create_connection(lambda: wire, sock=channel)
        self._wire = wire

    def _hear(self, message: ToWorker) -> None:
        self.told.append(message)
        if isinstance(message, ReadObstacle):
            self.say(Obstacle(message.number, self.obstacle))
        elif isinstance(message, Stop) and not self.is_deaf:
            self.ends(0)

    def say(self, message: ToSupervisor) -> None:
        assert self._wire is not None
        self._wire.send(message)

    def heard(self, kind: type[T]) -> list[T]:
        return [message for message in self.told if isinstance(message, kind)]

    def ends(self, code: int) -> None:
        if not self.is_gone.done():
            self.is_gone.set_result(code)
            assert self._wire is not None
            self._wire.close()

    async def wait(self) -> int:
        return await asyncio.shield(self.is_gone)

    def terminate(self) -> None:
        self.ends(-15)

    def kill(self) -> None:
        self.ends(-9)


class SupervisorParts:
    """Of one supervisor, of which nothing else is there."""

    def __init__(self, registry: Registry, log: Backend, wanted: set[int], share: ShareSettings | None = None) -> None:
        self.started: list[ScriptedProcess] = []
        self.failures: list[BaseException] = []
        self.said: list[tuple[int, ToSupervisor]] = []
        self.events: list[tuple[int, str]] = []
        self.looks = 0
        self.unstartable: OSError | None = None  # raised in the place of a start
        self.refused_starts = 0
        self.stopping = asyncio.Event()
        self.registry = registry
        self.background = Background(self.failures.append)
        hears = self._begin, self._on_message, self._on_event
        self.port = port = SupervisorPort(self._spawn, REAL.clocks.boot_ns, ["worker"], [], *hears, self.stopping)
        self.processes = WorkerProcesses(port, self.background, "")
        self.workers = self.processes.by_shard
        weights = dict.fromkeys(wanted, 1)
        settings = SupervisorSettings("", weights, 4, 0, {}, WorkerSettings(0.05, 1 << 20), "", share=share)
        self.owners = None if share is None else Owners(registry, self.workers, share, self.stopping)
        self.briefing = Briefing(settings, b"", log, registry, self.processes, self.owners)
        self.mover = Mover(registry, self.workers, settings.moves, REAL.clocks.boot_ns)
        self.worker_figures = WorkerFigures()
        self.time = BillingTime(REAL, 500, 0)
        of_workers = registry, self.processes, self.briefing
        self.admission = Admission(*of_workers, self.time, self.mover, self.owners, self.background)
        self.retirement = Retirement(*of_workers, self.mover, self.worker_figures, self.background, self.stopping)

    def sharing(self, host: Host) -> Sharing:
        assert self.owners is not None
        hooks = self._looked, self.background, self.stopping, host.clocks.boot_ns
        return Sharing(self.registry, self.owners, self.processes, self.briefing, *hooks)

    async def _looked(self) -> None:
        self.looks += 1

    async def _spawn(self, command: list[str], inherited: list[socket.socket]) -> tuple[Child, socket.socket]:
        if self.unstartable is not None:
            self.refused_starts += 1
            raise self.unstartable
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        process = ScriptedProcess(len(self.started) + 1, command)
        self.started.append(process)  # before anything is awaited: two that start together have two numbers
        await process.listen(far)
        return process, near

    async def _begin(self, worker: WorkerState, inherited: list[tuple[str, socket.socket]]) -> None:
        await self.admission.begin(worker, inherited)

    def _on_message(self, worker: WorkerState, message: ToSupervisor) -> None:
        self.said.append((worker.shard_id, message))
        if isinstance(message, Obstacle):
            self.worker_figures.on_reply(message)
        elif isinstance(message, Recovered):
            self.admission.on_recovered(worker, message)

    async def _on_event(self, worker: WorkerState, event: str) -> None:
        self.events.append((worker.shard_id, event))

    async def serving(self, *shard_ids: int) -> list[ScriptedProcess]:
        """Starts workers, of which it is said that they serve."""
        self.processes.start(dict.fromkeys(shard_ids))
        await until(lambda: len(self.started) >= len(shard_ids) and all(process.told for process in self.started))
        for shard_id in shard_ids:
            self.processes.set_state(self.workers[shard_id], "serving")
        return self.started[-len(shard_ids) :]

    async def close(self) -> None:
        self.stopping.set()
        for process in self.started:
            process.is_deaf = False
        await self.processes.stop()
        self.background.cancel()
        await self.processes.close()
        for process in self.started:
            process.kill()
        assert self.failures == []


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.001)
