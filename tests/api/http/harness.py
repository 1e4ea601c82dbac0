"""The HTTP door on a loopback socket, with a worker behind it that notes what it is asked, and clients of bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from billing.api.auth import Guard
from billing.api.door import Door, Limits
from billing.api.http.server import HttpDoor
from tests.api.outside import Clock, FakeGate

WALL_NS = 1_764_335_000 * 10**9


class Answer(NamedTuple):
    """One response."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """A connection of raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self, *, head: bool = False) -> Answer:
        """The next whole response; raises EOFError where the connection is closed first."""
        async with asyncio.timeout(60):
            try:
                text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except (asyncio.IncompleteReadError, ConnectionError):
                raise EOFError from None
            first, *lines = text.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = b"" if head else await self.reader.readexactly(int(headers.get("content-length", 0)))
            return Answer(int(first.split()[1]), headers, body)

    async def ask(self, data: bytes) -> Answer:
        self.writer.write(data)
        return await self.answer()

    async def is_closed(self) -> bool:
        async with asyncio.timeout(60):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


def request(verb: str, path: str, body: Any = None, **headers: str) -> bytes:
    """A request as bytes. `body`: bytes as they are, anything else as JSON. Underscores in names stand for hyphens."""
    named = {"Host": "127.0.0.1:3312"} | {name.replace("_", "-"): value for name, value in headers.items()}
    content = b""
    if body is not None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json", "Content-Length": str(len(content))} | named
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
    return f"{verb} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content


class HttpHarness:
    """See the module."""

    def __init__(self, limits: Limits, guard: Guard) -> None:
        self.gate = FakeGate()
        self.clock = Clock()
        self.bugs: list[BaseException] = []
        self.door = Door(self.gate, guard, self.clock, lambda: {"version": "0"}, limits, self.bugs.append)
        self.server: asyncio.Server | None = None
        self.address: Any = None
        self._wires: list[RawClient] = []

    async def connect(self) -> RawClient:
        wire = RawClient(*await asyncio.open_connection(*self.address))
        self._wires.append(wire)
        return wire

    async def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request over a connection of its own."""
        return await (await self.connect()).ask(request(verb, path, body, **headers))

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(60):
            while not holds():
                await asyncio.sleep(0.001)

    def close(self) -> None:
        for wire in self._wires:
            wire.writer.close()
        self.door.close()
        if self.server is not None:
            self.server.close()


@asynccontextmanager
async def open_harness(limits: Limits | None = None, guard: Guard | None = None) -> AsyncIterator[HttpHarness]:
    """A door on a free loopback port."""
    harness = HttpHarness(limits or Limits(), guard or Guard())
    http = HttpDoor(harness.door, lambda: WALL_NS)
    harness.server = await asyncio.get_running_loop().create_server(http.connection, "127.0.0.1", 0)
    harness.address = harness.server.sockets[0].getsockname()[:2]
    try:
        yield harness
    finally:
        harness.close()
