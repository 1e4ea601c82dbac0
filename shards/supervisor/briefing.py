"""What workers are told of the daemon that they belong to: all of it when one begins, and from then on what changes.

    Begin           the map, the journal, where the other workers and the other hosts' shards are reached, who is proved
    Configure       the configuration that was reloaded
    ShardsChanged   other shards or weights, or other places
    Proved          a shard's worker has recovered by a map that is new enough: what it says of the map counts

`begin` holds `Registry.deciding`, as whoever tells a change does: so no worker begins by what is just being changed,
and none misses the change. What is told of moves, and the order to serve, is not here (`shards.moves.mover`,
`shards.supervisor.admission`).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from shards.control import Begin, Configure, LinkSettings, Proved, ShardsChanged, WorkerSettings
from shards.journal import Backend
from shards.links.far import Far
from shards.supervisor.child_process import WorkerState
from shards.supervisor.owners import Owners
from shards.supervisor.registry import Registry
from shards.supervisor.settings import SupervisorSettings
from shards.supervisor.worker_processes import WorkerProcesses
from shards.system.host import address_of


class Briefing:
    """Makes what the supervisor sends to its workers."""

    def __init__(
        self,
        settings: SupervisorSettings,
        configuration: bytes,
        log: Backend,
        registry: Registry,
        processes: WorkerProcesses,
        owners: Owners | None,
    ) -> None:
        """`configuration`: the application's, as its workers read it. `log`: of the journals and the map. `owners`:
        None where one host serves all shards.
        """
        self._data_dir = settings.data_dir
        self._share = settings.share
        self._settings = settings.worker
        self._configuration = configuration
        self._log = log
        self._registry = registry
        self._processes = processes
        self._workers: Mapping[int, WorkerState] = processes.by_shard
        self._owners = owners

    async def begin(self, worker: WorkerState, inherited: list[tuple[str, socket.socket]]) -> None:
        """The first message to a process, which is to listen on these sockets."""
        async with self._registry.deciding:
            if worker.wire is not None:
                worker.wire.send(self._begin_of(worker, inherited))

    def _begin_of(self, worker: WorkerState, inherited: list[tuple[str, socket.socket]]) -> Begin:
        proven = ("recovered", "serving") if self._owners is None else ("serving",)
        return Begin(
            shard_id=worker.shard_id,
            directory=self._data_dir,
            founded=worker.shard_id in self._registry.founded,
            bucket_map=self._registry.map.encode(),
            peers=self._peers(),
            listeners=[(kind, listener.fileno()) for kind, listener in inherited],
            direct=self._direct(),
            journal=self._log.settings_of_worker(),
            settings=self._settings,
            configuration=self._configuration,
            settled=self._registry.settled.get(worker.shard_id, -1),
            proved=[
                *(other.shard_id for other in self._workers.values() if other.state in proven),
                *self._far(),  # those that the map says serve have recovered by a map that is new enough
            ],
            far=self._far(),
            links=self._links_of(worker.shard_id),
            log=self._log.cluster,
        )

    def _links_of(self, shard_id: int) -> LinkSettings | None:
        """The settings by which a worker is linked with workers of other hosts; with them the process gets its own
        number in the map.
        """
        share = self._share
        if share is None or self._owners is None:
            return None
        voice = self._owners.begin_life(shard_id)
        return LinkSettings(share.listen_of(shard_id), self._log.cluster, *voice, share.secret_file, share.certificates)

    async def tell_configuration(self, settings: WorkerSettings, configuration: bytes) -> None:
        """Sends a reloaded configuration to every worker, and keeps it for workers that start later."""
        async with self._registry.deciding:
            self._settings, self._configuration = settings, configuration
            self._processes.tell(Configure(settings, configuration))

    def tell_shards(self, records: list[list[Any]]) -> None:
        """Sends the recorded changes of shards and weights, and where all shards are; the caller holds
        `Registry.deciding`.
        """
        self._processes.tell(ShardsChanged(records, self._peers(), self._direct(), self._far()))

    def tell_places(self) -> None:
        """Sends where the other hosts' shards are served now."""
        self.tell_shards([])
        for shard_id in self._far():
            self._processes.tell(Proved(shard_id))

    def direct_of(self, worker: WorkerState) -> str:
        """The address at which clients reach only this worker, as other hosts are told it; "" where there is none."""
        address = "" if worker.direct is None else address_of(worker.direct)
        return address if self._share is None else self._share.advertised(address)

    def _peers(self) -> dict[int, str]:
        shard_ids = self._registry.map.weights if self._owners is None else self._workers
        return {shard_id: f"shard-{shard_id}.sock" for shard_id in shard_ids}

    def _direct(self) -> dict[int, str]:
        far = {} if self._owners is None else self._owners.direct()
        return far | {worker.shard_id: self.direct_of(worker) for worker in self._workers.values() if worker.direct}

    def _far(self) -> dict[int, Far]:
        return {} if self._owners is None else self._owners.far()
