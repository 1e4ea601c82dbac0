"""The servers of a journal in JetStream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three of them, for all tests of a file."""
    if BINARY is None:
        pytest.skip(MISSING)
    with closing(NatsCluster(tmp_path_factory.mktemp("nats"))) as cluster:
        yield cluster.start()
