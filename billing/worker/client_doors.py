"""The doors that a worker opens to clients, with their tokens, limits and TLS, and the worker's `server_info`."""

from __future__ import annotations

import secrets
import socket
from typing import Any

from billing import __version__
from billing.api.auth import Guard
from billing.api.connection_limits import limits_of
from billing.api.door import Audit, Door
from billing.api.opening import Doors
from billing.api.tls import server_context
from billing.config.schema import Config
from billing.worker.dependencies import WorkerDependencies
from shards.worker.hosting import ServedShard


class ClientDoors:
    """All doors of one worker."""

    def __init__(self, worker: ServedShard, config: Config, audit: Audit, dependencies: WorkerDependencies) -> None:
        """Accepts no connection before `listen`. `audit`: the operators' record."""
        self._worker = worker
        self._config = config
        clocks = dependencies.clocks
        limits = limits_of(config.rpc, config.cutoff)
        door = self._door = Door(worker, self._guard(), clocks.boot_ns, self._server_info, limits, worker.fail, audit)
        door.start()
        self._doors = Doors(door, server_context(config), clocks.wall_ns, secrets.token_bytes)

    def listen(self, listeners: list[tuple[str, socket.socket]]) -> None:
        """Accepts clients on these sockets, of the kinds that `billing.api.opening` lists."""
        for kind, listener in listeners:
            self._doors.listen(kind, listener)

    def configure(self, config: Config) -> None:
        """Applies tokens, limits, the certificate and the trusted authorities; open connections stay."""
        self._config = config
        self._door.take_guard(self._guard())
        self._door.limits = limits_of(config.rpc, config.cutoff)
        if (tls := server_context(config)) is not None:
            self._doors.take_tls(tls)

    def note_error(self, reply: object) -> None:
        """Counts a refusal that goes to a client of another worker."""
        self._door.note_error(reply)

    def figures(self) -> dict[str, Any]:
        """Counters for the operator."""
        return self._door.figures()

    async def stop_listening(self) -> None:
        """Accepts no new connections; open ones stay."""
        await self._doors.stop_listening()

    def drain(self) -> None:
        """Takes no new requests; those under way are still answered."""
        self._door.drain()

    def close(self) -> None:
        """Ends the connections."""
        self._door.close()

    def _guard(self) -> Guard:
        file = self._config.rpc.tokens_file
        return Guard(self._config.text_of(file) if file else None)

    def _server_info(self) -> dict[str, object]:
        worker, config = self._worker, self._config
        return {
            "version": __version__,
            "shard_id": worker.shard_id,
            "shards": len(worker.map.weights),
            "bucket_count": worker.map.bucket_count,
            "now_ns": worker.now_ns(),
            "journal_sync": config.journal.sync,
            "after_exhaustion": config.cutoff.after_exhaustion,
            "request_ids_per_bucket": config.ledger.request_ids_per_bucket,
        }
