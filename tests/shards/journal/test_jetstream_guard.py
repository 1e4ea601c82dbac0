"""What the guard sees of the log's servers and of its user: of every server, not only of the one that it asks first."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from shards.exits import Exit, ending_of
from shards.journal import Unavailable, Unfit, backends
from shards.journal.jetstream.connection import Access, Connection, Denied, endpoint_of
from shards.journal.jetstream.guard import Guard, Shape
from shards.journal.jetstream.permissions import covers, faults_of, needed
from shards.journal.jetstream.streams import ReadStream
from shards.system.clock import MACHINE_CLOCKS
from shards.system.host import REAL
from tests.shards.journal.nats_cluster import BINARY, MISSING, READY_S, NatsCluster
from tests.shards.journal.proxy import Proxy
from tests.system.ports import free_port

SHAPE = Shape(1, 3, 32, "crc32c")
# The operator's account shows the servers' storage to ours, in which three users may do more and less.
ACCOUNTS = """
accounts {
  $SYS {
    users: [{ user: "operator", password: "o" }]
    exports: [{ service: "$SYS.REQ.SERVER.PING.JSZ", response: stream }]
  }
  BILLING {
    jetstream: enabled
    imports: [{ service: { account: "$SYS", subject: "$SYS.REQ.SERVER.PING.JSZ" } }]
    users: [
      { user: "billing", password: "b" }
      { user: "reader", password: "r", permissions: { publish: ["$JS.API.>", "$SYS.REQ.>", "J.>"] } }
      { user: "deaf", password: "d", permissions: { subscribe: { deny: "_INBOX.>" } } }
    ]
  }
}
"""

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three servers, of which server-2 syncs now and then only; all streams of one shard are there."""
    directory = tmp_path_factory.mktemp("nats")
    cluster = NatsCluster(directory, extra=ACCOUNTS)
    cluster.credentials = "billing:b"
    late = directory / "server-2.conf"
    late.write_text(late.read_text().replace("sync_interval: always", 'sync_interval: "2m"'))
    try:
        cluster.start()
        cluster.make(0)
        cluster.make(1)
        yield cluster
    finally:
        cluster.close()


def guard_of(cluster: NatsCluster, urls: list[str], credentials: str = "billing:b", shape: Shape = SHAPE) -> Guard:
    connection = cluster.connect("guard", urls, credentials)
    return Guard(connection, tuple(map(endpoint_of, urls)), shape, MACHINE_CLOCKS.boot_ns)


def faults(guard: Guard) -> list[str]:
    """What it refuses to start for."""
    with pytest.raises(Unfit) as refused:
        guard.check()
    return str(refused.value).splitlines()


LATE = "server-2: messages are synced now and then only: set jetstream.sync_interval to `always`"


def test_a_server_that_does_not_sync_each_message_is_named_whichever_is_asked(cluster: NatsCluster) -> None:
    for url in cluster.urls:
        assert faults(guard_of(cluster, [url])) == [LATE]


@pytest.mark.parametrize("number", range(3))
def test_an_old_version_of_any_server_is_named(cluster: NatsCluster, number: int) -> None:
    proxy = Proxy(cluster.ports[number])
    proxy.answers = lambda data: [data.replace(b'"version":"2.15.1"', b'"version":"2.10.29"')]
    urls = list(cluster.urls)
    urls[number] = proxy.url
    try:
        assert faults(guard_of(cluster, urls)) == [f"{proxy.url} is nats-server 2.10.29: install 2.15.1 or newer", LATE]
    finally:
        proxy.close()


def test_an_old_version_of_a_server_that_no_key_names_is_named(cluster: NatsCluster) -> None:
    proxy = Proxy(cluster.ports[0])

    def older(data: bytes) -> list[bytes]:
        return [data.replace(b'"ver":"2.15.1"', b'"ver":"2.14.9"') if b'"name":"server-1"' in data else data]

    proxy.answers = older
    try:
        fault_texts = faults(guard_of(cluster, [proxy.url]))
        assert "server-1 is nats-server 2.14.9: install 2.15.1 or newer" in fault_texts
    finally:
        proxy.close()


def test_what_the_user_may_not_do_is_named_with_its_subjects(cluster: NatsCluster) -> None:
    fault_texts = faults(guard_of(cluster, cluster.urls, "reader:r"))
    assert fault_texts == [
        "cluster.credentials_file: the user reader may not publish to M.decision, M.state, S.1, S.1.whole: allow it in "
        "the servers' configuration",
        LATE,
    ]
    (deaf,) = faults(guard_of(cluster, cluster.urls, "deaf:d"))
    assert "does not allow it: Permissions Violation for Subscription" in deaf


def test_streams_that_no_server_leads_are_out_of_reach_and_not_fit(cluster: NatsCluster) -> None:
    proxy = Proxy(cluster.ports[0])
    proxy.answers = lambda data: [data.replace(b'"leader":"', b'"headed":"')]
    try:
        with pytest.raises(Unavailable, match="no server leads M, J_1, S_1: start a majority of the servers"):
            guard_of(cluster, [proxy.url]).check()
    finally:
        proxy.close()


