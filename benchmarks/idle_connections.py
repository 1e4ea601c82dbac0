"""The cost of idle and hostile connections: bytes of the worker's memory for each, and the effect on others' commands.

Ten connections send 5,000 commands a second, first alone, and then beside each kind of other clients in turn:

    idle     `--connections` connections that asked once and send nothing more
    flood    clients that connect, send the beginning of a frame, and disconnect, as fast as one process can
    slow     a thousand clients that send a byte of a frame each, ten times a second
    deaf     a hundred clients that ask for much and never read
    spin     a process that only counts, and never connects to the daemon: the effect of sharing the machine (the floor)

    python -m benchmarks.idle_connections --seconds 3

The worker has one shard. Bytes are its resident set after less before, divided by the connections. Those of a deaf
client are measured in a new daemon, since one that had other clients before would reuse their memory. A measurement
begins once the other clients have reported that they run; it is an error if they have ended before it is over.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import resource
import select
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import msgpack
import psutil

from benchmarks.commands import mixed_frames, preload
from benchmarks.connections import paced
from benchmarks.figures import add_arguments, medians, show
from benchmarks.floor import child_process
from tests.system.daemon import Daemon

PING = msgpack.packb([0, 7, "ping", []])
FIRST = 500  # idle connections opened first, and not counted
DEAF = 100
COME_S = 60.0  # how long to wait for the other clients' process
ASKED = msgpack.packb([0, 2, "methods", []]) * 1000

Here = Callable[[], None]  # reports that the other clients run


def connect(port: int, receive_bytes: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect(("127.0.0.1", port))
    return connection


def silent(connections: list[socket.socket]) -> None:
    """Raises RuntimeError if one of the connections was closed or has received something."""
    poller = select.poll()
    for connection in connections:
        poller.register(connection, select.POLLIN)
    if poller.poll(0):
        raise RuntimeError("an idle connection was closed")


def idle(port: int, count: int) -> list[socket.socket]:
    """Returns connections that asked once and got their answers."""
    connections = []
    for _ in range(count):
        connection = connect(port)
        connection.sendall(PING)
        if not connection.recv(100):
            raise RuntimeError("an idle connection was closed")
        connections.append(connection)
    return connections


def flood(port: int, here: Here) -> None:
    """Runs until the process is ended."""
    while True:
        with contextlib.suppress(OSError), connect(port) as connection:
            connection.sendall(b"\x94\x00\x01")
            here()


def slow(port: int, here: Here) -> None:
    """Runs for 100 s, or until the process is ended; the clients are spread evenly over the tenth of a second."""
    frame = msgpack.packb([0, 1, "top_up", ["slow", 1]])
    connections = [connect(port) for _ in range(1000)]
    here()
    began = time.monotonic()
    for turn in range(1_000_000):
        connection, at = connections[turn % 1000], turn // 1000 % len(frame)
        connection.send(frame[at : at + 1])
        if at == len(frame) - 1 and not connection.recv(4096):
            raise RuntimeError("a slow client was closed")
        if turn % 10 == 9:
            time.sleep(max(0.0, began + turn / 10_000 - time.monotonic()))


def deaf(port: int, here: Here) -> None:
    """Runs until the process is ended, or no connection is left. Sends whenever it can, never reads."""
    poller = select.poll()
    connections, ahead = {}, dict[int, int]()
    for _ in range(DEAF):
        connection = connect(port, 4096)
        connection.setblocking(False)
        connections[connection.fileno()] = connection
        poller.register(connection, select.POLLOUT)
    here()
    while connections:
        for number, event in poller.poll(100):
            if event & (select.POLLHUP | select.POLLERR):
                poller.unregister(number)
                connections.pop(number).close()
                continue
            with contextlib.suppress(OSError):  # continues where the last send stopped: whole frames only
                at = ahead.get(number, 0)
                ahead[number] = (at + connections[number].send(memoryview(ASKED)[at:])) % len(ASKED)
        time.sleep(0.01)


def spin(port: int, here: Here) -> None:
    """Runs until the process is ended."""
    here()
    for _ in itertools.count():
        pass


KINDS = {"flood": flood, "slow": slow, "deaf": deaf, "spin": spin}


def be(pipe: Pipe, kind: str, port: int) -> None:
    """The main function of the other clients' process, of lower priority than the daemon; reports once that it
    runs.
    """
    os.nice(10)
    is_reported = False

    def here() -> None:
        nonlocal is_reported
        if not is_reported:
            pipe.send(kind)
            is_reported = True

    KINDS[kind](port, here)


@contextlib.contextmanager
def company(kind: str, port: int) -> Iterator[None]:
    """Runs a process of this kind during the block."""
    with child_process(be, kind, port) as pipe:
        if not pipe.poll(COME_S):
            raise RuntimeError(f"{kind} did not come within {COME_S} s")
        pipe.recv()
        yield
        if pipe.poll():
            raise RuntimeError(f"{kind} went away while it was measured")


@contextlib.contextmanager
def served(arguments: argparse.Namespace) -> Iterator[tuple[Daemon, psutil.Process]]:
    """Starts a daemon with its accounts; gives it and its one worker."""
    with tempfile.TemporaryDirectory(prefix="billing-", dir=arguments.directory) as name:
        Path(name).chmod(0o700)
        with Daemon(Path(name), shards__workers=1, journal__segment_bytes=64 << 20) as daemon:
            preload(daemon, arguments.accounts)
            yield daemon, psutil.Process(daemon.worker_pids()[0])


def deaf_bytes(arguments: argparse.Namespace) -> int:
    """Returns the bytes of the worker's memory per client that never reads."""
    with served(arguments) as (daemon, worker):
        before = worker.memory_info().rss
        with company("deaf", daemon.rpc_port):
            time.sleep(arguments.seconds)
            return round((worker.memory_info().rss - before) / DEAF)


def measured(
    daemon: Daemon, worker: psutil.Process, frames: list[bytes], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Runs one round of all kinds."""
    seconds = arguments.seconds

    def p99() -> float:
        return paced(daemon.rpc_port, frames, 10, seconds, arguments.per_second)["p99_ms"]

    figures: dict[str, Any] = {"alone_p99_ms": p99()}
    resting = idle(daemon.rpc_port, FIRST)  # these reuse the memory that was freed before
    before = worker.memory_info().rss
    resting += idle(daemon.rpc_port, arguments.connections - FIRST)
    figures["idle_bytes"] = round((worker.memory_info().rss - before) / (arguments.connections - FIRST))
    figures["idle_p99_ms"] = p99()
    silent(resting)
    for connection in resting:
        connection.close()
    time.sleep(1.0)
    for kind in KINDS:
        with company(kind, daemon.rpc_port):
            figures[f"{kind}_p99_ms"] = p99()
    figures["alone_again_p99_ms"] = p99()
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=9_900)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--per-second", type=float, default=5_000)
    add_arguments(parser, runs=1, seconds=2.0)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    frames = mixed_frames(arguments.accounts, 50_000, arguments.seed)
    runs = []
    for _ in range(arguments.runs):
        with served(arguments) as (daemon, worker):
            runs.append(measured(daemon, worker, frames, arguments))
        runs[-1]["deaf_bytes"] = deaf_bytes(arguments)
    show(arguments, runs, medians(runs))


if __name__ == "__main__":
    main()
