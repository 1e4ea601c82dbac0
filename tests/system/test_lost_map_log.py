"""A shared log whose stream of the map is gone: a start says what helps, and the map is made again from the shards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.endings import killed_in_the_end
from tests.system.log_hosts import SHARDS, daemon_on
from tests.system.test_lost_map import BUCKETS, billing, fill, look

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


def test_a_log_without_its_map_is_refused_and_the_map_is_made_again_from_the_shards(
    log_server: NatsCluster, data_dir: Path
) -> None:
    daemon = daemon_on(log_server, data_dir / "host", cluster__replicas=1, shards__bucket_count=BUCKETS)
    with killed_in_the_end(daemon):
        log_server.make_all(SHARDS, BUCKETS)
        daemon.start()
        state = asyncio.run(fill(daemon))
        daemon.kill()
        log_server.ask("STREAM.DELETE.M")
        for path in (data_dir / "host" / "data" / "history").iterdir():
            path.unlink(missing_ok=True)  # a history that ends tidies up behind itself

        refused = billing("serve", "--config", daemon.config)
        assert (refused.returncode, "`billing cluster init`" in refused.stderr) == (78, True), refused.stderr
        assert billing("cluster", "init", "--config", daemon.config).returncode == 0
        refused = billing("serve", "--config", daemon.config)
        assert refused.returncode == 65, refused.stderr
        assert "the map of the buckets is gone, and shards 1, 2 are there" in refused.stderr
        assert "`billing rebuild --map`" in refused.stderr

        result = billing("rebuild", "--map", "--config", daemon.config)
        assert result.returncode == 0, result.stderr
        assert "map: made again from what the shards hold: shard 1 owns 7, shard 2 owns 9" in result.stdout
        for shard in (1, 2):
            assert f"shard-{shard}: history: whole up to batch" in result.stdout
        second = billing("rebuild", "--map", "--config", daemon.config)
        assert second.returncode == 1, second.stderr
        assert "already, stream M on the servers of the log (version " in second.stderr
        assert "nothing was changed" in second.stderr
        assert "damaged" not in second.stderr
        daemon.start()
        assert asyncio.run(look(daemon)) == state
        runs = billing("rebuild", "--config", daemon.config)
        assert (runs.returncode, "a daemon runs on" in runs.stderr) == (1, True), runs.stderr
        assert daemon.stop() == 0
