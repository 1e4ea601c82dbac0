"""The journal in JetStream under faults of servers, of the network, of strangers and of older owners."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import nats
import pytest
from crc32c import crc32c

from shards.journal import Corrupt, Fenced, Full, Gap, Lost, Overtaken, Unavailable, Unfit
from shards.journal.jetstream import map_log, publisher, record
from shards.journal.jetstream.connection import Access, Connection, endpoint_of
from shards.journal.jetstream.guard import Guard, Shape
from shards.journal.jetstream.journal import JetStreamJournal, Terms
from shards.journal.jetstream.map_log import JetStreamMapLog, MapReader
from shards.journal.jetstream.reader import JetStreamReader
from shards.journal.jetstream.streams import ReadStream, State
from shards.journal.jetstream.witness import Witness
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk
from tests.shards.journal.contract import OWNER, payload_of
from tests.shards.journal.journal_machine import SHARD, START_NS
from tests.shards.journal.nats_cluster import READY_S, NatsCluster
from tests.shards.journal.proxy import Proxy
from tests.shards.journal.test_jetstream_contract import GRANT_NS, PatientJournal

MS = 1_000_000


@pytest.fixture
def streams(cluster: NatsCluster) -> NatsCluster:
    cluster.make(SHARD)
    return cluster


class Clock:
    """Billing time that follows the boot clock."""

    def __init__(self) -> None:
        self._ahead_ns = START_NS - MACHINE_CLOCKS.boot_ns()

    def now_ns(self) -> int:
        return self._ahead_ns + MACHINE_CLOCKS.boot_ns()


def journal_on(
    cluster: NatsCluster, urls: list[str] | None = None, witness: str = "", clock: Clock | None = None
) -> PatientJournal:
    def connect(purpose: str) -> Any:
        return cluster.connect(purpose, urls)

    head_witness = Witness(RealDisk(), witness, MACHINE_CLOCKS.boot_ns)
    return PatientJournal(
        connect, SHARD, Terms(GRANT_NS, 0), head_witness, (clock or Clock()).now_ns, MACHINE_CLOCKS.boot_ns
    )


def raw(cluster: NatsCluster, name: str) -> list[bytes]:
    """Every message of a stream, read through NATS' own client."""
    return [message for _, message in raw_messages(cluster, name)]


def raw_messages(cluster: NatsCluster, name: str) -> list[tuple[str, bytes]]:
    """The same, each behind its subject."""

    async def read() -> list[tuple[str, bytes]]:
        client = await nats.connect(cluster.urls)
        stream = client.jetstream()
        state = (await stream.stream_info(name)).state
        messages = [await stream.get_msg(name, seq) for seq in range(state.first_seq, state.last_seq + 1)]
        await client.close()
        return [(message.subject or "", message.data or b"") for message in messages]

    import asyncio

    return asyncio.run(read())


def test_an_older_owner_that_wakes_up_has_no_instant_in_common_with_the_newer_one(streams: NatsCluster) -> None:
    older, newer = journal_on(streams), journal_on(streams)
    older.open(SHARD, "older")
    older.append(b"one")
    last_granted_ns = older.granted_ns
    newer.waits = True
    began = newer.open(SHARD, "newer")
    assert began.began_ns == last_granted_ns
    assert newer.append(b"two") == 2
    for call in (older.idle_barrier, lambda: older.append(b"stale"), lambda: older.append(b"again")):
        with pytest.raises(Fenced):
            call()
    assert older.granted_ns == last_granted_ns
    assert list(newer.replay(1)) == [(1, b"one"), (2, b"two")]


def test_an_owner_that_beats_is_not_overtaken_and_one_that_has_sealed_need_not_be_waited_for(
    streams: NatsCluster,
) -> None:
    older, newer = journal_on(streams), journal_on(streams)
    older.open(SHARD, "older")
    until_ns = MACHINE_CLOCKS.boot_ns() + 4 * GRANT_NS
    while MACHINE_CLOCKS.boot_ns() < until_ns:
        older.idle_barrier()
        with pytest.raises(Fenced):
            newer.open(SHARD, "newer")
        time.sleep(older.beat_s / 4)
    older.close()
    assert newer.open(SHARD, "newer").epoch == 2