def test_whoever_only_reads_and_may_not_is_told_which_key_to_mend(cluster: NatsCluster, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("deaf:d")
    settings = {
        "kind": "jetstream",
        "servers": cluster.urls,
        "credentials_file": f"{tmp_path}/credentials",
        "node": "a",
    }
    backend = backends.open(settings | {"shards": 1, "tls_ca": "", "directory": ""}, REAL)
    shard, bucket_map = backend.reader(1), backend.reader(0)
    map_log = backend.map_log(lambda: 0)
    questions: list[Callable[[], object]] = [
        *(lambda: shard.first, lambda: shard.head, lambda: list(shard.replay(1)), shard.snapshots),
        *(lambda: list(shard.chunks(1)), lambda: bucket_map.head, lambda: list(bucket_map.replay(1))),
        *(bucket_map.snapshots, backend.signs, lambda: backend.holds(1), map_log.is_newest, lambda: map_log.load("a")),
    ]
    for ask in questions:
        with pytest.raises(Denied, match=r"^cluster\.credentials_file, cluster\.servers: .* not allow it") as raised:
            ask()
        assert isinstance(raised.value, Unavailable), "a daemon that serves tries again"
        assert ending_of(raised.value).code == Exit.CONFIG
    for opened in (shard, bucket_map, map_log):
        opened.close()


def test_whoever_reads_a_stream_that_is_not_there_is_told_what_makes_it(cluster: NatsCluster) -> None:
    connection = cluster.connect()
    with pytest.raises(Unfit, match=r"there is no stream J_7: .* `billing cluster init`"):
        ReadStream(connection, "J_7", 1.0, MACHINE_CLOCKS.boot_ns, absent_s=0.0).state()
    assert ReadStream(connection, "J_1", 1.0, MACHINE_CLOCKS.boot_ns).message(7) is None
    connection.close()


def test_a_server_that_cannot_be_reached_is_a_warning_and_servers_of_two_clusters_are_a_fault(
    cluster: NatsCluster, tmp_path: Path
) -> None:
    away = f"nats://127.0.0.1:{free_port()}"
    alone = NatsCluster(tmp_path, 1)
    try:
        alone.start()
        fault_texts = faults(guard_of(cluster, [*cluster.urls, alone.urls[0]], ""))
        assert len(fault_texts) == 1, "without credentials the first server ends it"
        assert "refuses the credentials" in fault_texts[0]
        warnings: list[str] = []
        assert guard_of(alone, [*alone.urls, away], "", Shape(1, 1, 32, "crc32c"))._servers(warnings) == []
        assert warnings == [f"{away} cannot be reached now: what it is, nobody knows from here"]
        fault_texts = guard_of(cluster, [cluster.urls[0], alone.urls[0]])._servers([])
        assert fault_texts == ["cluster.servers: they are of different clusters: server-0 of trial; server-0 of none"]
    finally:
        alone.close()


def test_plaintext_is_refused_where_tls_is_asked_for_and_beyond_loopback(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "0.0.0.0")
    for path, blob in (("cert", certificate.cert_chain_pems[0]), ("key", certificate.private_key_pem)):
        blob.write_to_path(str(tmp_path / path))
    extra = f'tls {{ cert_file: "{tmp_path}/cert", key_file: "{tmp_path}/key" }}\n'
    servers = NatsCluster(tmp_path, 1, extra, listen="0.0.0.0")
    port = servers.ports[0]
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def faults_at(url: str) -> str:
        endpoints = (endpoint_of(url),)
        access = Access(endpoints, context, "")
        deadline = time.monotonic() + READY_S
        while True:
            connection = Connection(access, "guard", REAL.randbits, MACHINE_CLOCKS.boot_ns)
            try:
                Guard(connection, endpoints, Shape(1, 1, 32, "crc32c"), MACHINE_CLOCKS.boot_ns).check()
            except Unfit as unfit:
                return str(unfit)
            except Unavailable:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    try:
        servers.start_server(0)
        asks = f"nats://127.0.0.1:{port} asks for TLS: name it as tls://127.0.0.1:{port}"
        assert faults_at(f"nats://127.0.0.1:{port}") == f"cluster.credentials_file, cluster.servers: {asks}"
        plain = faults_at(f"nats://0.0.0.0:{port}")
        assert f"cluster.servers: nats://0.0.0.0:{port} is not on loopback: name it as tls://0.0.0.0:{port}" in plain
        assert f"tls://0.0.0.0:{port} lets everybody in" in faults_at(f"tls://0.0.0.0:{port}")
        encrypted = faults_at(f"tls://127.0.0.1:{port}")
        assert encrypted.startswith("there are no streams M, J_1, S_1"), encrypted
    finally:
        servers.close()


@pytest.mark.parametrize(
    ("pattern", "subject", "covered"),
    [
        *(("J.1", "J.1", True), ("J.1", "J.2", False), ("J.1", "J.1.x", False), ("J.1.x", "J.1", False)),
        *(("J.*", "J.1", True), ("J.*", "J", False), ("*.1", "J.1", True), ("S.*.whole", "S.1.whole", True)),
        *((">", "J.1", True), ("J.>", "J.1", True), ("J.>", "J.1.x", True), ("J.>", "J", False)),
    ],
)
def test_which_subjects_a_pattern_stands_for(pattern: str, subject: str, covered: bool) -> None:
    assert covers(pattern, subject) is covered


def test_what_a_user_needs_is_all_of_these_subjects() -> None:
    streams = ["M", "J_1", "S_1"]
    assert faults_of({}, streams) == []
    all_of_ours = {"publish": {"allow": ["J.*", "S.>", "M.*", "$JS.API.>"]}, "subscribe": {"allow": ["_INBOX.>"]}}
    assert faults_of(all_of_ours, streams) == []
    assert faults_of({"publish": {"deny": ["J.1"]}}, streams) == ["may not publish to J.1"]
    deaf = {"subscribe": {"allow": ["somewhere.>"]}}
    assert faults_of(deaf, streams) == ["may not subscribe to _INBOX.>, where answers come to"]
    none = {"publish": {"allow": ["nothing"]}}
    more = len(needed(streams)) - 4
    first = "$JS.API.INFO, M.decision, M.state, $JS.API.STREAM.INFO.M"
    assert faults_of(none, streams) == [f"may not publish to {first} and {more} more"]
