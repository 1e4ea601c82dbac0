"""Builds the supervisor's settings from the configuration."""

from __future__ import annotations

from typing import Any

from billing.addresses import parse_listen
from billing.config.load import shard_count
from billing.config.schema import Config
from billing.config.shares import parse_shards, parse_weights
from shards.control import WorkerSettings
from shards.moves.mover import Caps
from shards.supervisor.settings import ShareSettings, SupervisorSettings


def settings_of(config: Config, log_settings: dict[str, Any]) -> SupervisorSettings:
    """The supervisor's settings. `log_settings`: the log, as `shards.journal.backends` takes it."""
    return SupervisorSettings(
        data_dir=config.daemon.data_dir,
        weights={
            shard_id: parse_weights(config.shards.weights).get(shard_id, 1)
            for shard_id in range(1, shard_count(config) + 1)
        },
        bucket_count=config.shards.bucket_count,
        slew_ppm_max=config.clock.slew_ppm_max,
        clock_error_ns_max=config.clock.error_ms_max * 1_000_000,
        journal=log_settings,
        worker=WorkerSettings(config.journal.idle_barrier_ms / 1000, config.journal.snapshot_bytes),
        caps=Caps(config.shards.moves_max, config.shards.sending_max, config.shards.receiving_max),
        locked=parse_shards(config.shards.locked),
        direct_host=parse_listen(config.rpc.listen).host if config.rpc.direct and config.rpc.listen else "",
        share=_share(config) if config.journal.is_shared and config.cluster.listen else None,
    )


def _share(config: Config) -> ShareSettings:
    cluster = config.cluster
    advertised = cluster.advertise or config.rpc.listen
    host = advertised.rpartition(":")[0]
    certificates = (cluster.tls_cert, cluster.tls_key, cluster.tls_ca) if cluster.tls_cert else None
    workers = min(config.shards.workers, cluster.shards)
    return ShareSettings(workers, cluster.listen, host, cluster.secret_file, certificates)
