"""The doors of a daemon as other programs come in by them: MessagePack-RPC over TCP and the unix socket, HTTP/JSON,
Tarantool's protocol, and the operators' pages. None of it uses a client of the daemon's own.

`ask` takes what the RPC takes (`top_up`, user, amount, options); a door that has other words for it translates. A
refusal is `Refused`. A door can be asked again after its daemon was killed and started: it connects anew.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import socket
import ssl
from abc import ABC, abstractmethod
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgpack

from tests.system.rpc import Rpc
from tests.torture.pair_settings import ADMIN_NAME, ADMIN_TOKEN, LATE_TOKEN, Host

ANSWER_S: Final = 60.0
LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
GREETING_BYTES: Final = 128
TARANTOOL_AUTH, TARANTOOL_CALL = 7, 10
TYPE, SYNC, TUPLE, FUNCTION, USER, DATA, ERROR = 0x00, 0x01, 0x21, 0x22, 0x23, 0x30, 0x31
# Where HTTP has a method, below its account, with the fields behind the user id.
HTTP_COMMANDS: Final = {
    "top_up": ("POST", "top_up", ("amount_nanos",)),
    "set_rate": ("POST", "set_rate", ("rate_nanos",)),
    "change_rate": ("POST", "change_rate", ("delta_nanos",)),
    "debit": ("POST", "debit", ("amount_nanos",)),
    "hold": ("POST", "holds", ("amount_nanos",)),
    "capture": ("POST", "holds/{}/capture", ("amount_nanos",)),
    "set_class": ("PUT", "class", ("class",)),
}
HTTP_QUERIES: Final = {"get_account": "", "history": "/history", "statement": "/statement?from_ns={}&to_ns={}"}


class Refused(Exception):
    """The daemon said no."""


class Server(NamedTuple):
    """Where one door is, and how it is spoken to."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    def connect(self) -> socket.socket:
        """A connection, to be closed by the caller. OSError."""
        plain = socket.create_connection((self.host, self.port), timeout=ANSWER_S)
        if self.tls is None:
            return plain
        try:
            return self.tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def issuer(self) -> str:
        """Who has signed the certificate that is shown."""
        with self.connect() as connection:
            assert isinstance(connection, ssl.SSLSocket)
            certificate: Any = connection.getpeercert()
        return next(str(value) for part in certificate["issuer"] for name, value in part if name == "organizationName")


def server_of(address: str, tls: ssl.SSLContext | None) -> Server:
    """Of `host:port`, as somebody on this machine reaches it."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return Server(LOOPBACK.get(host, host), int(port), tls)


class Door(ABC):
    """One of them."""

    def __init__(self, name: str, token: str) -> None:
        """`token`: to sign in with; empty where nobody is asked for one."""
        self.name, self._token = name, token

    @abstractmethod
    async def ask(self, method: str, *params: Any, token: str = "") -> Any:
        """The result. `token`: instead of the door's. Raises Refused, and OSError where nobody answers."""

    @abstractmethod
    def close(self) -> None:
        """Ends its connection, where it keeps one."""


class RpcDoor(Door):
    """MessagePack-RPC."""

    def __init__(self, name: str, token: str, server: Server | None, path: str = "") -> None:
        super().__init__(name, token)
        self._server, self._path = server, path
        self._rpc: Rpc | None = None

    async def ask(self, method: str, *params: Any, token: str = "") -> Any:
        if token:
            rpc = await self._connected(token)
            try:
                return await self._answer(rpc, method, *params)
            finally:
                rpc.close()
        if self._rpc is None or not self._rpc.is_open:
            self._rpc = await self._connected(self._token)
        return await self._answer(self._rpc, method, *params)

    async def _connected(self, token: str) -> Rpc:
        loop = asyncio.get_running_loop()
        if self._server is None:
            _, rpc = await loop.create_unix_connection(Rpc, self._path)
        else:
            host, port, tls = self._server
            name = host if tls is not None else None
            _, rpc = await loop.create_connection(Rpc, host, port, ssl=tls, server_hostname=name)
        if token:
            await self._answer(rpc, "hello", {"token": token})
        return rpc

    @staticmethod
    async def _answer(rpc: Rpc, method: str, *params: Any) -> Any:
        error, result = await asyncio.wait_for(rpc.call(method, *params), ANSWER_S)
        if error is not None:
            raise Refused(error)
        return result

    def close(self) -> None:
        if self._rpc is not None:
            self._rpc.close()
            self._rpc = None


class OneShotDoor(Door):
    """A door that is asked over a connection for each request."""

    def __init__(self, name: str, token: str, server: Server) -> None:
        super().__init__(name, token)
        self._server = server

    def close(self) -> None:
        return


