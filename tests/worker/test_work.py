"""The work that speed rests on, counted: batches and writes of a read, calls and memory of a command. Never seconds."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgpack
import pytest

from billing.api.auth import Guard
from billing.api.door import Door, Limits
from billing.api.msgpack_rpc import Connection
from billing.api.replies import reply_of
from billing.ledger import commands as ops
from billing.ledger.commands import Command
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.buckets import bucket_id_of, hashed_into
from shards.shard import Shard

NOW_NS = 1_700_000_000_000_000_000
USERS = [b"user_%d" % number for number in range(500)]
BUCKETS = 7


class Client(asyncio.Transport):
    """The far end of a connection, on loopback: keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits here."""


class Gate:
    """What stands behind a door: a shard, and nothing that waits."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.bucket_of = hashed_into(BUCKETS)

    def arrived(self) -> None:
        """All instants are one here."""

    def submit(self, caller: Any, token: Any, bucket_id: int, command: Command) -> None:
        self.shard.receive(caller, token, bucket_id, command, NOW_NS)

    def submit_all(self, requests: Sequence[tuple[Any, Any, int, Command]]) -> None:
        self.shard.receive_all(requests, NOW_NS)

    def before_turn(self, work: Callable[[], None]) -> None:
        work()

    read = submit

    def operate(self, caller: Any, token: Any, operation: Any) -> None:
        raise AssertionError("nobody asks about the whole daemon here")


@pytest.fixture
def shard() -> Shard:
    """A shard in which time passes, with 500 accounts, and nothing that is not durable."""
    machine = BillingMachine(Rules(accrue=False, request_ids_per_bucket=10, restore=False), reply_of)
    machine.start(NOW_NS)
    shard = Shard(1, machine)
    for bucket_id in range(1, BUCKETS + 1):
        shard.adopt(bucket_id, 1)
    for user_id in USERS:
        first = (ops.TOP_UP, user_id, 10**15, 0, 0, b"", b"", b"", b"", b"")
        machine.apply(bucket_id_of(user_id, BUCKETS), first, NOW_NS)
    ready = shard.take_ready()
    assert ready is not None
    shard.synced(ready)
    return shard


def everyday(rounds: int) -> Iterator[tuple[int, Command]]:
    """(bucket, command) of every day, for all users in turn."""
    for number in range(rounds):
        for user_id in USERS:
            bucket_id = bucket_id_of(user_id, BUCKETS)
            yield bucket_id, (ops.TOP_UP, user_id, 10**9 + number, 0, 0, b"", b"", b"", b"", b"")
            yield bucket_id, (ops.SET_RATE, user_id, 3600 + number, -1, -1, b"", b"", b"", b"", b"")
            yield bucket_id, (ops.DEBIT, user_id, 10**6 + number, 0, 0, b"", b"", b"", b"", b"")


def test_all_commands_of_a_read_are_one_batch_and_one_write(shard: Shard) -> None:
    connection = Connection(Door(Gate(shard), Guard(), lambda: 1, dict, Limits(trial_in_flight_max=4096)))
    client = Client()
    connection.connection_made(client)
    requests = [msgpack.packb([0, number, "top_up", [user_id, 5]]) for number, user_id in enumerate(USERS)]
    connection.data_received(b"".join(requests))
    ready = shard.take_ready()
    assert ready is not None
    assert ready.records == len(ready.replies) == len(USERS)
    for caller, token, reply in ready.replies:
        caller.answer(token, reply)
    shard.synced(ready)
    assert client.written == []
    for caller in {caller for caller, _, _ in ready.replies}:
        caller.flush()
    assert shard.take_ready() is None, "one batch holds them all"
    assert len(client.written) == 1
    unpacker = msgpack.Unpacker()
    unpacker.feed(client.written[0])
    assert [message[1] for message in unpacker] == list(range(len(USERS)))


