"""Checks before anything starts that the log's servers and streams are fit; and makes the streams.

One check reports all faults at once, each with the key or the setting concerned and its remedy. It demands:

- Every server that is named in `cluster.servers` and can be reached is of version 2.15.1 or newer, has JetStream, and
  belongs to one cluster with the others; servers of that cluster that are not named have such a version, too. The
  connection to every server that is not on loopback is over TLS, and such a server demands credentials or a
  certificate.
- Our user may publish to every subject that the daemon writes to or sends requests to, and receive the answers.
- There are streams `J_k` and `S_k` for each shard and `M` for the map, with the settings of `wanted`: the number of
  replicas, storage in files, no limit of age or number, no deletion of single messages, and new messages refused, not
  old ones discarded, where a stream is full.
- There is one cluster: the metadata of every stream has the same identity, number of shards, number of buckets and
  hash.
- Every server syncs each message (`jetstream.sync_interval: always`). A client sees that only where the servers export
  their report to its account (`$SYS.REQ.SERVER.PING.JSZ`).

Where a stream has no leader, as without a majority of its servers, the log cannot be reached: what is seen then may be
what one server knew. Streams are made only beside streams that are fit.

Warnings name the rest: `cluster.replicas = 1`; a limit of a stream that leaves no room for what is retained, so that it
will be reached and changes refused, or that is nearly reached; and what a client cannot see, a server that cannot be
reached now, or a sync setting that is not exported. A client cannot see either that nobody but this daemon may publish
to `J.>`, `S.>` and `M.>`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from shards.journal import Unavailable, Unfit
from shards.journal.jetstream.connection import Connection, Denied, Endpoint, NoAnswer, Unreachable
from shards.journal.jetstream.map_log import MADE
from shards.journal.jetstream.map_log import NAME as MAP
from shards.journal.jetstream.permissions import faults_of
from shards.journal.jetstream.record import RECORD_BYTES_MAX
from shards.journal.jetstream.streams import ABSENT_S, NO_ROOM_SHARE, NO_STREAM, RETRY_S, Refused, State, Stream

VERSION_MIN = (2, 15, 1)
PATIENCE_S = 5.0
HEADER_BYTES_MAX = 1024  # of a message of NATS; its limit of size includes the header
IDENTITY, SHARDS, BUCKETS, HASH = "billing.cluster", "billing.shards", "billing.bucket_count", "billing.hash"
# Every server of a cluster answers these: the first to any account, the second to accounts that it is exported to.
SERVERS_REPORT, STORAGE_REPORT = "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.SERVER.PING.JSZ"
USER_REPORT = "$SYS.REQ.USER.INFO"


class Shape(NamedTuple):
    """The properties that a cluster is made with, and that its streams must have."""

    shards: int
    replicas: int
    bucket_count: int
    hash_name: str


def names(shards: int) -> list[str]:
    """Returns the names of all streams."""
    return [MAP, *(f"{kind}_{shard}" for shard in range(1, shards + 1) for kind in ("J", "S"))]


def wanted(name: str, shape: Shape, identity: str) -> dict[str, Any]:
    """Returns the settings that a stream must have."""
    kind, _, number = name.partition("_")
    subjects = {"J": [f"J.{number}"], "S": [f"S.{number}", f"S.{number}.whole"], MAP: [f"{MAP}.>"]}[kind]
    return {
        "name": name,
        "subjects": subjects,
        "retention": "limits",
        "storage": "file",
        "num_replicas": shape.replicas,
        "discard": "new",
        "max_age": 0,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_bytes": -1,
        "max_msg_size": -1 if name == MAP else RECORD_BYTES_MAX + HEADER_BYTES_MAX,
        "deny_delete": True,
        "allow_direct": True,
        "metadata": {
            IDENTITY: identity,
            SHARDS: str(shape.shards),
            BUCKETS: str(shape.bucket_count),
            HASH: shape.hash_name,
        },
    }


CHECKED = ("subjects", "retention", "storage", "discard", "max_age", "max_msgs", "max_msgs_per_subject", "deny_delete")


class Guard:
    """Checks servers, permissions and streams over one connection."""

    def __init__(
        self,
        connection: Connection,
        endpoints: tuple[Endpoint, ...],
        shape: Shape,
        boot_ns: Callable[[], int],
        retain_bytes: int = 0,
    ) -> None:
        """`retain_bytes`: how much of each journal is kept behind the snapshots that replace it."""
        self._connection = connection
        self._endpoints = endpoints
        self._shape = shape
        self._boot_ns = boot_ns
        self._retain_bytes = retain_bytes
        self._absent_s = ABSENT_S  # how long to ask for the first absent stream; 0 for the others, asked after that

    def check(self) -> tuple[str, list[str]]:
        """Returns (the cluster's identity, warnings). Raises Unfit with all faults, a line each; Unavailable."""
        warnings: list[str] = []
        faults = self._servers(warnings)
        identity = ""
        try:
            faults += self._user()
            identity = self._streams(faults, warnings)
            warnings += self._storage(faults)
        except Denied as error:
            faults.append(f"cluster.credentials_file, cluster.servers: {error}")
        finally:
            self._connection.close()
        if faults:
            raise Unfit("\n".join(faults))
        if self._shape.replicas == 1:
            warnings.append("cluster.replicas = 1: the log is on one server alone, and gone with it; for trying only")
        return identity, warnings

    def make(self, identity: str, made_of: Callable[[], str]) -> list[str]:
        """Makes the streams that are missing and returns their names.

        `identity`: of the new streams, where no stream exists yet. `made_of`: returns a text that no stream has had.
        Raises Unfit where something that exists does not fit; Unavailable.
        """
        faults = self._servers([])
        if faults:
            raise Unfit("\n".join(faults))
        made_names = []
        try:
            streams = self._look()
            if faults := self._faults_of_streams(streams, []):  # of what is there; nothing is made beside that
                raise Unfit("\n".join(faults))
            identity = _identity_of(streams) or identity
            for name, state in streams.items():
                if state is None:
                    config = wanted(name, self._shape, identity)
                    config["metadata"][MADE] = made_of()
                    Stream(self._connection, name, PATIENCE_S, self._boot_ns).create(config)
                    made_names.append(name)
        except Denied as error:
            raise Unfit(f"cluster.credentials_file, cluster.servers: {error}") from error
        except Refused as error:
            raise Unfit(f"the servers do not make a stream: {error}") from error
        self._absent_s = ABSENT_S
        self.check()
        return made_names

    def _servers(self, warnings: list[str]) -> list[str]:
        """Returns the faults of the servers that can be seen without a stream. Raises Unfit, Unavailable."""
        faults = [
            f"cluster.servers: {endpoint} is not on loopback: name it as tls://{endpoint.host}:{endpoint.port}"
            for endpoint in self._endpoints
            if not endpoint.tls and not _is_loopback(endpoint.host)
        ]
        servers_by_cluster: dict[str, set[str]] = {}  # cluster -> names of its servers
        away: list[str] = []
        try:
            for endpoint, info in self._connection.look_at_each():
                if info is None:
                    away.append(str(endpoint))
                    continue
                servers_by_cluster.setdefault(str(info.get("cluster", "")), set()).add(str(info.get("server_name")))
                faults += _faults_of(str(endpoint), info)
                is_open = not (info.get("auth_required") or info.get("tls_verify"))
                if is_open and not _is_loopback(endpoint.host):
                    faults.append(
                        f"{endpoint} lets everybody in, who may write to the journals: give it users, and "
                        "cluster.credentials_file one of them"
                    )
            if not servers_by_cluster and faults:
                raise Unfit("\n".join(faults))
            if not servers_by_cluster:
                raise Unavailable(f"the log cannot be reached: nobody answers at {', '.join(away)}")
            named_servers = set().union(*servers_by_cluster.values())
            for name, version in self._versions().items():
                if name not in named_servers:
                    faults += _too_old(name, version)
        except Denied as error:
            faults.append(f"cluster.credentials_file, cluster.servers: {error}")
            raise Unfit("\n".join(faults)) from error
        if len(servers_by_cluster) > 1:
            clusters = "; ".join(
                f"{', '.join(sorted(servers))} of {cluster or 'none'}"
                for cluster, servers in servers_by_cluster.items()
            )
            faults.append(f"cluster.servers: they are of different clusters: {clusters}")
        if away:
            warnings.append(f"{', '.join(away)} cannot be reached now: what it is, nobody knows from here")
        return faults

    def _versions(self) -> dict[str, str]:
        """Returns name -> version of all servers of the cluster, also of those that the configuration does not name.
        Raises Unavailable.
        """
        versions = {}
        for report in self._reports(SERVERS_REPORT, {"limit": 1}):
            server = report.get("server", {})
            versions[str(server.get("name"))] = str(server.get("ver", "0"))
        return versions

    def _reports(self, subject: str, wish: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the answers of the servers; none where the user may not ask, or nobody answers. Raises
        Unavailable.
        """
        try:
            answers = self._connection.gather(subject, msgspec.json.encode(wish), self._shape.replicas)
            return [msgspec.json.decode(answer.payload, type=dict[str, Any]) for answer in answers]
        except (Denied, msgspec.DecodeError):
            return []
        except (Unreachable, NoAnswer) as error:
            raise Unavailable(f"the log cannot be reached: {error}") from error

    def _user(self) -> list[str]:
        """Returns a fault for each permission that this client's user lacks."""
        try:
            answer = self._connection.request(USER_REPORT)
            user_info = (
                {} if answer.status else msgspec.json.decode(answer.payload, type=dict[str, Any]).get("data", {})
            )
        except (Denied, NoAnswer, Unreachable, msgspec.DecodeError):
            return []  # the requests that follow show what is not allowed
        user, permissions = user_info.get("user") or "everybody", user_info.get("permissions") or {}
        return [
            f"cluster.credentials_file: the user {user} {fault}: allow it in the servers' configuration"
            for fault in faults_of(permissions, names(self._shape.shards))
        ]

    def _look(self) -> dict[str, State | None]:
        """Returns the state of every stream that there must be; None where the stream does not exist."""
        return {name: self._state(name) for name in names(self._shape.shards)}

    def _look_for_leaders(self) -> dict[str, State | None]:
        """As `_look`. Raises Unavailable while a stream has no leader, as without a majority of its servers."""
        until_ns = self._boot_ns() + int(PATIENCE_S * 1e9)
        while True:
            streams = self._look()
            unled = [name for name, state in streams.items() if state is not None and not _is_led(state)]
            if not unled:
                return streams
            if self._boot_ns() > until_ns:
                raise Unavailable(
                    f"the log cannot be reached: no server leads {', '.join(unled)}: start a majority of the servers, "
                    "and see that they reach each other"
                )
            self._connection.pause(RETRY_S)

    def _state(self, name: str) -> State | None:
        try:
            return Stream(self._connection, name, PATIENCE_S, self._boot_ns, self._absent_s).state()
        except Refused as error:
            if error.code == NO_STREAM:
                self._absent_s = 0.0
                return None
            raise

    def _streams(self, faults: list[str], warnings: list[str]) -> str:
        """Returns the identity that the streams have in common; adds their faults and warnings to the lists."""
        streams = self._look_for_leaders()
        faults += self._faults_of_streams(streams, warnings)
        if missing := [name for name, state in streams.items() if state is None]:
            faults.append(f"there are no streams {', '.join(missing)}: make them with `billing cluster init`")
        return _identity_of(streams)

    def _faults_of_streams(self, streams: Mapping[str, State | None], warnings: list[str]) -> list[str]:
        """Returns the faults of the streams that exist; adds their warnings to the list."""
        faults: list[str] = []
        identities: dict[str, list[str]] = {}
        for name, state in streams.items():
            if state is None:
                continue
            metadata = state.config.get("metadata") or {}
            identities.setdefault(metadata.get(IDENTITY, ""), []).append(name)
            faults += self._differences(name, state.config, metadata)
            limit_bytes = state.config.get("max_bytes", -1)
            if name.startswith("J_") and 0 < limit_bytes <= 2 * self._retain_bytes:
                warnings.append(
                    f"{name}: its max_bytes of {limit_bytes} will be reached, and changes refused: of the log, "
                    f"cluster.retain_bytes ({self._retain_bytes}) are kept; make it more than twice of that"
                )
            elif 0 < limit_bytes * NO_ROOM_SHARE < state.stored_bytes:
                warnings.append(
                    f"{name} is full: it holds {state.stored_bytes} of its max_bytes of {limit_bytes}: raise that with "
                    f"`nats stream edit {name}`"
                )
        if "" in identities:
            faults.append(f"{', '.join(identities.pop(''))}: made by somebody else: not streams of this daemon")
        if len(identities) > 1:
            clusters = "; ".join(
                f"{', '.join(stream_names)} of {identity}" for identity, stream_names in identities.items()
            )
            faults.append(f"the streams are of different clusters: {clusters}")
        return faults

    def _differences(self, name: str, config: dict[str, Any], metadata: dict[str, str]) -> list[str]:
        shape = self._shape
        right = wanted(name, shape, "")
        faults = [
            f"{name}: {key} is {config.get(key)!r}: change it to {right[key]!r} with `nats stream edit {name}`"
            for key in CHECKED
            if config.get(key, right[key] if right[key] in (0, -1) else None) != right[key]
        ]
        if config.get("num_replicas") != shape.replicas:
            replicas = config.get("num_replicas")
            faults.append(f"cluster.replicas: {name} has {replicas} replicas, the configuration says {shape.replicas}")
        if metadata.get(IDENTITY):
            for key, path, value in (
                (SHARDS, "cluster.shards", str(shape.shards)),
                (BUCKETS, "shards.bucket_count", str(shape.bucket_count)),
                (HASH, "the hash", shape.hash_name),
            ):
                if metadata.get(key) != value:
                    faults.append(f"{path}: {name} was made with {metadata.get(key)}, the configuration says {value}")
        return faults

    def _storage(self, faults: list[str]) -> list[str]:
        """Returns warnings of what the servers do not tell of their storage; adds what is wrong with it to
        `faults`.
        """
        synced: dict[str, bool] = {}
        for report in self._reports(STORAGE_REPORT, {"config": True}):
            settings = report.get("data", {}).get("config", {})
            if "sync_interval" in settings or "sync_always" in settings:
                synced[str(report.get("server", {}).get("name"))] = bool(settings.get("sync_always"))
        unsynced = sorted(name for name, always in synced.items() if not always)
        if unsynced:
            faults.append(
                f"{', '.join(unsynced)}: messages are synced now and then only: set jetstream.sync_interval to `always`"
            )
        if len(synced) < self._shape.replicas:
            but_of = f" but of {', '.join(sorted(synced))}" if synced else ""
            return [
                f"jetstream.sync_interval of the servers cannot be seen from here{but_of}: see that each has `always`"
            ]
        return []


def _is_led(state: State) -> bool:
    """Whether the stream has a leader; one of a single replica needs none."""
    return bool(state.cluster.get("leader")) or state.config.get("num_replicas", 1) == 1


def _identity_of(streams: Mapping[str, State | None]) -> str:
    """Returns the identity in the first of these streams; "" where there is no stream, or somebody else made it."""
    configs = (state.config for state in streams.values() if state is not None)
    return str(next(((config.get("metadata") or {}).get(IDENTITY, "") for config in configs), ""))


def _faults_of(server: str, info: dict[str, Any]) -> list[str]:
    """Returns the faults of a server, by its description of itself."""
    faults = _too_old(server, str(info.get("version", "0")))
    if not info.get("jetstream"):
        faults.append(f"{server} has JetStream switched off: give it a [jetstream] section")
    return faults


def _too_old(server: str, version: str) -> list[str]:
    least = ".".join(map(str, VERSION_MIN))
    return [] if _version(version) >= VERSION_MIN else [f"{server} is nats-server {version}: install {least} or newer"]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _version(text: str) -> tuple[int, ...]:
    numbers = text.partition("-")[0].split(".")
    return tuple(int(number) for number in numbers if number.isdecimal())
