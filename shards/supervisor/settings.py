"""What the supervisor and its rooms need of the configuration, as plain data."""

from __future__ import annotations

from typing import Any, NamedTuple

from shards.control import WorkerSettings
from shards.moves.mover import Caps, MoveSettings


class ShareSettings(NamedTuple):
    """How this host serves beside other hosts."""

    workers: int  # how many shards it serves at most
    listen: str  # "host:port" for the links of other hosts; the worker of shard k listens at port + k, or at a free one
    advertise: str  # by which host name or address others and clients reach this host; "": as it listens
    secret_file: str  # "": none
    certificates: tuple[str, str, str] | None  # see `shards.links.far.Certificates`

    def listen_of(self, shard: int) -> str:
        """The address at which the worker of this shard is to listen for other workers."""
        host, _, port = self.listen.rpartition(":")
        return f"{host}:{int(port) + shard if int(port) else 0}"

    def advertised(self, address: str) -> str:
        """An address of this host in the form in which other hosts are told it."""
        host, _, port = address.rpartition(":")
        is_any = host in ("0.0.0.0", "[::]", "")
        return f"{self.advertise}:{port}" if address and is_any and self.advertise else address


class SupervisorSettings(NamedTuple):
    """The settings of the supervisor. A reload may change `weights`, `worker`, `caps` and `locked`."""

    data_dir: str
    weights: dict[int, int]  # of the shards that are wanted, by id
    bucket_count: int
    slew_ppm_max: int
    journal: dict[str, Any]  # as `shards.journal.backends` takes it
    worker: WorkerSettings
    direct_host: str  # host of the port that each worker has for itself; "" for none
    caps: Caps = Caps()
    locked: frozenset[int] = frozenset()  # shards that the rebalancer leaves alone
    clock_error_ns_max: int = 0  # of a host that shares its log; 0: any
    share: ShareSettings | None = None  # where several hosts serve at once

    @property
    def moves(self) -> MoveSettings:
        """The settings of the mover."""
        return MoveSettings(frozenset(self.weights), self.caps, self.locked)
