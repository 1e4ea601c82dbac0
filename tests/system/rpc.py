"""A small MessagePack-RPC client of its own, so that the daemon is not judged by its own client.

Pipelined over one connection; every request is noted before it is sent, every reply when it arrives, and what was not
answered when the connection broke is `unknown`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack


class ConnectionLost(Exception):
    """The connection broke before the answer."""


class Rpc(asyncio.Protocol):
    """One connection; `call` returns (error, result)."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=64 << 20)
        self._waiting: dict[int, asyncio.Future[tuple[Any, Any]]] = {}
        self._msgid = 0
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, port: int, host: str = "127.0.0.1", source: str = "") -> Rpc:
        """`source`: the address that it comes from, where that is not left to the kernel."""
        local = (source, 0) if source else None
        _, protocol = await asyncio.get_running_loop().create_connection(cls, host, port, local_addr=local)
        return protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        for kind, msgid, error, result in self._unpacker:
            assert kind == 1
            waiting = self._waiting.pop(msgid)
            if not waiting.done():
                waiting.set_result((error, result))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionLost())
        self._waiting.clear()

    async def call(self, method: str, *params: Any) -> tuple[Any, Any]:
        """Raises Lost where it is not known what became of the request."""
        if self._transport is None:
            raise ConnectionLost
        self._msgid += 1
        future = self._waiting[self._msgid] = asyncio.get_running_loop().create_future()
        self._transport.write(msgpack.packb([0, self._msgid, method, list(params)]))
        answered: tuple[Any, Any] = await future
        return answered

    async def ask(self, method: str, *params: Any) -> Any:
        """The result; an error fails the test."""
        error, result = await self.call(method, *params)
        assert error is None, f"{method}{params}: {error}"
        return result

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
