"""Ports for the daemons, receivers and absent peers of tests and benchmarks, that nobody else takes in between.

A daemon that is killed and started again leaves its port free for a while, and everybody beside it opens connections:
a port from the kernel's ephemeral range would now and then be somebody's outgoing one by then, or another test's
daemon, whose `/readyz` then answers for ours. So ports come from below that range, and each process takes a block of
them, which the lock on a file keeps until the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import itertools
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

FIRST, AFTER = 12_000, 32_000  # Linux opens connections from 32768 up, unless told otherwise
BLOCK = 200  # as many are given before the first is given again


def free_port() -> int:
    """A loopback TCP port of this process's block that nobody listens on at this moment."""
    _, ports = _block()
    for port in itertools.islice(ports, BLOCK):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"all {BLOCK} ports of this process's block are in use")


@cache
def _block() -> tuple[IO[bytes], Iterator[int]]:
    """Its lock, and its ports again and again."""
    locks = Path(tempfile.gettempdir()) / "billing-test-ports"
    locks.mkdir(exist_ok=True)
    for first in range(FIRST, AFTER, BLOCK):
        lock = (locks / str(first)).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return lock, itertools.cycle(range(first, first + BLOCK))
    raise RuntimeError(f"all blocks of ports are locked, in {locks}")