def test_grants_never_overlap_in_the_raw_stream(streams: NatsCluster) -> None:
    clock = Clock()
    for life in range(5):
        journal = journal_on(streams, clock=clock)
        journal.waits = True
        journal.open(SHARD, f"life {life}")
        for number in range(5):
            journal.append(b"%d" % number)
        if life % 2:
            journal.close()
    epochs: dict[int, list[record.Record]] = {}
    walk = record.Walk(SHARD, 0, 0)
    for message in raw(streams, f"J_{SHARD}"):
        unpacked = record.unpack(message)
        walk.take(unpacked)
        epochs.setdefault(unpacked.epoch, []).append(unpacked)
    assert list(epochs) == [1, 2, 3, 4, 5]
    for before, after in zip(epochs.values(), list(epochs.values())[1:], strict=False):
        granted_ns = before[-1].until_ns if before[-1].kind == record.SEAL else max(grant.until_ns for grant in before)
        stamped = [stamp.time_ns for stamp in after if stamp.kind == record.BATCH]
        assert min(stamped) >= granted_ns


@pytest.mark.parametrize("fault", ["lost", "doubled", "hung up"])
def test_an_answer_that_is_lost_or_doubled_changes_nothing(streams: NatsCluster, fault: str) -> None:
    proxies = [Proxy(port) for port in streams.ports]
    try:
        journal = journal_on(streams, [proxy.url for proxy in proxies])
        journal.open(SHARD, OWNER)
        journal.append(b"first")
        struck = threading.Event()

        def answers(data: bytes) -> list[bytes] | None:
            if b'"seq":' not in data or struck.is_set():
                return [data]
            struck.set()
            return {"lost": [], "doubled": [data, data], "hung up": None}[fault]

        expected = [(1, b"first")]
        for number in (2, 3):
            struck.clear()
            for proxy in proxies:
                proxy.answers = answers
            expected.append((journal.append(payload_of(number)), payload_of(number)))
            assert struck.is_set()
        for proxy in proxies:
            proxy.answers = lambda data: [data]
        assert list(journal.replay(1)) == expected
        kinds = [record.unpack(message).kind for message in raw(streams, f"J_{SHARD}")]
        assert kinds == [record.EPOCH, *[record.BATCH] * 3]
        assert (journal._publisher.doubts > 0) == (fault != "doubled")
    finally:
        for proxy in proxies:
            proxy.close()


def test_a_batch_whose_answer_never_comes_is_lost_to_us_and_found_or_not_by_the_next_owner(
    streams: NatsCluster,
) -> None:
    proxy = Proxy(streams.ports[0])
    try:
        journal = journal_on(streams, [proxy.url])
        journal.open(SHARD, OWNER)
        journal.append(b"answered")
        proxy.answers = lambda data: []
        began_ns = MACHINE_CLOCKS.boot_ns()
        with pytest.raises(Lost):
            journal.append(b"unknown")
        assert MACHINE_CLOCKS.boot_ns() - began_ns > publisher.DOUBT_S * 1e9
        with pytest.raises(Lost):
            journal.append(b"never")
    finally:
        proxy.close()
    newer = journal_on(streams)
    newer.waits = True
    assert newer.open(SHARD, "newer").head == 2
    assert list(newer.replay(1)) == [(1, b"answered"), (2, b"unknown")]


@pytest.mark.parametrize("room_bytes", [-1000, 600], ids=["below what there is", "for a beat and no more"])
def test_a_limit_that_is_lowered_below_a_journal_refuses_surely_and_passes_when_it_is_raised(
    streams: NatsCluster, room_bytes: int
) -> None:
    journal, name = journal_on(streams), f"J_{SHARD}"
    journal.open(SHARD, OWNER)
    journal.append(payload_of(1, 5000))
    stored = raw(streams, name)
    streams.limit(name, streams.ask(f"STREAM.INFO.{name}")["state"]["bytes"] + room_bytes)
    for _ in range(2):
        with pytest.raises(Full, match="maximum bytes"):
            journal.append(payload_of(2, 5000))
        assert "full" in journal.no_room
    assert raw(streams, name) == stored
    if room_bytes > 0:
        journal.idle_barrier()
        assert "full" in journal.no_room, "a beat fits, and nothing else"
        assert journal.medium.limit_bytes > journal.medium.used_bytes > 0
    else:
        with pytest.raises(Full):
            journal.idle_barrier()
    streams.limit(name, -1)
    journal.idle_barrier()
    assert (journal.no_room, journal.medium.limit_bytes) == ("", 0)
    assert journal.append(payload_of(2, 5000)) == 2
    assert list(journal.replay(1)) == [(1, payload_of(1, 5000)), (2, payload_of(2, 5000))]
    assert journal.medium.leader == f"server-{streams.leader(name)}"
    assert journal.medium.round_trip_ns > 0


