"""Many connections with one command in flight each: the cost of a command when nothing can be batched on its
connection.

Two servers get the same frames over the same number of connections, in turns: the daemon, and a null server (the door
alone, constant replies). The null server is the floor: what the kernel and the door cost for one read and one write per
command. The generator is a plain loop over `epoll`, so that it does not limit the rate.

    python -m benchmarks.connections --connections 1000 --seconds 4 --runs 5
"""

from __future__ import annotations

import argparse
import select
import socket
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgpack

from benchmarks.commands import Server, mixed_frames, preload
from benchmarks.figures import add_arguments, medians, quantiles_ms, show
from benchmarks.floor import null_server
from tests.system.daemon import Daemon

LOOK_S = 50e-6


def drive(server: Server, frames: list[bytes], connections: int, seconds: float) -> dict[str, Any]:
    """Keeps one command in flight on each connection. Returns figures of `seconds` after a warm-up of a quarter of
    that.
    """
    poller = select.epoll()
    sockets = {}
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", server.rpc_port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poller.register(connection, select.EPOLLIN)
        sockets[connection.fileno()] = connection
    receive = {number: connection.recv for number, connection in sockets.items()}
    send = {number: connection.send for number, connection in sockets.items()}
    now = time.perf_counter()
    sent_at = dict.fromkeys(sockets, now)
    sent, count = 0, len(frames)
    for number in sockets:
        send[number](frames[sent % count])
        sent += 1
    latencies: list[float] = []
    begin, end = now + seconds / 4, now + seconds * 5 / 4
    warm = False
    cpu_before = began = 0.0
    while True:
        events = poller.poll(1.0, 256)
        now = time.perf_counter()
        if not warm and now >= begin:
            warm, began, cpu_before = True, now, server.cpu_seconds()
            latencies.clear()
        if now >= end:
            break
        for number, _ in events:
            reply = receive[number](65_536)
            if reply[:2] != b"\x94\x01" or b"entry_id" not in reply:
                raise RuntimeError(f"not an account: {reply!r}")
            latencies.append(now - sent_at[number])
            sent_at[number] = now
            send[number](frames[sent % count])
            sent += 1
    elapsed, cpu = now - began, server.cpu_seconds() - cpu_before
    for connection in sockets.values():
        connection.close()
    return {
        "commands_per_s": round(len(latencies) / elapsed),
        "server_cpu_us": round(cpu / len(latencies) * 1e6, 2),
        **quantiles_ms(latencies),
    }


def paced(port: int, frames: list[bytes], connections: int, seconds: float, per_s: float) -> dict[str, float]:
    """An open loop: `per_s` commands a second, evenly spaced, over the connections in turn, however many are
    unanswered. Latencies count from the instant at which a command was due, and are too long by up to `LOOK_S` and the
    kernel's timer slack; the first fifth of them is left out as warm-up.
    """
    poller = select.epoll()
    order = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    for connection in order:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poller.register(connection, select.EPOLLIN)
    waiting = {connection.fileno(): deque[float]() for connection in order}
    readers = {connection.fileno(): (connection, msgpack.Unpacker()) for connection in order}
    latencies: list[float] = []
    sent, count, total = 0, len(frames), int(per_s * seconds * 5 / 4)
    answered, began = 0, time.perf_counter() + 0.01
    while answered < total:
        due = began + sent / per_s
        now = time.perf_counter()
        if sent < total and now >= due:
            connection = order[sent % connections]
            waiting[connection.fileno()].append(due)
            connection.send(frames[sent % count])
            sent += 1
            continue
        time.sleep(LOOK_S)  # epoll can only wait for whole milliseconds
        for number, _ in poller.poll(0.0):
            connection, unpacker = readers[number]
            unpacker.feed(connection.recv(65_536))
            now = time.perf_counter()
            for reply in unpacker:
                if reply[0] != 1 or reply[2] is not None:
                    raise RuntimeError(f"not an account: {reply!r}")
                answered += 1
                latencies.append(now - waiting[number].popleft())
    for connection in order:
        connection.close()
    return quantiles_ms(latencies[total // 5 :])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    add_arguments(parser)
    arguments = parser.parse_args()
    frames = mixed_frames(arguments.accounts, 50_000, arguments.seed)
    runs = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name, null_server() as null:
        Path(name).chmod(0o700)
        with Daemon(Path(name), shards__workers=arguments.workers, journal__segment_bytes=64 << 20) as daemon:
            preload(daemon, arguments.accounts)
            for _ in range(arguments.runs):
                floor = drive(null, frames, arguments.connections, arguments.seconds / 2)
                figures = drive(daemon, frames, arguments.connections, arguments.seconds)
                runs.append(figures | {"floor_per_s": floor["commands_per_s"], "floor_cpu_us": floor["server_cpu_us"]})
    show(arguments, runs, medians(runs))


if __name__ == "__main__":
    main()