class HttpDoor(OneShotDoor):
    """HTTP and JSON."""

    async def ask(self, method: str, *params: Any, token: str = "") -> Any:
        return await asyncio.to_thread(self._ask, method, list(params), token or self._token)

    def _ask(self, method: str, params: list[Any], token: str) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if method == "ping":
            return self._told("GET", "/v1/ping", None, headers)["ping"]
        account = f"/v1/accounts/{quote(params.pop(0), safe='')}"
        options = dict(params.pop()) if params and isinstance(params[-1], dict) else {}
        if method in HTTP_QUERIES:
            reply = self._told("GET", account + HTTP_QUERIES[method].format(*params), None, headers)
            return reply["history"] if method == "history" else reply
        verb, path, fields = HTTP_COMMANDS[method]
        if "{}" in path:
            path = path.format(quote(params.pop(0), safe=""))
        if "request_id" in options:
            headers["Idempotency-Key"] = options.pop("request_id")
        return self._told(verb, f"{account}/{path}", dict(zip(fields, params, strict=True)) | options, headers)

    def _told(self, verb: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> Any:
        status, content = fetch(self._server, path, headers, verb, body)
        reply = json.loads(content)
        if status != 200:
            raise Refused(f"{reply['name']}: {reply['detail']}")
        return reply


def fetch(
    server: Server, path: str, headers: dict[str, str], verb: str = "GET", body: dict[str, Any] | None = None
) -> tuple[int, bytes]:
    """Status and content of one HTTP request. OSError."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=ANSWER_S)
    connection.sock = server.connect()
    try:
        content = None if body is None else json.dumps(body)
        typed = {} if body is None else {"Content-Type": "application/json"}
        connection.request(verb, path, content, headers | typed)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class TarantoolDoor(OneShotDoor):
    """Tarantool's protocol."""

    async def ask(self, method: str, *params: Any, token: str = "") -> Any:
        return await asyncio.to_thread(self._ask, method, params, token)

    def _ask(self, method: str, params: tuple[Any, ...], token: str) -> Any:
        name = f"{ADMIN_NAME}1" if token == LATE_TOKEN else ADMIN_NAME
        with self._server.connect() as connection, connection.makefile("rwb") as stream:
            salt = _decoded_salt(stream.read(GREETING_BYTES))
            if token or self._token:
                scramble = _scramble((token or self._token).encode(), salt)
                self._exchange(stream, TARANTOOL_AUTH, {USER: name, TUPLE: ["chap-sha1", scramble]})
            reply = self._exchange(stream, TARANTOOL_CALL, {FUNCTION: method, TUPLE: list(params)})
        return reply[0]

    @staticmethod
    def _exchange(stream: Any, kind: int, body: dict[int, Any]) -> Any:
        packet = msgpack.packb({TYPE: kind, SYNC: 1}) + msgpack.packb(body)
        stream.write(msgpack.packb(len(packet)) + packet)
        stream.flush()
        head = stream.read(5)
        if len(head) < 5:
            raise ConnectionResetError("the door has closed the connection")
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(stream.read(msgpack.unpackb(head)))
        header, reply = unpacker.unpack(), unpacker.unpack()
        if header[TYPE]:
            raise Refused(reply[ERROR])
        return reply.get(DATA)


def _decoded_salt(greeting: bytes) -> bytes:
    return base64.b64decode(greeting[64:].split()[0])[:20]


def _scramble(password: bytes, salt: bytes) -> bytes:
    once = hashlib.sha1(password).digest()
    mask = hashlib.sha1(salt + hashlib.sha1(once).digest()).digest()
    return bytes(byte ^ other for byte, other in zip(once, mask, strict=True))


class Doors(NamedTuple):
    """Those of one host."""

    clients: list[Door]
    control: Door  # one of them, which takes every method
    admin: Server | None
    encrypted: dict[str, Server]  # all that speak TLS, by name

    def close(self) -> None:
        """Ends all connections."""
        for door in self.clients:
            door.close()


def doors_of(host: Host) -> Doors:
    """Every door that the settings of a host open."""
    tls = host.files.client_context() if host.row["tls"] != "none" else None
    token = ADMIN_TOKEN if host.row["tokens"] == "file" else ""
    doors: list[Door] = []
    servers = {name: server_of(address, tls) for name, address in host.addresses.items() if address}
    if "rpc" in servers:
        doors.append(RpcDoor(f"{host.name} rpc", token, servers["rpc"]))
    if host.unix is not None:
        doors.append(RpcDoor(f"{host.name} unix", "", None, str(host.unix)))
    control = doors[0]
    if "http" in servers:
        doors.append(HttpDoor(f"{host.name} http", token, servers["http"]))
    if "tarantool" in servers:
        doors.append(TarantoolDoor(f"{host.name} tarantool", token, servers["tarantool"]))
    admin = servers.pop("admin", None)
    if admin is not None:
        admin = admin._replace(tls=tls if host.row["admin"] == "wide" else None)
        if admin.tls is not None:
            servers["admin"] = admin
    return Doors(doors, control, admin, servers if tls is not None else {})