def test_a_large_batch_is_there_once_its_last_part_is(streams: NatsCluster) -> None:
    large = bytes(range(256)) * 12_000  # three megabytes: NATS takes one
    journal = journal_on(streams)
    journal.open(SHARD, OWNER)
    assert journal.append(b"small") == 1
    assert journal.append(large) == 2
    assert list(journal.replay(1)) == [(1, b"small"), (2, large)]
    half = large[: record.PART_BYTES_MAX]
    journal._put(record.BATCH, 0, 0, 3, journal._chain, crc32c(half, journal._chain), journal.last_time_ns, half)
    newer = journal_on(streams)
    newer.waits = True
    assert newer.open(SHARD, "newer").head == 2, "a part alone is nothing"
    assert newer.append(b"three") == 3
    assert [payload for _, payload in newer.replay(1)] == [b"small", large, b"three"]
    assert max(len(message) for message in raw(streams, f"J_{SHARD}")) <= record.RECORD_BYTES_MAX


def test_a_stranger_on_the_subject_is_named_and_nothing_is_served_behind_him(streams: NatsCluster) -> None:
    journal = journal_on(streams)
    journal.open(SHARD, OWNER)
    journal.append(b"one")
    streams.publish(f"J.{SHARD}", b"something else")
    with pytest.raises(Corrupt, match=f"no owner writes to J.{SHARD}"):
        journal.append(b"two")
    newer = journal_on(streams)
    newer.waits = True
    with pytest.raises(Corrupt, match="sequence 3"):
        newer.open(SHARD, "newer")


def test_a_right_record_of_a_wrong_epoch_is_damage(streams: NatsCluster) -> None:
    journal = journal_on(streams)
    journal.open(SHARD, OWNER)
    journal.append(b"one")
    chain = crc32c(b"x", journal._chain)
    alien = record.Record(
        record.BATCH, 1, 0, SHARD, 9, 2, journal._chain, chain, journal.last_time_ns, journal.granted_ns, b"x"
    )
    streams.publish(f"J.{SHARD}", record.pack(alien))
    with pytest.raises(Fenced, match="epoch 9"):
        journal.append(b"two")
    newer = journal_on(streams)
    newer.waits = True
    newer.open(SHARD, "newer")
    with pytest.raises(Corrupt, match="epoch 9 stands in epoch 1"):
        list(newer.replay(1))
    with pytest.raises(Corrupt):
        list(JetStreamReader(streams.connect(), SHARD, MACHINE_CLOCKS.boot_ns).replay(1))


def test_a_wrong_epoch_is_seen_also_right_behind_the_snapshot_that_a_replay_begins_at(streams: NatsCluster) -> None:
    journal = journal_on(streams)
    journal.open(SHARD, OWNER)
    journal.append(b"one")
    journal.save_snapshot(1, [b"as of one"])
    chain = crc32c(b"x", journal._chain)
    alien = record.Record(
        record.BATCH, 1, 0, SHARD, 9, 2, journal._chain, chain, journal.last_time_ns, journal.granted_ns, b"x"
    )
    streams.publish(f"J.{SHARD}", record.pack(alien))
    newer = journal_on(streams)
    newer.waits = True
    newer.open(SHARD, "newer")
    assert newer.load_snapshot() is not None
    with pytest.raises(Corrupt, match="epoch 9 stands in epoch 1"):
        list(newer.replay(2))


