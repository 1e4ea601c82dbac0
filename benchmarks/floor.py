"""The floors that figures are compared with: the machine's cost for the bare minimum, measured in the same run.

`null_server`: the door over a worker that does nothing, as a process of its own. For the same frames it has only the
costs of the kernel, of decoding requests and of encoding replies. `sync_ms`: an append and fdatasync of a batch of one
command to a preallocated file, and nothing else.
"""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any

import uvloop

from billing.api.auth import Guard
from billing.api.door import Door
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
DOORS = {"rpc": "billing.api.msgpack_rpc", "tarantool": "billing.api.iproto.connection"}


class NullGate:
    """Answers all requests of one turn of the loop at its end."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Any]] = []

    def arrived(self) -> None:
        """Does nothing: this gate takes no timestamps."""

    def bucket_of(self, key: bytes) -> int:
        return bucket_id_of(key, 3000)

    def submit(self, caller: Any, token: Any, *_: Any) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        self._waiting.append((caller, token))

    def submit_all(self, requests: Sequence[tuple[Any, Any, int, Any]]) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        self._waiting += [(caller, token) for caller, token, _, _ in requests]

    def before_turn(self, work: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(work)

    read = operate = submit

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for caller, token in waiting:
            caller.answer(token, REPLY)
        for caller in {caller for caller, _ in waiting}:
            caller.flush()


def serve(pipe: Pipe, door: str) -> None:
    """The server process with one door: sends its port, then its CPU seconds whenever it is asked."""

    async def run() -> None:
        over = Door(NullGate(), Guard(), time.monotonic_ns, dict)
        makes = importlib.import_module(DOORS[door]).connection_factory(over, time.time_ns, os.urandom)
        await serve_measured(pipe, makes)

    uvloop.run(run())


async def serve_measured(pipe: Pipe, makes: Callable[[], asyncio.Protocol]) -> None:
    """Serves connections on a free port, for good: sends the port, then this process's CPU seconds whenever it is asked
    for them.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(makes, "127.0.0.1", 0)

    def on_question() -> None:
        pipe.recv()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send((usage.ru_utime, usage.ru_stime))

    loop.add_reader(pipe.fileno(), on_question)
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


@contextmanager
def child_process(target: Callable[..., None], *arguments: object) -> Iterator[Pipe]:
    """Runs `target(pipe, *arguments)` in a process until the end of the block. Gives the other end of the pipe, which
    raises EOFError once the process has ended.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        process.terminate()
        process.join()


class NullServer:
    """A null server with the attributes of a daemon that a generator needs: `rpc_port` and `cpu_seconds`."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.rpc_port: int = pipe.recv()

    def usage(self) -> tuple[float, float]:
        """The CPU seconds that it has used so far: user, system."""
        self._pipe.send(None)
        user, system = self._pipe.recv()
        return user, system

    def cpu_seconds(self) -> float:
        """The sum of both."""
        return sum(self.usage())


@contextmanager
def null_server(door: str = "rpc") -> Iterator[NullServer]:
    """Runs a null server behind one of `DOORS` until the end of the block."""
    with child_process(serve, door) as pipe:
        yield NullServer(pipe)


def sync_ms(directory: str, count: int = 200, payload_bytes: int = 239) -> float:
    """Returns the median milliseconds of an append and fdatasync."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        handle = os.open(f"{name}/floor", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(handle, 0, count * 512)
            os.fsync(handle)
            took = []
            for number in range(count):
                began = time.perf_counter()
                os.pwrite(handle, bytes(payload_bytes), number * 512)
                os.fdatasync(handle)
                took.append(time.perf_counter() - began)
        finally:
            os.close(handle)
    return round(sorted(took)[count // 2] * 1e3, 3)
