"""The worker processes of this host, by shard: loaded ahead of time, started, told, and ended.

    prepare        a process is loaded for a shard of this host, while another host serves
    prepare_next   likewise for whichever shard this host takes next, where several hosts serve at once
    start          a process becomes a shard's worker, and is kept alive (`shards.supervisor.child_process`)
    end            one worker ends, since another host is to serve its shard
    dismiss        one worker ends, since its shard is no more
    stop           all of them end, with the daemon

Nobody else adds to `by_shard` or takes from it. What a worker is told, and what follows from its words, is decided
elsewhere: by whoever calls `tell`, and by those whom the `SupervisorPort` names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable

from shards.control import Held, Serving, Stop, ToWorker
from shards.exits import text_of
from shards.supervisor.background import Background
from shards.supervisor.child_process import SupervisorPort, WorkerState, keep, start_of, terminate
from shards.supervisor.spares import Spares
from shards.system.host import SharedSocket, listen_on

log = logging.getLogger("shards.supervisor.supervisor")

STOP_TIMEOUT_S = 60.0

Ports = dict[int, socket.socket | None]  # that are a shard's alone, by shard; None: it has none


class WorkerProcesses:
    """The worker processes of one supervisor."""

    def __init__(self, port: SupervisorPort, background: Background, direct_host: str) -> None:
        """`direct_host`: host of the port that each worker has for itself; "" for none."""
        self.by_shard: dict[int, WorkerState] = {}
        self._spares = Spares(port.spawn)
        self._port = port._replace(spawn=self._spares.spawn)
        self._background = background
        self._direct_host = direct_host
        self._ahead: Ports = {}  # of shards that processes were loaded for, and that are not served yet
        self._ready: list[tuple[str, socket.socket | None]] = []  # labels and ports of the next shards' workers
        self._labels = 0
        self._turned_away_at: set[socket.socket] = set()  # listeners whose clients are not to wait
        self._changed = asyncio.Event()

    # -- what is known of them ----------------------------------------------------------------------------------------

    async def wait_changed(self) -> None:
        """Returns when some worker's state has changed."""
        self._changed.clear()
        await self._changed.wait()

    def note_change(self) -> None:
        """Wakes everything that waits for a change of some worker's state."""
        self._changed.set()

    def set_state(self, worker: WorkerState, state: str, reason: str = "") -> None:
        """Sets a worker's state, one of those of `WorkerState.state`, and the reason for it."""
        worker.state = state
        worker.reason = reason
        self._changed.set()

    def serves(self, worker: WorkerState, serving: Serving) -> None:
        """A worker has begun to serve: tells it which other shards are held."""
        worker.serving_since_ns = self._port.boot_ns()
        worker.figures = {"accounts": serving.accounts}
        for other in self.by_shard.values():
            if other.state == "held" and worker.wire is not None:
                worker.wire.send(Held(other.shard_id, other.reason))
        self.set_state(worker, "serving")

    def tell(self, message: ToWorker) -> None:
        """Sends a message to every worker that runs."""
        for worker in self.by_shard.values():
            if worker.wire is not None:
                worker.wire.send(message)

    # -- ahead of time ------------------------------------------------------------------------------------------------

    async def prepare(self, shard_ids: Iterable[int], is_wanted: Callable[[], bool]) -> None:
        """Loads a process for each of these shards, one after the other, as long as `is_wanted`."""
        for shard_id in sorted(shard_ids):
            if not is_wanted():
                return
            try:
                if shard_id not in self._ahead:
                    self._ahead[shard_id] = self._listen(shard_id)
                await self._spares.prepare(*start_of(self._port, f"shard={shard_id}", self._ahead[shard_id]))
            except OSError as error:
                log.warning("the worker of shard %d cannot be started ahead of time: %s", shard_id, text_of(error))

    def prepare_next(self, count: int) -> None:
        """Keeps this many processes loaded for shards that this host may take."""
        if len(self._ready) < count and not self._port.stopping.is_set():
            self._labels += 1
            try:
                ready = f"worker={self._labels}", self._listen(0)
            except OSError as error:
                log.warning("no worker can be started ahead of time: %s", text_of(error))
                return
            self._ready.append(ready)
            self._background.spawn(self._prepare_ready(*ready))

    async def _prepare_ready(self, label: str, direct: socket.socket | None) -> None:
        try:
            await self._spares.prepare(*start_of(self._port, label, direct))
        except OSError as error:
            log.warning("no worker can be started ahead of time: %s", text_of(error))

    # -- beginnings ---------------------------------------------------------------------------------------------------

    def ports_for(self, shard_ids: Iterable[int]) -> Ports:
        """Opens a port for each of these shards. OSError names the port that cannot be had; none was opened then."""
        ports: Ports = {}
        try:
            for shard_id in sorted(shard_ids):
                ports[shard_id] = self._ahead.pop(shard_id, None) or self._listen(shard_id)
        except OSError:
            for port in ports.values():
                if port is not None:
                    port.close()
            raise
        return ports

    def _listen(self, shard_id: int) -> socket.socket | None:
        """Opens the shard's own port, where the configuration asks for one. OSError names it."""
        host = self._direct_host
        if not host:
            return None
        try:
            return listen_on(host)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"a port of shard {shard_id} at {host}") from error

    def start(self, ports: Ports) -> None:
        """Starts a worker for each of these shards."""
        for shard_id, direct in ports.items():
            self._keep(WorkerState(shard_id), direct)

    def start_next(self, shard_id: int) -> None:
        """Starts a worker for a shard that this host has taken, in a prepared process where there is one."""
        label, direct = self._ready.pop(0) if self._ready else (f"shard={shard_id}", None)
        worker = WorkerState(shard_id)
        worker.label = label
        self._keep(worker, direct or self._listen(shard_id))
        self._changed.set()

    def _keep(self, worker: WorkerState, direct: socket.socket | None) -> None:
        self._await_clients()
        worker.direct = direct
        self.by_shard[worker.shard_id] = worker
        worker.task = asyncio.get_running_loop().create_task(keep(worker, self._port))

    # -- ends ---------------------------------------------------------------------------------------------------------

    async def end(self, worker: WorkerState, patience_s: float) -> None:
        """Stops a worker in order and returns once it has ended; a worker that takes too long is killed."""
        worker.retired = True
        worker.again.set()
        if worker.wire is not None:
            worker.wire.send(Stop())
        if worker.state == "recovering":
            terminate(worker)
        if worker.task is not None:
            _, late = await asyncio.wait({worker.task}, timeout=patience_s)
            if late and worker.process is not None and worker.pid:
                worker.process.kill()
        await self.until_gone(worker)
        del self.by_shard[worker.shard_id]
        self._changed.set()

    def dismiss(self, worker: WorkerState) -> None:
        """Begins to stop a worker whose shard is no longer this host's; see `until_gone`."""
        worker.retired = True
        del self.by_shard[worker.shard_id]
        if worker.wire is not None:
            worker.wire.send(Stop())

    async def until_gone(self, worker: WorkerState) -> None:
        """Waits until a worker that was told to stop has ended."""
        if worker.task is not None:
            await worker.task
        if worker.direct is not None:
            worker.direct.close()

    def refuse_clients(self) -> None:
        """Sends clients elsewhere, since no worker is left to answer: shuts the TCP listeners of this process down, and
        closes connections to the others as they come.
        """
        self.turn_clients_away()
        for kind, listener in self._port.listeners:
            if not _listens_on(kind, listener):
                with contextlib.suppress(OSError):  # it does not listen
                    listener.shutdown(socket.SHUT_RDWR)

    def turn_clients_away(self) -> None:
        """Closes connections to a unix socket, which could never listen again, or to a socket of the service manager's,
        as they come, until there is a worker. Sockets that do not listen yet stay as they are: one that was shut down
        before it listened would never give a client an answer.
        """
        loop = asyncio.get_running_loop()
        for kind, listener in self._port.listeners:
            if _listens_on(kind, listener):
                self._turned_away_at.add(listener)
                loop.add_reader(listener, _turn_away, listener)

    def _await_clients(self) -> None:
        """A worker is to come: clients wait for it."""
        for listener in self._turned_away_at:
            asyncio.get_running_loop().remove_reader(listener)
        self._turned_away_at.clear()

    async def stop(self) -> None:
        """Stops all workers; those that take too long are killed."""
        self.tell(Stop())
        for worker in self.by_shard.values():
            if worker.state == "recovering":
                terminate(worker)
        if tasks := [worker.task for worker in self.by_shard.values() if worker.task is not None]:
            _, late = await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
            for worker in self.by_shard.values():
                if worker.task in late and worker.process is not None:
                    log.error("shard %d did not stop within %d s and is killed", worker.shard_id, STOP_TIMEOUT_S)
                    worker.process.kill()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends the prepared processes that were not needed."""
        self._await_clients()
        await self._spares.close()


def _listens_on(kind: str, listener: socket.socket) -> bool:
    """Whether a socket goes on listening while no worker answers."""
    return kind == "unix" or isinstance(listener, SharedSocket)


def _turn_away(listener: socket.socket) -> None:
    """Closes a connection that has come."""
    try:
        connection, _ = listener.accept()
    except (BlockingIOError, InterruptedError, ConnectionAbortedError):
        return  # it has gone
    except OSError:  # no descriptors, or it does not listen: whoever comes has to wait
        asyncio.get_running_loop().remove_reader(listener)
        return
    connection.close()