def test_a_stream_that_has_lost_its_end_is_refused_by_a_host_that_has_seen_it(
    streams: NatsCluster, data_dir: Path
) -> None:
    witness = str(data_dir / "seen")
    journal = journal_on(streams, witness=witness)
    journal.open(SHARD, OWNER)
    for number in range(1, 6):
        journal.append(payload_of(number))
    journal.save_snapshot(5, [b"five"])
    journal.close()
    messages = raw(streams, f"J_{SHARD}")
    for lost in (4, 1):
        streams.make(SHARD)
        for message in messages[: len(messages) - lost]:
            streams.publish(f"J.{SHARD}", message)
        newer = journal_on(streams, witness=witness)
        newer.waits = True
        with pytest.raises(Corrupt, match="its end is lost"):
            newer.open(SHARD, "newer")
    streams.make(SHARD)
    for message in messages:
        streams.publish(f"J.{SHARD}", message)
    assert journal_on(streams, witness=witness).open(SHARD, "newer").head == 5


def test_a_map_that_has_lost_its_end_is_refused_by_a_host_that_has_seen_it(
    cluster: NatsCluster, data_dir: Path
) -> None:
    def opened() -> JetStreamMapLog:
        head_witness = Witness(RealDisk(), str(data_dir / "seen"), MACHINE_CLOCKS.boot_ns)
        return JetStreamMapLog(cluster.connect(), MACHINE_CLOCKS.boot_ns, head_witness)

    cluster.make(0)
    log = opened()
    load(log)
    for version, payload in enumerate((b"create", b"assign", b"pin")):
        decide(log, version, payload)
    messages = raw(cluster, map_log.NAME)
    cluster.make(0)
    for message in messages[:2]:
        cluster.publish(map_log.DECISION, message)
    for map_log_opened in (log, opened()):
        with pytest.raises(Corrupt, match="M ends at sequence 2; this host has seen sequence 3: its end is lost"):
            load(map_log_opened)
    map_log_blind = JetStreamMapLog(cluster.connect(), MACHINE_CLOCKS.boot_ns)
    load(map_log_blind)
    decide(map_log_blind, 2, b"something else")
    with pytest.raises(Corrupt, match="M is another at sequence 3 than this host has seen: its end was lost"):
        load(opened())


def test_what_a_host_has_seen_of_a_stream_it_does_not_forget(data_dir: Path) -> None:
    def witness_of_stream() -> Witness:
        return Witness(RealDisk(), str(data_dir / "seen"), MACHINE_CLOCKS.boot_ns)

    witness_of_stream().saw(9, 77)
    witness_of_stream().saw(5, 55, at_once=True)  # as the next life of a daemon does, on a stream that has lost its end
    with pytest.raises(Corrupt, match="this host has seen sequence 9"):
        witness_of_stream().check(witness_of_stream().last_seen(), "J_1", 5, lambda sequence: 55)
    witness_of_stream().check(witness_of_stream().last_seen(), "J_1", 9, lambda sequence: 77)


def test_of_a_map_that_was_made_anew_the_one_before_is_no_evidence(data_dir: Path) -> None:
    head_witness = Witness(RealDisk(), str(data_dir / "seen"), MACHINE_CLOCKS.boot_ns)
    head_witness.saw(9, 77, at_once=True, nonce="first")
    with pytest.raises(Corrupt, match="this host has seen sequence 9"):
        head_witness.check(head_witness.last_seen(), "M", 0, lambda sequence: 0, "first")
    head_witness.check(head_witness.last_seen(), "M", 0, lambda sequence: 0, "second")
    head_witness.saw(2, 22, at_once=True, nonce="second")
    with pytest.raises(Corrupt, match="this host has seen sequence 2"):
        head_witness.check(head_witness.last_seen(), "M", 1, lambda sequence: 0, "second")
    head_witness.check(head_witness.last_seen(), "M", 2, lambda sequence: 22, "second")


def test_what_another_process_of_the_host_sees_meanwhile_is_no_end_that_was_lost(
    cluster: NatsCluster, data_dir: Path
) -> None:
    class Meanwhile(RealDisk):
        """Where the other process decides right before this one looks at what was seen."""

        def open(self, path: str, *, write: bool = False) -> int:
            decide(daemon, daemon.version, b"pin")
            return super().open(path, write=write)

    def opened(disk: RealDisk) -> JetStreamMapLog:
        head_witness = Witness(disk, str(data_dir / "seen"), MACHINE_CLOCKS.boot_ns)
        return JetStreamMapLog(cluster.connect(), MACHINE_CLOCKS.boot_ns, head_witness)

    cluster.make(0)
    daemon = opened(RealDisk())
    load(daemon)
    decide(daemon, 0, b"create")
    command = opened(Meanwhile())
    load(command)
    assert daemon.version > 1


