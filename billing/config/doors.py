"""The doors for clients: the key by which each listens, and the module that speaks its protocol.

A further door is a package beside `billing.api.http`, a section of the schema with its key `listen`, and one line here.
Its module has `connection_factory(door, wall_now_ns, random_bytes)`, which returns what makes the protocol of a new
connection: `door` is what the connections of a worker share, `wall_now_ns` a clock for dates, `random_bytes` what salts
are made of. It is loaded where one of its sockets opens.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from billing.config.schema import Config


class DoorOf(NamedTuple):
    """One protocol over TCP."""

    section: str  # of the configuration: its key `listen`; also the name of a socket that is handed over
    kind: str  # what workers know a listener of it by
    protocol: str  # for people
    module: str


RPC: Final = DoorOf("rpc", "tcp", "MessagePack-RPC", "billing.api.msgpack_rpc")
DOORS: Final = (
    RPC,
    DoorOf("http", "http", "HTTP/JSON", "billing.api.http.server"),
    DoorOf("tarantool", "tarantool", "Tarantool", "billing.api.iproto.connection"),
)
ADMIN: Final = "admin"  # the section of the operators' pages, which are no door for clients


def door_of(kind: str) -> DoorOf:
    """The door of a kind of listener; what is no other's (a unix socket, a worker's own port) is that of RPC."""
    return next((door for door in DOORS if door.kind == kind), RPC)


def listens_of(config: Config) -> dict[str, str]:
    """Every TCP address that is listened on, by section; empty texts where a door is switched off."""
    return {section: getattr(config, section).listen for section in (*(door.section for door in DOORS), ADMIN)}
