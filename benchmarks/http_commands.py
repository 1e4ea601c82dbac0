"""Durable commands a second over HTTP, and the server's CPU per command.

Starts the real daemon in a directory of its own, creates accounts, then keeps one request in flight on each of
`--connections` kept connections (closed loop). The requests are made before the clock starts: 40 % top_up, 40 %
set_rate, 20 % debit, users drawn uniformly, seeded, each with an Idempotency-Key where `--keys` asks for it.

    python -m benchmarks.http_commands --workers 1                64 connections, one worker
    python -m benchmarks.http_commands --workers 1 --keys

CPU is that of the daemon's main process and its workers, from /proc. `per_core` is how many such commands fit into one
second of a core that does nothing else; commands a second depend on what the generator and other processes leave of the
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.commands import COIN, connected, preload
from benchmarks.figures import add_arguments, medians, quantiles_ms, show
from tests.system.daemon import Daemon
from tests.system.ports import free_port

REFUSED = b"HTTP/1.1 402 "  # a debit beyond the available amount


class Caller(asyncio.Protocol):
    """One connection, one request in flight: records each latency, and unexpected answers."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = requests
        self.sent = 0
        self.answered = 0
        self.latencies: list[float] = []
        self.errors: list[bytes] = []
        self.stopping = False
        self.done = asyncio.get_running_loop().create_future()
        self._came = b""
        self._sent_s = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self._sent_s = time.perf_counter()
        self.transport.write(self.requests[self.sent % len(self.requests)])
        self.sent += 1

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, end, body = self._came.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]):
            return
        if not head.startswith((b"HTTP/1.1 200 ", REFUSED)):
            self.errors.append(self._came)
        self._came = b""
        self.answered += 1
        self.latencies.append(time.perf_counter() - self._sent_s)
        if self.stopping:
            self.done.set_result(None)
        else:
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the daemon closed the connection"))


def requests(accounts: int, count: int, seed: int, keys: bool) -> list[bytes]:
    """Returns `count` requests."""
    rng = random.Random(seed)
    requests_made = []
    for number in range(count):
        user, share = f"user_{rng.randrange(accounts):07d}", rng.random()
        method = "top_up" if share < 0.4 else "set_rate" if share < 0.8 else "debit"
        name = "rate_nanos" if method == "set_rate" else "amount_nanos"
        nanos = {"top_up": 10 * COIN, "set_rate": 1000, "debit": COIN}[method]
        body = json.dumps({name: rng.randrange(1, nanos)}).encode()
        key = f"Idempotency-Key: {seed}-{number}\r\n" if keys else ""
        head = (
            f"POST /v1/accounts/{user}/{method} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: benchmark\r\nAccept: */*\r\n"
            f"{key}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        requests_made.append(head.encode() + body)
    return requests_made


async def run(daemon: Daemon, port: int, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Runs one measurement."""
    callers = []
    for number in range(arguments.connections):
        frames = requests(arguments.accounts, arguments.requests, seed * 10_000 + number, arguments.keys)
        caller = Caller(frames)
        await connected(caller, port)
        callers.append(caller)
    await asyncio.sleep(min(1.0, arguments.seconds / 4))  # warm-up
    for caller in callers:
        caller.latencies.clear()
    before = sum(caller.answered for caller in callers)
    before_cpu, before_s = daemon.cpu_seconds(), time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    count = sum(caller.answered for caller in callers) - before
    spent_s, elapsed_s = daemon.cpu_seconds() - before_cpu, time.perf_counter() - before_s
    latencies = [latency for caller in callers for latency in caller.latencies]
    for caller in callers:
        caller.stopping = True
    await asyncio.wait_for(asyncio.gather(*(caller.done for caller in callers)), 60)
    errors = [error for caller in callers for error in caller.errors]
    if errors:
        raise RuntimeError(f"{len(errors)} errors, first {errors[0]!r}")
    for caller in callers:
        caller.transport.close()
    return {
        "commands_per_s": round(count / elapsed_s),
        "server_cpu_us_per_command": round(spent_s / count * 1e6, 1),
        "per_core": round(count / spent_s),
        **quantiles_ms(latencies),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2_000, help="made for each connection; then from the first on")
    parser.add_argument("--keys", action="store_true", help="an Idempotency-Key with each request")
    add_arguments(parser)
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        Path(name).chmod(0o700)
        port = free_port()
        settings = {"shards.workers": arguments.workers, "http.listen": f"127.0.0.1:{port}"}
        with Daemon(Path(name), journal__segment_bytes=64 * 1024 * 1024, **settings) as daemon:
            preload(daemon, arguments.accounts)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                for number in range(arguments.runs):
                    runs.append(runner.run(run(daemon, port, arguments, arguments.seed + number)))
    show(arguments, runs, medians(runs))


if __name__ == "__main__":
    main()
