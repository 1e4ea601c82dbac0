"""Servers of a log, and an endpoint, which many files of these tests begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from billing.trial.receiver import Receiver
from tests.shards.journal.nats_cluster import NatsCluster
from tests.system.endpoint import receiving


@pytest.fixture(scope="module")
def shared_servers(module_dir: Path) -> Iterator[NatsCluster]:
    """Until they have a leader takes longer than until a stream is gone."""
    with closing(NatsCluster(module_dir)) as cluster:
        yield cluster.start()


@pytest.fixture
def servers(shared_servers: NatsCluster) -> NatsCluster:
    """All of them run, and there is no stream."""
    return shared_servers.clear()


@pytest.fixture
def log_server(data_dir: Path) -> Iterator[NatsCluster]:
    """One server, as for trying."""
    directory = data_dir / "servers"
    directory.mkdir()
    with closing(NatsCluster(directory, 1)) as cluster:
        yield cluster.start()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """An endpoint for cutoffs and notices."""
    async with receiving() as receiver:
        yield receiver
