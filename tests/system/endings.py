"""How a daemon ends that a test has begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.system.daemon import Daemon


@contextmanager
def killed_in_the_end(*hosts: Daemon) -> Iterator[None]:
    """Kills whatever runs of these behind it, however it ends."""
    try:
        yield
    finally:
        for host in hosts:
            if host.process is not None:
                host.kill()
