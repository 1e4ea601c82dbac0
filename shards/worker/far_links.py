"""A worker's links with workers of other hosts: its secret and certificates, the address it is dialled at, the dialler.

The secret is read once, when it begins to serve, and the certificates at each link.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from shards.control import LinkSettings
from shards.exits import text_of
from shards.links.far import Certificates, Certified, Far, FarDoor, dial
from shards.links.hello import End
from shards.system.disk import read_file
from shards.system.host import Host
from shards.system.links import Wire
from shards.system.names import Names

TOLD_AFTER_NS = 10_000_000_000

log = logging.getLogger("shards.worker.far_links")


class _Failing(NamedTuple):
    """Since when a shard has been out of reach, and whether that was logged."""

    far: Far
    since_ns: int  # boot clock
    is_told: bool = False


class FarLinks:
    """The links between the worker of one shard and workers of other hosts."""

    def __init__(self, settings: LinkSettings, shard: int, host: Host) -> None:
        """Raises OSError or ssl.SSLError where a file of a secret or certificate cannot be read or is malformed."""
        self._settings = settings
        secret = read_file(host.disk, settings.secret_file).strip() if settings.secret_file else b""
        self._end = End(settings.cluster, shard, settings.epoch, secret)
        self._randbits = host.randbits
        self._bind = host.bind
        self._certified: Certified | None = None
        if settings.certificates is not None:
            self._certified = Certified(Certificates(*settings.certificates), partial(read_file, host.disk))
        self._door: FarDoor | None = None
        self._names = Names()
        self._boot_ns = host.clocks.boot_ns
        self._failing: dict[int, _Failing] = {}

    async def listen(self, make_wire: Callable[[], Wire]) -> str:
        """Accepts workers of other hosts, each over a wire of its own; returns the address at which they reach this
        worker. OSError.
        """
        listening = None if self._certified is None else self._certified.listening
        self._door = FarDoor(self._end, make_wire, listening, self._randbits, self._bind)
        await self._door.listen(self._settings.listen)
        return self._door.address

    async def dial(self, shard: int, far: Far, make_wire: Callable[[], Wire]) -> None:
        """Connects to a worker of another host. Raises OSError, LinkRefused."""
        try:
            tls = None if self._certified is None else await self._certified.dialling()
            await dial(far, shard, self._end, make_wire, tls, self._randbits, self._names)
        except OSError as error:
            self._note_failure(shard, far, error)
            raise
        self._failing.pop(shard, None)

    def _note_failure(self, shard: int, far: Far, error: OSError) -> None:
        """Logs a host once that has been out of reach for longer than a takeover takes."""
        now_ns = self._boot_ns()
        failing = self._failing.get(shard)
        if failing is None or failing.far != far:
            failing = self._failing[shard] = _Failing(far, now_ns)
        if not failing.is_told and now_ns - failing.since_ns > TOLD_AFTER_NS:
            self._failing[shard] = failing._replace(is_told=True)
            log.warning("shard %d cannot be reached at %s: %s", shard, far.address, text_of(error))

    def close(self) -> None:
        """Accepts no peer any more."""
        if self._door is not None:
            self._door.close()
