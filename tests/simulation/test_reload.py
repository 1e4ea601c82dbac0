"""A reload while a host stands by: it goes on standing by, and serves by what was reloaded once its turn comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shards.journal import backends
from tests.simulation.cluster import Cluster, SimHost
from tests.simulation.log_model import KIND, KIND_MODULE
from tests.simulation.loop import SECOND_NS


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    backends.KINDS[KIND] = backends.Kind(KIND_MODULE, is_shared=True)
    cluster = Cluster(1, hosts=2)
    yield cluster
    cluster.close()
    del backends.KINDS[KIND]


def reload(host: SimHost, weights: dict[int, int]) -> None:
    """As the daemon does on SIGHUP."""
    supervisor, settings = host.supervisor, host.settings()._replace(weights=weights)
    assert supervisor is not None
    process = next(process for process in host.machine.processes.values() if process.name == "supervisor")
    process.loop.call_soon(lambda: supervisor.spawn(supervisor.reload(settings, b"")))


def test_a_host_that_stands_by_takes_other_weights_up_and_goes_on_standing_by(cluster: Cluster) -> None:
    for host in cluster.hosts:
        host.start()
    cluster.run(lambda: cluster.serving() is not None, 60, "one of them serves")
    serving = cluster.serving()
    waiting = next(host for host in cluster.hosts if host is not serving)
    assert serving is not None
    standing_by = waiting.supervisor
    assert standing_by is not None
    cluster.run(lambda: standing_by.registry.stands_by, 60, "the other one stands by")
    reload(waiting, {1: 3, 2: 1})
    began_ns = cluster.kernel.now_ns
    cluster.run(lambda: cluster.kernel.now_ns > began_ns + 3 * SECOND_NS, 60, "it has looked at the log again")
    assert waiting.supervisor is standing_by, waiting.exits
    assert set(standing_by.map.weights.values()) == {1}, "that is for the host that serves to say"
    serving.is_wanted = False
    serving.kill()
    cluster.run(lambda: cluster.serving() is waiting, 60, "the other one serves")
    assert waiting.supervisor is standing_by
    assert standing_by.map.weights == {1: 3, 2: 1}
