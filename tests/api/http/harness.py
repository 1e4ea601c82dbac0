"""The HTTP door on a loopback socket, with a worker behind it that notes what it is asked, and clients of bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from billing.api.auth import Guard
from billing.api.door import Limits
from billing.api.http.server import HttpDoor
from tests.api.outside import WAIT_S, OpenDoor, Wire

WALL_NS = 1_764_335_000 * 10**9


class Answer(NamedTuple):
    """One response."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawClient(Wire):
    """A client of raw bytes that understands the responses."""

    async def answer(self, *, head: bool = False) -> Answer:
        """The next whole response; raises EOFError where the connection is closed first."""
        async with asyncio.timeout(WAIT_S):
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


def request(verb: str, path: str, body: Any = None, **headers: str) -> bytes:
    """A request as bytes. `body`: bytes as they are, anything else as JSON. Underscores in names stand for hyphens."""
    named = {"Host": "127.0.0.1:3312"} | {name.replace("_", "-"): value for name, value in headers.items()}
    content = b""
    if body is not None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json", "Content-Length": str(len(content))} | named
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
    return f"{verb} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content


class HttpHarness(OpenDoor):
    """The door of HTTP."""

    async def connect(self) -> RawClient:
        wire = RawClient(*await asyncio.open_connection(*self.address))
        self._wires.append(wire)
        return wire

    async def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request over a connection of its own."""
        return await (await self.connect()).ask(request(verb, path, body, **headers))


@asynccontextmanager
async def open_harness(limits: Limits | None = None, guard: Guard | None = None) -> AsyncIterator[HttpHarness]:
    """A door on a free loopback port."""
    harness = HttpHarness(limits or Limits(), guard or Guard())
    http = HttpDoor(harness.door, lambda: WALL_NS)
    await harness.listen(http.connection)
    try:
        yield harness
    finally:
        harness.close()