def test_two_snapshots_of_one_position_are_whole_from_the_newer_one(streams: NatsCluster) -> None:
    """As two planned ends of a shard leave them where nothing happened in between."""
    first, second, third, last = (journal_on(streams) for _ in range(4))
    second.waits = third.waits = last.waits = True
    first.open(SHARD, OWNER)
    first.append(payload_of(1))
    for journal in (first, second):
        if journal is second:
            journal.open(SHARD, OWNER)
        journal.save_snapshot(1, [b"as of 1"])
        journal.trim(1)
        journal.close()
    third.open(SHARD, OWNER)
    third.append(payload_of(2))
    last.open(SHARD, "last")
    assert list(last.replay(2)) == [(2, payload_of(2))]


def test_an_older_owner_that_wakes_up_puts_no_snapshot_above_those_of_the_newer_one(streams: NatsCluster) -> None:
    """As a host does that was stopped, and told to end meanwhile: its last snapshot stands below what was trimmed."""
    older, newer, last = (journal_on(streams) for _ in range(3))
    older.open(SHARD, OWNER)
    for number in (1, 2):
        older.append(payload_of(number))
    newer.waits = last.waits = True
    newer.open(SHARD, "newer")
    for number in range(3, 7):
        newer.append(payload_of(number))
        newer.save_snapshot(number, [b"as of %d" % number])
    newer.trim(6)
    with pytest.raises(Fenced, match="epoch 2 saves snapshots"):
        older.save_snapshot(2, [b"as of 2"])
    newer.close()
    last.open(SHARD, "last")
    snapshot = last.load_snapshot()
    assert snapshot is not None
    assert (snapshot.position, list(snapshot.chunks), list(last.replay(7))) == (6, [b"as of 6"], [])


@pytest.mark.parametrize("saved_again", [False, True], ids=["of another position", "of the same position"])
def test_an_older_snapshot_under_a_newer_manifest_is_refused(streams: NatsCluster, saved_again: bool) -> None:
    journal = journal_on(streams)
    journal.open(SHARD, OWNER)
    journal.append(payload_of(1))
    journal.save_snapshot(1, [b"as of 1"])
    if not saved_again:
        journal.append(payload_of(2))
    journal.save_snapshot(journal.head, [b"as of %d, and saved later" % journal.head])
    journal.close()
    older, first, newer, second = snapshots_of(streams)
    assert newer != older
    put_snapshots(streams, [older, first, older, second])
    with pytest.raises(Corrupt, match="under the manifest of position"):
        journal_on(streams).open(SHARD, OWNER)
    with pytest.raises(Corrupt, match="under the manifest of position"):
        list(JetStreamReader(streams.connect(), SHARD, MACHINE_CLOCKS.boot_ns).chunks(journal.head))


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(streams: NatsCluster) -> None:
    journal = journal_on(streams)
    journal.open(SHARD, OWNER)
    for number in (1, 2):
        journal.append(payload_of(number))
        journal.save_snapshot(number, [b"as of %d" % number])
    journal.close()
    older, first, newer, second = snapshots_of(streams)
    put_snapshots(streams, [older, first, newer[:-1] + bytes([newer[-1] ^ 1]), second])
    again = journal_on(streams)
    again.open(SHARD, OWNER)
    loaded = again.load_snapshot()
    assert loaded is not None
    assert (loaded.position, list(loaded.chunks)) == (1, [b"as of 1"])
    assert "passed over" in again.warnings[0]


def snapshots_of(streams: NatsCluster) -> tuple[bytes, bytes, bytes, bytes]:
    """The shard's two snapshots, of one piece each: the older one's piece and manifest, and the newer one's. A message
    whose acknowledgement was late may stand there twice.
    """
    messages = raw_messages(streams, f"S_{SHARD}")
    pieces, manifests = (
        list(dict.fromkeys(message for subject, message in messages if subject == wanted))
        for wanted in (f"S.{SHARD}", f"S.{SHARD}.whole")
    )
    (older, newer), (first, second) = pieces, manifests
    return older, first, newer, second


