"""A client that asks and never reads costs at most 256 KiB, in the worker and in the kernel together, whatever it asks.

Counted is what is held for it while it stands there: by Python's own account of its memory (decoder, input that was
read, replies that cannot leave), and by the kernel's of the socket (its send queue with all that belongs to it).
"""

from __future__ import annotations

import gc
import socket
import struct
import tracemalloc
from collections import deque
from contextlib import suppress
from typing import Any, cast

import msgpack
import msgspec
import pytest

from billing.api.door import Limits
from billing.api.msgpack_rpc import Connection
from shards.system.host import bound_peers
from tests.api.outside import DoorHarness, open_harness

COST_BYTES_MAX = 256 * 1024
CLIENTS = 8
SENT_BYTES = 1_000_000  # at once, in whole frames
SO_MEMINFO = 55  # Python has no name for it
SEND_QUEUE = 5  # of its numbers, the bytes of the send queue

LONG = "u" * 128
REPLY = {f"a_field_of_a_reply_{number:02}": 2**62 for number in range(16)}
ASKED: dict[str, list[Any]] = {
    "commands": ["top_up", [LONG, 5]],
    "commands encoded ahead": ["debit", [LONG, 5]],
    "questions": ["get_account", [LONG]],
    "what the door answers itself": ["methods", []],
    "what is refused": ["top_up", [LONG, -5]],
    "what nobody knows": ["x" * 4000, []],
    "long frames": ["top_up", [LONG, 5, {"message": "x" * 1000, "request_id": "r" * 64}]],
}


def deaf(harness: DoorHarness) -> list[socket.socket]:
    """Clients whose kernels take little."""
    clients = []
    for _ in range(CLIENTS):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(harness.address)
        client.setblocking(False)
        clients.append(client)
    return clients


async def ask_until_nobody_listens(harness: DoorHarness, clients: list[socket.socket], requests: bytes) -> None:
    """Sends for as long as anything is taken, whole frames one after the other."""
    quiet, ahead = 0, dict.fromkeys(clients, 0)
    while quiet < 3:
        sent = 0
        for client, at in ahead.items():
            with suppress(BlockingIOError):
                sent_bytes = client.send(memoryview(requests)[at:])
                ahead[client] = (at + sent_bytes) % len(requests)
                sent += sent_bytes
        await harness.settle()
        quiet = 0 if sent else quiet + 1


def send_queues(harness: DoorHarness) -> list[int]:
    """What the kernel holds of each connection's replies, in bytes of its memory."""
    queues = []
    for connection in cast(set[Connection], harness.door.connections):
        assert connection._transport is not None
        plain = connection._transport.get_extra_info("socket")
        queues.append(struct.unpack("9I", plain.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[SEND_QUEUE])
    return queues


@pytest.mark.parametrize("kind", ASKED)
async def test_a_client_that_never_reads_costs_little(kind: str) -> None:
    patient = Limits(write_stall_ns=3_600 * 10**9, frame_deadline_ns=3_600 * 10**9)
    async with open_harness(patient) as harness:  # on a busy machine, too, nobody is dropped
        assert harness.server is not None
        for listener in harness.server.sockets:
            bound_peers(listener)
        harness.gate.asked = deque(maxlen=1)  # the fake's own memory
        harness.gate.replies |= {"1": REPLY, "get_account": REPLY, "4": msgspec.Raw(msgspec.msgpack.encode(REPLY))}
        requests = b"".join(msgpack.packb([0, number, *ASKED[kind]]) for number in range(200))
        requests *= SENT_BYTES // len(requests) + 1
        warm = deaf(harness)  # what is made once, for all, is made
        await ask_until_nobody_listens(harness, warm, requests)
        clients = []
        gc.collect()
        tracemalloc.start()
        try:
            clients = deaf(harness)
            await ask_until_nobody_listens(harness, clients, requests)
            gc.collect()
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        queues = send_queues(harness)
        assert len(queues) == 2 * CLIENTS, "nobody was dropped yet"
        assert min(queues) > 30_000, "the kernel is full"
        assert all(connection._stalled_since_ns for connection in cast(set[Connection], harness.door.connections))
        assert held / CLIENTS + max(queues) <= COST_BYTES_MAX
        assert peak / CLIENTS + max(queues) <= COST_BYTES_MAX, "nor before it stood there"
        for client in (*warm, *clients):
            client.close()
