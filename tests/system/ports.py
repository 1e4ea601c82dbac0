"""Ports for the daemons, receivers and absent peers of tests and benchmarks, that nobody else takes in between.

A daemon that is killed and started again leaves its port free for a while, and everybody beside it opens connections:
a port from the kernel's ephemeral range would now and then be somebody's outgoing one by then, or another test's
daemon, whose `/readyz` then answers for ours. So ports come from below that range, and each process takes a block of
them, which it keeps until it ends, however it ends: it binds the name of the block in Linux' abstract namespace of unix
sockets. That is one for all processes that share the ports, whatever directory of temporary files each of them has.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from functools import cache

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
def has_ipv6() -> bool:
    """Whether this machine has IPv6's loopback address, which a container may lack."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@cache
def _block() -> tuple[socket.socket, Iterator[int]]:
    """What keeps it, and its ports again and again."""
    for first in range(FIRST, AFTER, BLOCK):
        keeper = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            keeper.bind(f"\0billing-test-ports-{first}")
        except OSError:
            keeper.close()
            continue
        return keeper, itertools.cycle(range(first, first + BLOCK))
    raise RuntimeError(f"all blocks of ports between {FIRST} and {AFTER} are taken")
