"""The doors for clients: the section whose key `listen` is the door's address, and the module that speaks its protocol.

To add a door, write a package beside `billing.api.http`, a section of the schema with a key `listen`, and one line
here. The door's module has `connection_factory(door, wall_now_ns, random_bytes)`, which returns a factory of protocol
objects, one for each new connection: `door` is the state that the connections of a worker share, `wall_now_ns` a clock
for dates, `random_bytes` a source of salts. The module is loaded when one of the door's sockets opens.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from billing.config.schema import Config


class DoorOf(NamedTuple):
    """One protocol over TCP."""

    section: str  # of the configuration, with the key `listen`; also the name of a socket that is handed over
    kind: str  # the name by which workers know a listener of this door
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
    """The door of a kind of listener. Listeners of no other door (a unix socket, a worker's own port) belong to RPC."""
    return next((door for door in DOORS if door.kind == kind), RPC)


def listens_of(config: Config) -> dict[str, str]:
    """The configured TCP address of each section; "" for a door that is switched off."""
    return {section: getattr(config, section).listen for section in (*(door.section for door in DOORS), ADMIN)}
