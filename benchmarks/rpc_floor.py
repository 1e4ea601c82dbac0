"""What the door alone costs: a worker that does nothing behind a real one, so the floor of every figure with a worker.

A server process runs the door on uvloop over a gate that answers each read's requests at its end with one constant map
(the size of a real reply). This process sends the same frames, pipelined, over a loopback connection, and prints
operations a second and, from the server's own CPU clock, microseconds of server CPU per operation. The second figure
includes the kernel's part of reading and writing the socket.

    python -m benchmarks.rpc_floor --seconds 5 --pipeline 256
    python -m benchmarks.rpc_floor --door tarantool --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any

import msgpack
import uvloop

from billing.api.auth import Guard
from billing.api.door import Door
from billing.api.iproto import protocol
from billing.api.iproto.connection import connection_factory
from billing.api.msgpack_rpc import Connection
from shards.buckets import bucket_id_of

INT = 1_700_000_000_000_000_000
REPLY = {
    "user_id": "user_012345",
    "bucket_id": 477,
    "state": "active",
    "balance_nanos": 123_456_789_000,
    "credit_limit_nanos": 0,
    "available_nanos": 123_456_789_000,
    "rate_nanos_per_hour": 3_600_000_000,
    "rate_nanos_per_second": 1_000_000,
    "exhausts_at_ns": INT,
    "runway_ns": 123_456_789_000_000,
    "exhaustion_seq": 0,
    "entry_id": 12,
    "at_ns": INT,
    "replayed": False,
}


class NullGate:
    """Answers what one turn of the loop brought at the end of it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Any]] = []

    def arrived(self) -> None:
        """This gate stamps nothing."""

    def bucket_of(self, key: bytes) -> int:
        return bucket_id_of(key, 3000)

    def submit(self, caller: Any, token: Any, bucket_id: int, command: Any) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        self._waiting.append((caller, token))

    def submit_all(self, caller: Any, requests: Sequence[tuple[Any, int, Any]]) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        self._waiting += [(caller, token) for token, _, _ in requests]

    read = operate = submit

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for caller, token in waiting:
            caller.answer(token, REPLY)
        for caller in {caller for caller, _ in waiting}:
            caller.flush()


def serve(pipe: Pipe, door_name: str = "rpc") -> None:
    """The server process with one door: tells its port, then its CPU seconds whenever it is asked."""

    async def run() -> None:
        door = Door(NullGate(), Guard(), time.monotonic_ns, dict)
        loop = asyncio.get_running_loop()
        makes = connection_factory(door, os.urandom) if door_name == "tarantool" else lambda: Connection(door)
        server = await loop.create_server(makes, "127.0.0.1", 0)
        stopped = asyncio.Event()

        def on_question() -> None:
            if pipe.recv() == "stop":
                stopped.set()
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send((usage.ru_utime, usage.ru_stime))

        loop.add_reader(pipe.fileno(), on_question)
        pipe.send(server.sockets[0].getsockname()[1])
        await stopped.wait()
        door.close()
        server.close()

    uvloop.run(run())


def rpc(msgid: int, method: str, params: list[Any]) -> tuple[bytes, int]:
    """A request of MessagePack-RPC, and how long its reply is."""
    return msgpack.packb([0, msgid, method, params]), len(msgpack.packb([1, msgid, None, REPLY]))


def iproto(sync: int, method: str, params: list[Any]) -> tuple[bytes, int]:
    """A CALL of Tarantool's protocol, and how long its reply is."""
    body = {protocol.FUNCTION_NAME: method, protocol.TUPLE: params}
    packet = msgpack.packb({protocol.REQUEST_TYPE: protocol.CALL, protocol.SYNC: sync}) + msgpack.packb(body)
    size = b"\xce" + len(packet).to_bytes(4, "big")  # as most connectors write it
    return size + packet, len(protocol.values(sync, b"\x91" + msgpack.packb(REPLY)))


DOORS = {"rpc": (rpc, 0), "tarantool": (iproto, protocol.GREETING_BYTES)}


async def load(
    door: str, port: int, method: str, options: dict[str, object], pipeline: int, seconds: float
) -> tuple[int, float]:
    """Keeps `pipeline` requests in flight; (operations, seconds)."""
    made, greeting_bytes = DOORS[door]
    params = ["user_012345", 1_000_000] + ([options] if options else [])
    requests = [made(number, method, params) for number in range(pipeline)]
    burst = b"".join(request for request, _ in requests)
    reply_bytes = sum(length for _, length in requests)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2 * reply_bytes + 65_536)
    await reader.readexactly(greeting_bytes)
    operations, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        writer.write(burst)
        await reader.readexactly(reply_bytes)
        operations += pipeline
    elapsed = time.monotonic() - started
    writer.close()
    return operations, elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--pipeline", type=int, default=256, help="requests in flight")
    parser.add_argument("--door", choices=DOORS, default="rpc")
    parser.add_argument("--json", action="store_true", help="the figures once more, as JSON, on the last line")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve, args=(there, arguments.door), daemon=True)
    server.start()
    port = here.recv()
    plain: dict[str, object] = {}
    for method, options in (
        ("top_up", plain),
        ("debit", plain),
        ("set_rate", plain),
        ("top_up", {"request_id": "0123456789abcdef"}),
        ("set_rate", {"per": "hour", "resource": "vm-0123456789", "request_id": "0123456789abcdef"}),
    ):
        here.send("usage")
        user_before, system_before = here.recv()
        operations, elapsed = uvloop.run(
            load(arguments.door, port, method, options, arguments.pipeline, arguments.seconds)
        )
        here.send("usage")
        user, system = here.recv()
        user_us = (user - user_before) * 1e6 / operations
        system_us = (system - system_before) * 1e6 / operations
        figures = {"per_s": round(operations / elapsed), "server_cpu_us": round(user_us + system_us, 3)}
        shown = f"{method} {sorted(options) if options else ''}".strip()
        found[shown] = figures
        print(
            f"{shown:45} {operations / elapsed:10,.0f} op/s  server CPU {user_us + system_us:5.2f} us/op "
            f"(user {user_us:.2f}, system {system_us:.2f})"
        )
    if arguments.json:
        print(json.dumps(found))
    here.send("stop")
    server.join(5)


if __name__ == "__main__":
    main()
