"""A worker's links with those of other hosts: what it proves itself with, where it is dialled, and how it dials.

The files of its secret and certificates are read once, when it begins to serve.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from shards.control import LinkSettings
from shards.links.far import Certificates, Far, FarDoor, contexts, dial
from shards.links.hello import End
from shards.system.disk import read_file
from shards.system.host import Host
from shards.system.links import Wire


class FarLinks:
    """Of the worker of one shard."""

    def __init__(self, settings: LinkSettings, shard: int, host: Host) -> None:
        """Raises OSError, ssl.SSLError where a file cannot be read, or is not what it should be."""
        self._settings = settings
        secret = read_file(host.disk, settings.secret_file).strip() if settings.secret_file else b""
        self._end = End(settings.cluster, shard, settings.epoch, secret)
        self._randbits = host.randbits
        self._dialling: ssl.SSLContext | None = None
        self._listening: ssl.SSLContext | None = None
        if settings.certificates is not None:
            self._dialling, self._listening = contexts(Certificates(*settings.certificates))
        self._door: FarDoor | None = None

    async def listen(self, make_wire: Callable[[], Wire]) -> str:
        """Lets workers of other hosts in, each over a wire of its own; where they find this one. OSError."""
        self._door = FarDoor(self._end, make_wire, self._listening, self._randbits)
        await self._door.listen(self._settings.listen)
        return self._door.address

    async def dial(self, shard: int, far: Far, make_wire: Callable[[], Wire]) -> None:
        """Connects to a worker of another host. Raises OSError, LinkRefused."""
        await dial(far, shard, self._end, make_wire, self._dialling, self._randbits)

    def close(self) -> None:
        """Lets nobody in any more."""
        if self._door is not None:
            self._door.close()
