"""What lies outside the room of the doors: a worker behind them that writes down what it is asked, a clock that is
set by hand, and a client that speaks in literal bytes. `Wire` and `OpenDoor` are of any protocol, the rest of the RPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, MutableSequence, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from billing.api.auth import Guard
from billing.api.door import Door, Limits
from billing.api.msgpack_rpc import Connection
from shards.buckets import bucket_id_of

SECOND_NS = 1_000_000_000
WAIT_S = 60  # for whatever the other side does at once, on a busy machine


class Clock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)


class FakeGate:
    """A worker that carries out nothing: it writes down every request, and answers each in the next turn of the loop
    (as after a sync), or when `release` is called. `replies` may name another reply for a request, or what makes it.
    """

    def __init__(self, bucket_count: int = 3000) -> None:
        self.bucket_count = bucket_count
        self.asked: MutableSequence[tuple[str, Any]] = []
        self.waiting: list[tuple[Any, Any, object]] = []
        self.holds_back = False
        self.replies: dict[str, object] = {}
        self._before_turn: list[Callable[[], None]] = []
        self.broken: BaseException | None = None  # raised instead of carrying anything out

    def arrived(self) -> None:
        """This gate stamps nothing."""

    def bucket_of(self, key: bytes) -> int:
        return bucket_id_of(key, self.bucket_count)

    def submit(self, caller: Any, token: Any, bucket_id: int, command: Any) -> None:
        assert bucket_id == self.bucket_of(command[1])
        self._ask("submit", caller, token, command, {"user_id": command[1].decode(), "bucket_id": bucket_id})

    def before_turn(self, work: Callable[[], None]) -> None:
        """The next turn of the loop, or `turn`."""
        self._before_turn.append(work)
        with contextlib.suppress(RuntimeError):  # nothing runs
            asyncio.get_running_loop().call_soon(self.turn)

    def turn(self) -> None:
        works, self._before_turn = self._before_turn, []
        for work in works:
            work()

    def submit_all(self, requests: Sequence[tuple[Any, Any, int, Any]]) -> None:
        for caller, token, bucket_id, command in requests:
            self.submit(caller, token, bucket_id, command)

    def read(self, caller: Any, token: Any, bucket_id: int, query: Any) -> None:
        assert bucket_id == self.bucket_of(query[1])
        self._ask("read", caller, token, query, [] if query[0] == "history" else {"bucket_id": bucket_id})

    def operate(self, caller: Any, token: Any, operation: Any) -> None:
        self._ask("operate", caller, token, operation, [])

    def _ask(self, kind: str, caller: Any, token: Any, what: Any, reply: object) -> None:
        if self.broken is not None:
            raise self.broken
        self.asked.append((kind, what))
        answer = self.replies.get(str(what[0]), reply)
        self.waiting.append((caller, token, answer(what) if callable(answer) else answer))
        if len(self.waiting) == 1 and not self.holds_back:
            asyncio.get_running_loop().call_soon(self.release)

    def release(self, count: int | None = None) -> None:
        """Answers the oldest `count` requests, or all."""
        self.turn()
        leaving = self.waiting[:count]
        del self.waiting[:count]
        for caller, token, reply in leaving:
            caller.answer(token, reply)
        for caller in {caller for caller, _, _ in leaving}:
            caller.flush()

    @property
    def commands(self) -> list[Any]:
        return [what for kind, what in self.asked if kind == "submit"]

    @property
    def operations(self) -> list[Any]:
        return [what for kind, what in self.asked if kind == "operate"]


class Wire:
    """A client's connection of raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def is_closed(self) -> bool:
        """Whether the other side has closed, everything it said being read."""
        try:
            async with asyncio.timeout(WAIT_S):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True


class RawClient(Wire):
    """A client of raw bytes that understands the replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> Any:
        """The next whole message; raises EOFError where the connection is closed first."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for message in self._unpacker:
                    return message
                data = await self.reader.read(65_536)
                if not data:
                    raise EOFError
                self._unpacker.feed(data)

    async def replies(self, count: int) -> list[Any]:
        return [await self.reply() for _ in range(count)]

    async def ask(self, data: bytes) -> Any:
        self.send(data)
        return await self.reply()

    async def call(self, method: str, *params: Any, msgid: int = 7) -> Any:
        """(error, result) of one call."""
        answer = await self.ask(msgpack.packb([0, msgid, method, list(params)]))
        assert answer[:2] == [1, msgid]
        return answer[2], answer[3]

    async def alive(self) -> bool:
        answered: tuple[object, object] = await self.call("ping", msgid=4_000_000_000)
        return answered == (None, "pong")


class OpenDoor:
    """A door that listens, with the world around it: the worker behind it, its clock, and who has connected."""

    def __init__(self, limits: Limits, guard: Guard) -> None:
        self.gate = FakeGate()
        self.clock = Clock()
        self.bugs: list[BaseException] = []
        self.info: dict[str, object] = {"name": "billing", "version": "0"}  # of the server
        self.door = Door(self.gate, guard, self.clock, lambda: self.info, limits, self.bugs.append)
        self.server: asyncio.Server | None = None
        self.address: Any = None
        self._wires: list[Wire] = []

    async def listen(self, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """On a free loopback port, with a protocol for each connection."""
        self.server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()[:2]

    async def until(self, holds: Any) -> None:
        """Waits until `holds()` is true."""
        async with asyncio.timeout(WAIT_S):
            while not holds():
                await asyncio.sleep(0.001)

    def close(self) -> None:
        for wire in self._wires:
            wire.writer.close()
        self.door.close()
        if self.server is not None:
            self.server.close()


class DoorHarness(OpenDoor):
    """The door of the RPC."""

    async def connect(self, *, receive_bytes: int = 0) -> RawClient:
        """A client; with `receive_bytes` its kernel takes little more than that before it is read."""
        if isinstance(self.address, str):
            reader, writer = await asyncio.open_unix_connection(self.address)
        elif receive_bytes:
            plain = socket.socket()
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            plain.setblocking(False)
            await asyncio.get_running_loop().sock_connect(plain, self.address)
            reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
        else:
            reader, writer = await asyncio.open_connection(*self.address)
        wire = RawClient(reader, writer)
        self._wires.append(wire)
        return wire

    async def settle(self) -> None:
        """Lets both ends carry out what was sent."""
        for _ in range(20):
            await asyncio.sleep(0.001)


@asynccontextmanager
async def open_harness(
    limits: Limits | None = None, guard: Guard | None = None, path: str = ""
) -> AsyncIterator[DoorHarness]:
    """A harness on a free loopback port, or on a unix socket at `path`."""
    harness = DoorHarness(limits or Limits(), guard or Guard())
    if path:
        loop = asyncio.get_running_loop()
        harness.server = await loop.create_unix_server(lambda: Connection(harness.door), path)
        harness.address = path
    else:
        await harness.listen(lambda: Connection(harness.door))
    try:
        yield harness
    finally:
        harness.close()