def put_snapshots(streams: NatsCluster, messages: list[bytes]) -> None:
    """The shard's streams anew, with the same log, and these as what was saved: a piece, its manifest, and again."""
    log_messages = raw(streams, f"J_{SHARD}")
    streams.make(SHARD)
    for subject, message in zip(("", ".whole") * 2, messages, strict=True):
        streams.publish(f"S.{SHARD}{subject}", message)
    for message in log_messages:
        streams.publish(f"J.{SHARD}", message)


# -- a stream that is said to be absent --------------------------------------------------------------------------------


STATE_TOLD = rb'(MSG \S+ \d+) \d+\r\n\{"type":"io\.nats\.jetstream\.api\.v1\.stream_info_response"'
ABSENT = (
    b'{"type":"io.nats.jetstream.api.v1.stream_info_response",'
    b'"error":{"code":404,"err_code":10059,"description":"stream not found"}}'
)


class Forgetful:
    """What the servers behind some proxies say, and instead "there is no such stream" to what was asked of one."""

    def __init__(self, cluster: NatsCluster) -> None:
        self.proxies = [Proxy(port) for port in cluster.ports]
        self.urls = [proxy.url for proxy in self.proxies]
        self.said: list[int] = []  # by which server, each time
        self.times = 0  # how often it is said still
        self.by = {0, 1, 2}
        for number, proxy in enumerate(self.proxies):
            proxy.answers = partial(self._answers, number)

    def connect(self, purpose: str) -> Connection:
        """A connection that asks server 0 first."""
        access = Access(tuple(map(endpoint_of, self.urls)), None, "")
        return Connection(
            access, purpose, lambda bits: 0 if bits == 16 else secrets.randbits(bits), MACHINE_CLOCKS.boot_ns
        )

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()

    def _answers(self, number: int, data: bytes) -> list[bytes]:
        state = re.match(STATE_TOLD, data)
        if state is None or number not in self.by or len(self.said) >= self.times:
            return [data]
        self.said.append(number)
        return [state[1] + b" %d\r\n%b\r\n" % (len(ABSENT), ABSENT)]


@pytest.fixture
def forgetful(cluster: NatsCluster) -> Iterator[Forgetful]:
    cluster.make(0)
    cluster.make(SHARD)
    servers = Forgetful(cluster)
    try:
        yield servers
    finally:
        servers.close()


@pytest.mark.parametrize(("by", "times"), [({0, 1, 2}, 5), ({0}, 1000)], ids=["at first", "by one for ever"])
def test_a_stream_that_a_new_leader_does_not_know_yet_is_not_taken_for_absent(
    forgetful: Forgetful, by: set[int], times: int
) -> None:
    forgetful.by, forgetful.times = by, times
    log = JetStreamMapLog(forgetful.connect("map"), MACHINE_CLOCKS.boot_ns)
    assert load(log) == (0, [])
    lies_told = len(forgetful.said)
    assert lies_told > 0
    forgetful.times += lies_told
    head_witness = Witness(RealDisk(), "", MACHINE_CLOCKS.boot_ns)
    terms = Terms(GRANT_NS, 0)
    journal = PatientJournal(forgetful.connect, SHARD, terms, head_witness, Clock().now_ns, MACHINE_CLOCKS.boot_ns)
    assert journal.open(SHARD, OWNER).epoch == 1
    assert len(forgetful.said) > lies_told


def test_a_stream_that_is_absent_is_named_once_every_server_has_said_so(
    cluster: NatsCluster, forgetful: Forgetful
) -> None:
    for name in ("M", f"J_{SHARD}"):
        cluster.ask(f"STREAM.DELETE.{name}")
    forgetful.times = 1000  # so that it is counted, too, over which of the servers it was said
    log = JetStreamMapLog(cluster.connect("test", forgetful.urls), MACHINE_CLOCKS.boot_ns)
    with pytest.raises(Unfit, match=r"there is no stream M: .*`billing cluster init`"):
        log.load("one")
    assert set(forgetful.said) == {0, 1, 2}
    forgetful.said.clear()
    with pytest.raises(Unfit, match=rf"there is no stream J_{SHARD}: .*`billing cluster init`"):
        journal_on(cluster, forgetful.urls).open(SHARD, OWNER)
    assert set(forgetful.said) == {0, 1, 2}


