"""The cost of the door alone, over a worker that does nothing: the floor of every figure with a worker.

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
import time
from typing import Any

import msgpack
import uvloop

from benchmarks.floor import DOORS, REPLY, null_server
from billing.api.iproto import protocol


def rpc(msgid: int, method: str, params: list[Any]) -> tuple[bytes, bytes]:
    """Returns a request of MessagePack-RPC, and its reply."""
    return msgpack.packb([0, msgid, method, params]), msgpack.packb([1, msgid, None, REPLY])


def iproto(sync: int, method: str, params: list[Any]) -> tuple[bytes, bytes]:
    """Returns a CALL of Tarantool's protocol, and its reply."""
    body = {protocol.FUNCTION_NAME: method, protocol.TUPLE: params}
    packet = msgpack.packb({protocol.REQUEST_TYPE: protocol.CALL, protocol.SYNC: sync}) + msgpack.packb(body)
    size = b"\xce" + len(packet).to_bytes(4, "big")  # the encoding of most connectors
    return size + packet, protocol.values(sync, b"\x91" + msgpack.packb(REPLY))


CALLS: tuple[tuple[str, dict[str, object]], ...] = (
    ("top_up", {}),
    ("debit", {}),
    ("set_rate", {}),
    ("top_up", {"request_id": "0123456789abcdef"}),
    ("set_rate", {"per": "hour", "resource": "vm-0123456789", "request_id": "0123456789abcdef"}),
)
MADE = {"rpc": (rpc, 0), "tarantool": (iproto, protocol.GREETING_BYTES)}


async def load(
    door: str, port: int, method: str, options: dict[str, object], pipeline: int, seconds: float
) -> tuple[int, float]:
    """Sends bursts of `pipeline` requests, each after the replies to the last. Returns (operations, seconds)."""
    request_of, greeting_bytes = MADE[door]
    params = ["user_012345", 1_000_000] + ([options] if options else [])
    requests = [request_of(number, method, params) for number in range(pipeline)]
    burst = b"".join(request for request, _ in requests)
    replies = b"".join(reply for _, reply in requests)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2 * len(replies) + 65_536)
    await reader.readexactly(greeting_bytes)
    operations, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        writer.write(burst)
        if (came := await reader.readexactly(len(replies))) != replies:
            raise RuntimeError(f"not the replies that the server was to give: {came[:200]!r}")
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
    figures_by_door: dict[str, dict[str, float]] = {}
    with null_server(arguments.door) as server:
        for method, options in CALLS:
            user_before, system_before = server.usage()
            operations, elapsed = uvloop.run(
                load(arguments.door, server.rpc_port, method, options, arguments.pipeline, arguments.seconds)
            )
            user, system = server.usage()
            user_us = (user - user_before) * 1e6 / operations
            system_us = (system - system_before) * 1e6 / operations
            figures = {"per_s": round(operations / elapsed), "server_cpu_us": round(user_us + system_us, 3)}
            shown = f"{method} {sorted(options) if options else ''}".strip()
            figures_by_door[shown] = figures
            print(
                f"{shown:45} {operations / elapsed:10,.0f} op/s  server CPU {user_us + system_us:5.2f} us/op "
                f"(user {user_us:.2f}, system {system_us:.2f})"
            )
    if arguments.json:
        print(json.dumps(figures_by_door))


if __name__ == "__main__":
    main()
