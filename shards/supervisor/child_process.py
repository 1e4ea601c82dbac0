"""Keeps one worker process alive: starts it, hears it out, and starts it again when it ends.

`shards.supervisor.restart_policy` decides when it is started again and when no longer. The other workers serve on
meanwhile; whoever gets a request for a bucket of a worker that is down answers UNAVAILABLE at once.

A process that comes up after its end was ordered (the daemon stops, or its shard is retired) hears of it first of all:
the order went only to the processes that were there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from shards import control
from shards.exits import Exit, text_of
from shards.supervisor.restart_policy import HELD_AT_ONCE, RestartPolicy
from shards.system.host import Child, Spawn
from shards.system.links import Wire

log = logging.getLogger("shards.supervisor.supervisor")


class WorkerState:
    """What the supervisor knows of one worker."""

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.label = f"shard={shard_id}"  # read by people, in a list of processes
        self.state = "starting"  # starting | waiting | recovering | recovered | serving | down | held
        self.reason = ""
        self.unstarted = ""  # why no process could be started for it; "" where one was
        self.pid = 0
        self.wire: Wire | None = None
        self.process: Child | None = None
        self.starts = 0
        self.restarts = RestartPolicy()
        self.exit_code = 0  # that it is held for
        self.serving_since_ns = 0
        self.last_instant_ns = 0
        self.progress, self.progress_told_ns = (0, 0), 0
        self.figures: dict[str, Any] = {}
        self.direct: socket.socket | None = None
        self.task: asyncio.Task[None] | None = None
        self.retired = False
        self.is_confirmed = False  # where several hosts serve at once: the map says that this life is the newest
        self.again = asyncio.Event()  # one that is held is to be tried now

    def goes_on(self) -> bool:
        """Whether the worker is started again when its process ends."""
        return not self.retired

    @property
    def is_late(self) -> bool:
        """Whether nothing should wait for this worker: it is held, has no room to start, or has failed more
        than once.
        """
        return self.state in ("held", "waiting") or self.restarts.in_a_row > 1


UNSTARTED_EVERY_NS = 60_000_000_000  # that nothing can be started is logged anew, for one reason
LAST_WORDS_S = 2.0  # its end of the wire closes with it, unless a process that it started holds it, too


class SupervisorPort(NamedTuple):
    """What `keep` needs of the supervisor."""

    spawn: Spawn
    boot_ns: Callable[[], int]
    command: list[str]
    listeners: list[tuple[str, socket.socket]]
    begin: Callable[[WorkerState, list[tuple[str, socket.socket]]], Coroutine[Any, Any, None]]  # the first message
    on_message: Callable[[WorkerState, control.ToSupervisor], None]
    on_event: Callable[[WorkerState, str], Coroutine[Any, Any, None]]  # "down", "held"
    stopping: asyncio.Event


def inherited_by(port: SupervisorPort, direct: socket.socket | None) -> list[tuple[str, socket.socket]]:
    """The sockets on which a worker is to listen. `direct`: the one that is its shard's alone, if any."""
    return [*port.listeners, *([("direct", direct)] if direct is not None else [])]


def start_of(port: SupervisorPort, label: str, direct: socket.socket | None) -> tuple[list[str], list[socket.socket]]:
    """The command that starts a worker, and the sockets that it inherits."""
    command = [*port.command, label]
    return command, [listener for _, listener in inherited_by(port, direct)]


async def keep(worker: WorkerState, port: SupervisorPort) -> None:
    """Starts one worker again and again, until the daemon stops or the worker is retired."""
    told, told_ns = "", 0  # why no process could be started, as it was logged last
    while not port.stopping.is_set() and worker.goes_on():
        code = await _run_once(worker, port)
        served_ns = port.boot_ns() - worker.serving_since_ns if worker.serving_since_ns else 0
        worker.serving_since_ns = 0
        if worker.retired:
            await port.on_event(worker, "down")
        if port.stopping.is_set() or worker.retired:
            return
        delay_s = worker.restarts.after(code, served_ns)
        if delay_s is None:
            await _hold(worker, port, code)
            continue
        worker.state = "down"
        worker.reason = f"{worker.reason or f'ended with {code}'}, restarted in {delay_s:g} s"
        if not worker.unstarted:
            log.error("the worker of shard %d ended with %d; restarted in %g s", worker.shard_id, code, delay_s)
        elif worker.unstarted != told or port.boot_ns() - told_ns > UNSTARTED_EVERY_NS:
            told_ns = port.boot_ns()
            log.error(
                "the worker of shard %d cannot be started, and is tried again: %s", worker.shard_id, worker.unstarted
            )
        told = worker.unstarted
        await port.on_event(worker, "down")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(port.stopping.wait(), delay_s or 0.001)


async def _hold(worker: WorkerState, port: SupervisorPort, code: int) -> None:
    """Starts the worker no more until it is to be tried again, by an operator's request or by itself."""
    worker.exit_code = code if code in (*HELD_AT_ONCE, Exit.AGAIN) else Exit.BUG
    worker.state = "held"
    worker.reason = worker.reason or f"ended with {code}"
    if code not in HELD_AT_ONCE:
        worker.reason = f"it ended {worker.restarts.in_a_row} times in a row, last: {worker.reason}"
    delay_s = worker.restarts.held_for(code)
    if delay_s is None:
        log.error("shard %d is held until a reload or a restart: %s", worker.shard_id, worker.reason)
    else:
        log.error("shard %d is held and tried again in %g s: %s", worker.shard_id, delay_s, worker.reason)
    worker.again.clear()
    await port.on_event(worker, "held")
    loop = asyncio.get_running_loop()
    waits = [loop.create_task(event.wait()) for event in (port.stopping, worker.again)]
    try:
        await asyncio.wait(waits, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if worker.again.is_set():
        worker.restarts.forget()
    if not port.stopping.is_set():
        worker.state, worker.exit_code = "starting", 0
        await port.on_event(worker, "tried")


async def _run_once(worker: WorkerState, port: SupervisorPort) -> int:
    loop = asyncio.get_running_loop()
    inherited = inherited_by(port, worker.direct)
    worker.starts += 1
    worker.reason = worker.unstarted = ""
    worker.progress = (0, 0)
    try:
        process, channel = await port.spawn(*start_of(port, worker.label, worker.direct))
    except OSError as error:
        worker.unstarted = text_of(error)
        worker.reason = f"cannot be started: {worker.unstarted}"
        return Exit.AGAIN
    worker.process = process
    worker.pid = process.pid
    said_all = asyncio.Event()
    _, wire = await loop.create_connection(
        lambda: Wire(
            lambda _, message: port.on_message(worker, message),
            lambda _: said_all.set(),
            lambda _: None,
            control.to_supervisor,
        ),
        sock=channel,
    )
    worker.wire = wire
    worker.state = "recovering"
    if port.stopping.is_set() or worker.retired:
        wire.send(control.Stop())
        terminate(worker)
    else:
        await port.begin(worker, inherited)
    code = await process.wait()
    with contextlib.suppress(asyncio.TimeoutError):  # its last message, the reason, may still be in the socket
        await asyncio.wait_for(said_all.wait(), LAST_WORDS_S)
    wire.close()
    worker.wire = None
    worker.pid = 0
    return code


def terminate(worker: WorkerState) -> None:
    """Ends a process that has not begun to serve, even one that is still being loaded and does not read its wire."""
    if worker.process is not None and worker.pid:
        with contextlib.suppress(ProcessLookupError):
            worker.process.terminate()