def test_the_guard_finds_streams_that_a_new_leader_does_not_know_yet_and_names_all_that_are_absent(
    cluster: NatsCluster, forgetful: Forgetful
) -> None:
    cluster.make(1)

    def guard() -> Guard:
        connection = cluster.connect("test", forgetful.urls)
        endpoints = tuple(map(endpoint_of, forgetful.urls))
        return Guard(connection, endpoints, Shape(1, 3, 32, "crc32c"), MACHINE_CLOCKS.boot_ns)

    forgetful.times = 4
    assert guard().check()[0] == "trial"
    assert len(forgetful.said) == 4
    cluster.ask("STREAM.DELETE.M")
    cluster.ask("STREAM.DELETE.S_1")
    with pytest.raises(Unfit, match="there are no streams M, S_1: make them"):
        guard().check()


class Owner:
    """Appends as a worker does: what is surely not written is tried again; after a batch that is lost the next owner
    opens the journal, and finds it or not.
    """

    def __init__(self, cluster: NatsCluster) -> None:
        self._cluster = cluster
        self._open()

    def _open(self) -> None:
        self.journal = journal_on(self._cluster)
        self.journal.waits = True
        until_ns = MACHINE_CLOCKS.boot_ns() + int(READY_S * 1e9)
        while True:
            try:
                self.head = self.journal.open(SHARD, OWNER).head
                return
            except (Unavailable, Lost):
                if MACHINE_CLOCKS.boot_ns() > until_ns:
                    raise

    def append(self, payload: bytes) -> int:
        """The batch's position."""
        position = self.head + 1
        while self.head < position:
            try:
                self.head = self.journal.append(payload)
            except Unavailable:
                assert self.journal._publisher._unsettled is None
            except Lost:
                self._open()
        return self.head


def test_killed_and_restarted_servers_lose_nothing_that_was_appended(streams: NatsCluster) -> None:
    owner = Owner(streams)
    expected: list[tuple[int, bytes]] = []
    for turn in range(2):
        leader = streams.leader(f"J_{SHARD}")
        streams.kill(leader if turn % 2 else (leader + 1) % 3)
        for _ in range(5):
            payload = payload_of(len(expected) + 1)
            expected.append((owner.append(payload), payload))
        for number, process in enumerate(streams.processes):
            if process is None:
                streams.start_server(number)
        streams.wait_ready()
    assert list(owner.journal.replay(1)) == expected
    reader = JetStreamReader(streams.connect(), SHARD, MACHINE_CLOCKS.boot_ns)
    assert (reader.first, reader.head) == (1, len(expected))
    assert list(reader.replay(1)) == expected
    with pytest.raises(Gap):
        reader.replay(len(expected) + 2)


class TrimmedInBetween(ReadStream):
    """A stream whose owner trims it right after somebody has asked for its bounds, once."""

    trims_below = 0

    def state(self) -> State:
        state = super().state()
        if self.trims_below:
            self.purge(self.trims_below)
            self.trims_below = 0
        return state


def test_a_log_that_is_trimmed_while_somebody_looks_is_looked_at_again(streams: NatsCluster) -> None:
    journal = journal_on(streams)
    journal.open(SHARD, OWNER)
    expected = [(journal.append(payload_of(number)), payload_of(number)) for number in range(1, 9)]
    reader = JetStreamReader(streams.connect(), SHARD, MACHINE_CLOCKS.boot_ns)
    bounds = reader._log.state()
    reader._log = log = TrimmedInBetween(streams.connect(), f"J_{SHARD}", 5.0, MACHINE_CLOCKS.boot_ns)
    log.trims_below = bounds.first + 3
    assert reader.first == 3, "the opening and two batches are gone"
    log.trims_below = bounds.first + 4
    assert list(reader.replay(6)) == expected[5:]
    log.trims_below = bounds.first + 5
    with pytest.raises(Gap):
        reader.replay(3)
    reader.close()
    log.connection.close()


