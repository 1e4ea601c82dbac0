"""Making the streams of a cluster, and filling them from a backup: all of it, or nothing without a word of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shards.journal import Corrupt, Reader, Retained, Unfit, backends
from shards.journal.jetstream.backend import JetStreamBackend
from shards.system.host import REAL
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with closing(NatsCluster(tmp_path_factory.mktemp("nats"), 1)) as server:
        yield server.start()


@pytest.fixture
def server(one_server: NatsCluster) -> NatsCluster:
    """Without a stream."""
    return one_server.clear()


def backend_on(server: NatsCluster, shards: int = 2, **changed: object) -> JetStreamBackend:
    settings: dict[str, Any] = {"kind": "jetstream", "servers": server.urls, "credentials_file": "", "tls_ca": ""}
    settings |= {"node": "a", "shards": shards, "replicas": 1, "bucket_count": 32, "hash_name": "crc32c-noxor"}
    made = backends.open(settings | {"directory": "", "retain_bytes": 0, "grant_ns": 10**8} | changed, REAL)
    assert isinstance(made, JetStreamBackend)
    return made


def streams(server: NatsCluster) -> list[str]:
    return sorted(server.ask("STREAM.NAMES")["streams"] or ())


def last(server: NatsCluster, name: str) -> int:
    return int(server.ask(f"STREAM.INFO.{name}")["state"]["last_seq"])


@pytest.mark.parametrize(
    ("changed", "key"), [({"shards": 3}, "cluster.shards"), ({"shards": 3, "bucket_count": 64}, "shards.bucket_count")]
)
def test_nothing_is_made_beside_streams_that_the_configuration_does_not_fit(
    server: NatsCluster, changed: dict[str, Any], key: str
) -> None:
    server.make_all(2)
    before = streams(server)
    with pytest.raises(Unfit, match=f"{key}: M was made with"):
        backend_on(server, **changed).make()
    assert streams(server) == before


def test_nothing_is_made_beside_a_stream_of_somebody_else(server: NatsCluster) -> None:
    server.ask("STREAM.CREATE.M", {"name": "M", "subjects": ["M.>"], "storage": "file"})
    with pytest.raises(Unfit, match="M: made by somebody else"):
        backend_on(server).make()
    assert streams(server) == ["M"]


def test_a_stream_that_is_nearly_full_is_told(server: NatsCluster) -> None:
    server.make_all(2)
    server.publish("S.2", b"x" * 1000)
    server.limit("S_2", 1100)
    (warning,) = [text for text in backend_on(server).prepare() if "S_2" in text]
    assert warning.startswith("S_2 is full: it holds ")
    assert warning.endswith("of its max_bytes of 1100: raise that with `nats stream edit S_2`")


class OneBatch:
    """The log of a shard that has one batch, and maybe cannot be read behind it."""

    first, head = 1, 1

    def __init__(self, is_damaged: bool) -> None:
        self._is_damaged = is_damaged

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        yield start, b"a batch"
        if self._is_damaged:
            raise Corrupt("the copy is damaged", position=2)

    def snapshots(self) -> list[Retained]:
        return []

    def chunks(self, position: int) -> Iterator[bytes]:
        raise AssertionError(position)

    def close(self) -> None:
        """Nothing is open."""


def reader_of(shard: int) -> Reader:
    return OneBatch(shard == 2)


def test_nothing_is_filled_where_one_of_the_streams_holds_something(server: NatsCluster) -> None:
    server.make_all(2)
    server.publish("J.2", b"something")
    with pytest.raises(Unfit, match="J_2: not empty: a backup is restored into streams that were just made only"):
        backend_on(server).fill(2, reader_of, 1)
    assert [last(server, name) for name in ("J_1", "S_1", "M")] == [0, 0, 0]


def test_what_was_filled_in_part_is_told_with_what_to_do(server: NatsCluster, tmp_path: Path) -> None:
    server.make_all(2)
    (tmp_path / "run").mkdir()
    with pytest.raises(Corrupt) as broken:
        backend_on(server, directory=str(tmp_path)).fill(2, reader_of, 1)
    assert str(broken.value) == (
        "the copy is damaged. The streams M, J_1, S_1, J_2, S_2 hold a part of it: remove them all (`nats stream rm`), "
        "make them anew with `billing cluster init`, and restore again (position 2)"
    )
    assert last(server, "J_1") > 0
