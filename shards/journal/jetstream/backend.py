"""The backend of JetStream: a journal, a map and readers over connections of their own.

Settings: `servers` (URLs), `credentials_file` ("" for none), `tls_ca` ("" for the system's), `node`, `shards`,
`replicas`, `bucket_count`, `hash_name`, `retain_bytes`, `grant_ns`, and `directory`, in which this host keeps the
cluster's identity and what it has seen of each stream. For a worker also `seen`: the last sequences that the supervisor
saw while it stood by (the boot clock is the same), so that the worker need not wait again until a stream stands still.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import closing
from typing import Any

from shards.journal import Backend, Journal, JournalError, LastSign, MapLog, Reader, Unfit
from shards.journal.backends import check_kind
from shards.journal.jetstream.connection import Access, Connection, endpoint_of
from shards.journal.jetstream.guard import Guard, Shape, names
from shards.journal.jetstream.journal import JetStreamJournal, Terms
from shards.journal.jetstream.log import newest_of, record_at, sign_of
from shards.journal.jetstream.map_log import JetStreamMapLog, MapReader
from shards.journal.jetstream.reader import JetStreamReader
from shards.journal.jetstream.record import KINDS
from shards.journal.jetstream.restoring import check_empty, fill_map, fill_shard
from shards.journal.jetstream.streams import ReadStream
from shards.journal.jetstream.witness import Witness
from shards.system.disk import read_file, write_file
from shards.system.host import Host
from shards.system.names import Names

WATCH_PATIENCE_S = 1.0
IDENTITY = "cluster"  # the file in `directory` that names the cluster of this host's data


class JetStreamBackend:
    """Implements `shards.journal.Backend`."""

    def __init__(self, settings: dict[str, Any], host: Host) -> None:
        self._settings = settings
        self._host = host
        self._boot_ns = host.clocks.boot_ns
        self._names = Names()
        self._watched: Connection | None = None
        self._cluster = ""
        self._sequences: dict[int, tuple[int, int]] = {}  # shard -> the last sequence, and since when (boot clock)
        self._witnesses: dict[str, Witness] = {}  # the part of the file's name behind `seen-` -> witness

    @property
    def node(self) -> str:
        return str(self._settings["node"])

    @property
    def cluster(self) -> str:
        return self._cluster

    @property
    def grant_ns(self) -> int:
        return int(self._settings["grant_ns"])

    def signs(self) -> dict[int, LastSign]:
        if self._watched is None:
            self._watched = self._connect("watch")
        signs = {}
        for shard in range(1, self._settings["shards"] + 1):
            newest = newest_of(ReadStream(self._watched, f"J_{shard}", WATCH_PATIENCE_S, self._boot_ns), shard)
            sign = signs[shard] = sign_of(newest)
            if newest is not None and self._cluster:  # otherwise the caller only reads, and writes no file
                self._witness(str(shard)).saw(newest[0], newest[1].chain)
            last_seen = self._sequences.get(shard)
            if last_seen is None or last_seen[0] != sign.sequence:
                self._sequences[shard] = sign.sequence, self._boot_ns()
        return signs

    def status(self) -> list[dict[str, Any]]:
        """Returns a row for each shard's journal, for people. Raises Unavailable, Unfit, Unknown, Corrupt."""
        rows = []
        with closing(self._connect("status")) as connection:
            for shard in range(1, self._settings["shards"] + 1):
                stream = ReadStream(connection, f"J_{shard}", WATCH_PATIENCE_S, self._boot_ns)
                state = stream.state()
                newest = record_at(stream, state.last, shard) if state.first <= state.last else None
                replicas = state.cluster.get("replicas") or []
                rows.append(
                    {
                        "shard_id": shard,
                        "leader": state.cluster.get("leader", ""),
                        "replicas_behind": sum(not replica.get("current", False) for replica in replicas),
                        "sequence": state.last,
                        "bytes": state.stored_bytes,
                        "bytes_max": max(int(state.config.get("max_bytes", -1)), 0),  # 0: it has no limit
                        "epoch": newest.epoch if newest else 0,
                        "last_record": KINDS[newest.kind] if newest else "none",
                        "granted_ns": newest.until_ns if newest else 0,
                        "position": newest.position if newest else 0,
                    }
                )
        return rows

    def settings_of_worker(self) -> dict[str, Any]:
        return {**self._settings, "seen": dict(self._sequences)}

    def journal(self, shard: int, now_ns: Callable[[], int], line_ns: Callable[[], int] | None = None) -> Journal:
        settings = self._settings
        terms = Terms(settings["grant_ns"], settings["retain_bytes"])
        witness = self._witness(str(shard))
        last_seen = self._settings.get("seen", {}).get(shard)
        still = (last_seen[0], last_seen[1]) if last_seen else None
        return JetStreamJournal(self._connect, shard, terms, witness, now_ns, self._boot_ns, still, line_ns)

    def map_log(self, now_ns: Callable[[], int]) -> MapLog:
        return JetStreamMapLog(self._connect("map"), self._boot_ns, self._witness("map"))

    def reader(self, shard: int) -> Reader:
        if shard == 0:
            return MapReader(self._connect("read"), self._boot_ns)
        return JetStreamReader(self._connect("read"), shard, self._boot_ns)

    def holds(self, shard: int) -> bool:
        with closing(self._connect("read")) as connection:
            return JetStreamReader(connection, shard, self._boot_ns).head > 0

    def prepare(self) -> list[str]:
        check_kind("jetstream", self._settings["directory"], self._host.disk)
        identity, warnings = self._guard().check()
        self._cluster = identity
        path = f"{self._settings['directory']}/{IDENTITY}"
        disk = self._host.disk
        if disk.exists(path):
            stored = read_file(disk, path).decode(errors="replace").strip()
            if stored != identity:
                raise Unfit(
                    f"daemon.data_dir holds what belongs to cluster {stored}, and cluster.servers lead to {identity}: "
                    "name the right servers, or an empty data_dir"
                )
        elif disk.exists(self._settings["directory"]):
            write_file(disk, path, f"{identity}\n".encode())
        return warnings

    def make(self) -> list[str]:
        """Makes the streams that are missing and returns their names. Raises Unfit, Unavailable."""
        return self._guard().make(self._drawn(), self._drawn)

    def _drawn(self) -> str:
        return f"{self._host.randbits(64):016x}"

    def fill(self, shards: int, reader_of: Callable[[int], Reader], at_ns: int, decided: bytes = b"") -> None:
        """Fills the streams, which must be empty, from another log: those of shards 1 to `shards`, and the map from
        shard 0.

        `at_ns`: the billing instant that stamps all records. `decided`: one more decision for the end of the map; empty
        for none. Raises Unfit, and what the readers raise.
        """
        if shards != self._settings["shards"]:
            raise Unfit(f"cluster.shards: the backup has {shards} shards, the cluster {self._settings['shards']}")
        self.prepare()
        with closing(self._connect("restore")) as connection:
            check_empty(connection, names(shards), self._boot_ns)
            try:
                self._fill(connection, shards, reader_of, at_ns, decided)
            except JournalError as error:
                error.message += (
                    f". The streams {', '.join(names(shards))} hold a part of it: remove them all (`nats stream rm`), "
                    "make them anew with `billing cluster init`, and restore again"
                )
                raise

    def _fill(
        self, connection: Connection, shards: int, reader_of: Callable[[int], Reader], at_ns: int, decided: bytes
    ) -> None:
        for shard in range(1, shards + 1):
            journal = self.journal(shard, lambda: at_ns)
            assert isinstance(journal, JetStreamJournal)
            with closing(reader_of(shard)) as reader:
                fill_shard(connection, journal, shard, reader, self._boot_ns)
        with closing(reader_of(0)) as reader:
            fill_map(connection, reader, self._boot_ns, decided)

    def _witness(self, name: str) -> Witness:
        if name not in self._witnesses:
            directory = self._settings["directory"]
            path = f"{directory}/run/seen-{name}" if directory else ""
            self._witnesses[name] = Witness(self._host.disk, path, self._boot_ns)
        return self._witnesses[name]

    def _guard(self) -> Guard:
        settings = self._settings
        shape = Shape(settings["shards"], settings["replicas"], settings["bucket_count"], settings["hash_name"])
        retain_bytes = settings["retain_bytes"]
        return Guard(self._connect("check"), self._access().endpoints, shape, self._boot_ns, retain_bytes)

    def _access(self) -> Access:
        settings = self._settings
        try:
            endpoints = tuple(endpoint_of(url) for url in settings["servers"])
        except ValueError as error:
            raise Unfit(f"cluster.servers: {error}") from None
        credentials = ""
        if settings["credentials_file"]:
            credentials = read_file(self._host.disk, settings["credentials_file"]).decode().strip()
        context = None
        if any(endpoint.tls for endpoint in endpoints):
            context = ssl.create_default_context(cafile=settings["tls_ca"] or None)
        return Access(endpoints, context, credentials)

    def _connect(self, purpose: str) -> Connection:
        name = f"billing {self._settings['node']} {purpose} pid {self._host.pid()}"
        return Connection(self._access(), name, self._host.randbits, self._boot_ns, self._access, self._names)


def backend(settings: dict[str, Any], host: Host) -> Backend:
    """Returns the backend, for `shards.journal.backends`."""
    return JetStreamBackend(settings, host)