# -- the map ----------------------------------------------------------------------------------------------------------


T = TypeVar("T")


def patiently(ask: Callable[[], T]) -> T:
    """As a supervisor does it: where the log is unavailable, it is asked again."""
    until_ns = MACHINE_CLOCKS.boot_ns() + int(READY_S * 1e9)
    while True:
        try:
            return ask()
        except Unavailable:
            if MACHINE_CLOCKS.boot_ns() > until_ns:
                raise


def load(log: JetStreamMapLog) -> tuple[int, list[bytes]]:
    return patiently(lambda: log.load("one"))


def decide(log: JetStreamMapLog, version: int, payload: bytes) -> int:
    return patiently(lambda: log.decide(version, payload))


def test_of_two_supervisors_that_decide_at_once_the_second_one_learns_what_the_first_one_did(
    cluster: NatsCluster,
) -> None:
    cluster.make(0)
    first, two = (JetStreamMapLog(cluster.connect(), MACHINE_CLOCKS.boot_ns) for _ in range(2))
    followed: list[tuple[int, bytes]] = []
    two.follow(lambda version, payload: followed.append((version, payload)))
    assert load(first) == load(two) == (0, [])
    assert decide(first, 0, b"create") == 1
    with pytest.raises(Overtaken) as overtaken:
        decide(two, 0, b"create otherwise")
    assert overtaken.value.version == 1
    assert load(two) == (1, [b"create"])
    assert decide(two, 1, b"assign") == 2
    with pytest.raises(Overtaken):
        decide(first, 1, b"pin")
    assert load(first) == (2, [b"create", b"assign"])
    assert decide(first, 2, b"pin") == 3
    load(two)
    assert followed == [(3, b"pin")]


def test_a_map_is_read_from_another_server_where_one_says_nothing(cluster: NatsCluster) -> None:
    cluster.make(0)
    writer = JetStreamMapLog(cluster.connect(), MACHINE_CLOCKS.boot_ns)
    load(writer)
    decide(writer, 0, b"create")
    proxies = {proxy.url: proxy for proxy in map(Proxy, cluster.ports)}
    try:
        connection = cluster.connect("test", list(proxies))
        log = JetStreamMapLog(connection, MACHINE_CLOCKS.boot_ns)
        assert load(log) == (1, [b"create"])
        silent = proxies[connection.server]
        silent.answers = lambda data: []
        assert load(log) == (1, [b"create"])
        assert connection.server != silent.url
    finally:
        for proxy in proxies.values():
            proxy.close()


def test_what_was_compacted_is_one_state_and_what_follows_it(cluster: NatsCluster) -> None:
    cluster.make(0)
    log = JetStreamMapLog(cluster.connect(), MACHINE_CLOCKS.boot_ns)
    load(log)
    for version in range(5):
        decide(log, version, b"%d" % version)
    patiently(lambda: log.compact(5, b"all five"))
    decide(log, 5, b"six")
    again = JetStreamMapLog(cluster.connect(), MACHINE_CLOCKS.boot_ns)
    assert load(again) == (6, [b"all five", b"six"])
    reader = MapReader(cluster.connect(), MACHINE_CLOCKS.boot_ns)
    assert (reader.first, reader.head, list(reader.replay(6))) == (6, 6, [(6, b"six")])
    assert [(row.position, list(reader.chunks(row.position))) for row in reader.snapshots()] == [(5, [b"all five"])]
    assert len(raw(cluster, map_log.NAME)) == 2
    cluster.publish(map_log.DECISION, b"a stranger's")
    with pytest.raises(Corrupt, match="neither a decision nor a state"):
        load(JetStreamMapLog(cluster.connect(), MACHINE_CLOCKS.boot_ns))


def test_the_journal_is_as_it_says(streams: NatsCluster) -> None:
    journal = journal_on(streams)
    assert isinstance(journal, JetStreamJournal)
    journal.open(SHARD, OWNER)
    journal.append(b"x")
    assert 0 < journal.granted_ns - journal.last_time_ns <= GRANT_NS + 1000 * MS
    assert journal.beat_s == GRANT_NS / 4e9