def test_a_command_of_every_day_takes_few_calls(shard: Shard) -> None:
    machine, calls = shard.machine, 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    commands = list(everyday(2))
    sys.setprofile(count)
    try:
        for bucket_id, command in commands:
            machine.apply(bucket_id, command, NOW_NS)
    finally:
        sys.setprofile(None)
    assert calls / len(commands) < 5.5, "machine, ledger, the fast way, the reply; and where it is armed, the wheel"


def test_a_request_of_every_day_takes_few_calls_from_its_bytes_to_its_reply(shard: Shard) -> None:
    connection = Connection(Door(Gate(shard), Guard(), lambda: 1, dict, Limits(trial_in_flight_max=4096)))
    connection.connection_made(Client())
    requests = [msgpack.packb([0, number, "top_up", [user_id, 5]]) for number, user_id in enumerate(USERS)]
    data, calls = b"".join(requests), 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        connection.data_received(data)
        ready = shard.take_ready()
        assert ready is not None
        for caller, token, reply in ready.replies:
            caller.answer(token, reply)
        shard.synced(ready)
        connection.flush()
    finally:
        sys.setprofile(None)
    assert calls / len(requests) < 9, "frame, parser, bucket, machine, ledger, fast way, reply, answer; the rest a read"


def test_a_cutoff_of_a_storm_takes_few_calls_of_wheel_ledger_and_shard(shard: Shard) -> None:
    """All users run out at one instant, a few levels up the wheel; their calls begin and end in pieces of sixteen."""
    machine, due_ns, calls = shard.machine, NOW_NS + 3 * 10**9, 0
    places = [(bucket_id_of(user_id, BUCKETS), user_id) for user_id in USERS]
    for bucket_id, user_id in places:
        machine.apply(bucket_id, (ops.DEBIT, user_id, 10**15 - 3 * 10**9, 0, 0, b"", b"", b"", b"", b""), NOW_NS)
        a_nano_a_nanosecond = (ops.SET_RATE, user_id, 3600 * 10**9, -1, -1, b"", b"", b"", b"", b"")
        machine.apply(bucket_id, a_nano_a_nanosecond, NOW_NS)

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        now_ns = NOW_NS
        while now_ns < due_ns:
            now_ns = machine.next_due_ns()
            while shard.tick(now_ns, 48):
                pass
        for op in (ops.CUTOFF_STARTED, ops.CUTOFF_DELIVERED):
            for first in range(0, len(places), 16):
                part = places[first : first + 16]
                shard.report([(place[0], (op, place[1], 1, 0, 0, *[b""] * 5)) for place in part], due_ns)
    finally:
        sys.setprofile(None)
    assert len(machine.notices) == len(USERS)
    assert calls / len(USERS) < 12, "filed on a lower level; run out, with its cutoff; machine, ledger, fast way"


def test_commands_leave_no_memory_behind(shard: Shard) -> None:
    machine = shard.machine
    for bucket_id, command in everyday(2):  # timers and totals are there
        machine.apply(bucket_id, command, NOW_NS)
    machine.records.clear()
    commands = list(everyday(4))
    gc.collect()
    before = sys.getallocatedblocks()
    for bucket_id, command in commands:
        machine.apply(bucket_id, command, NOW_NS)
        machine.records.clear()
    after = sys.getallocatedblocks()
    assert after - before < len(commands) // 10, "less than one for ten commands, which other threads may have kept"


def test_an_account_adds_nothing_that_the_collector_walks(shard: Shard) -> None:
    machine = shard.machine
    gc.collect()
    before = len(gc.get_objects())
    for number in range(5000):
        user_id = b"another_%d" % number
        bucket_id = bucket_id_of(user_id, BUCKETS)
        machine.apply(bucket_id, (ops.TOP_UP, user_id, 10**12, 0, 0, b"", b"", b"", b"", b""), NOW_NS)
        machine.apply(bucket_id, (ops.SET_RATE, user_id, 3600, -1, -1, b"", b"", b"", b"", b""), NOW_NS)
        machine.records.clear()
    gc.collect()
    assert len(gc.get_objects()) - before < 100
