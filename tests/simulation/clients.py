"""Clients of the daemon: MessagePack-RPC over simulated connections, with time-outs, losses and retries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgpack

from tests.simulation.auditor import Auditor
from tests.simulation.calls import COMMANDS, Call, Programs
from tests.simulation.loop import SECOND_NS
from tests.simulation.wires import NetLoop, SimSocket, Stream

ANSWER_WAIT_S = 4.0
LOST = object()


class Protocol(asyncio.Protocol):
    """One connection; answers by number."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self._unpacker = msgpack.Unpacker(raw=False, unicode_errors="surrogateescape", strict_map_key=False)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        for kind, number, error, result in self._unpacker:
            assert kind == 1, "a push"
            future = self.waiting.pop(number, None)
            assert future is not None, f"an answer to nothing: {number}, {error}, {result}"
            if not future.done():
                future.set_result((error, result))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        for future in self.waiting.values():
            if not future.done():
                future.set_result(LOST)
        self.waiting.clear()


class Client:
    """One program of calls, one connection at a time."""

    wait_s = ANSWER_WAIT_S  # for an answer, until the connection is given up
    rest_s = 0.3  # between calls beyond those that it has to make

    def __init__(
        self,
        name: str,
        loop: NetLoop,
        door: SimSocket,
        auditor: Auditor,
        programs: Programs,
        rng: random.Random,
        trace: Callable[..., None],
    ) -> None:
        self.name = name
        self.calls = self.retries = self.unknown = 0
        self.refusals: dict[str, int] = {}
        self.stream: Stream | None = None
        self._loop = loop
        self._door = door
        self._auditor = auditor
        self._programs = programs
        self._rng = rng
        self._trace = trace
        self._protocol: Protocol | None = None
        self._number = 0

    async def run(self, count: int, is_over: Callable[[], bool]) -> None:
        """So many calls, several at once, and more until `is_over` says that it is enough."""
        while self.calls < count or not is_over():
            together = [self._programs.call() for _ in range(self._rng.choice((1, 1, 1, 2, 4)))]
            self.calls += len(together)
            await self._all(together)
            pause_s = self._rng.choice((0.0, 0.002, 0.02, 0.1)) if self.calls < count else self.rest_s
            await asyncio.sleep(pause_s * self._rng.random())

    async def open_accounts(self) -> None:
        """Each user gets some money."""
        for user in self._programs.users:
            call = Call("top_up", user, [3 * 10**9], {"request_id": b"first", "message": b"first " + user})
            call.tag = b"first " + user
            await self.until_known(call)

    async def until_known(self, call: Call) -> Any:
        """Asks until there is an answer."""
        while True:
            await self._all([call])
            if call.answer is not None:
                return call.answer

    async def ask(self, method: str, *params: Any) -> tuple[Any, Any]:
        """An operator's question, once: (error, result); where the connection was lost, both are None."""
        protocol = await self._connected()
        if protocol.transport is None:
            return None, None
        self._number += 1
        future = protocol.waiting[self._number] = self._loop.create_future()
        protocol.transport.write(msgpack.packb([0, self._number, method, list(params)]))
        futures_done, _ = await asyncio.wait([future], timeout=20.0)
        if not futures_done:
            self.drop()
            return None, None
        outcome = future.result()
        self._trace(self.name, method, params, outcome if outcome is not LOST else "-")
        return (None, None) if outcome is LOST else outcome

    def drop(self) -> None:
        """Ends the connection; the next call makes another."""
        if self._protocol is not None and self._protocol.transport is not None:
            self._protocol.transport.close()
        self._protocol = None

    async def _all(self, calls: list[Call]) -> None:
        """Sends calls together, each again until its outcome is known, or must stay unknown."""
        pause_s = 0.02
        while calls:
            outcomes = await self._send(calls)
            retried = []
            for call, outcome in zip(calls, outcomes, strict=True):
                if self._take(call, outcome):
                    retried.append(call)
            calls = retried
            if calls:
                self.retries += len(calls)
                await asyncio.sleep(pause_s * (0.5 + self._rng.random()))
                pause_s = min(1.0, pause_s * 2)

    async def _send(self, calls: list[Call]) -> list[Any]:
        protocol = await self._connected()
        futures = []
        data = b""
        for call in calls:
            call.tries += 1
            self._auditor.on_send(call)
            self._number += 1
            futures.append(self._loop.create_future())
            protocol.waiting[self._number] = futures[-1]
            data += msgpack.packb([0, self._number, call.method, call.wire])
        if protocol.transport is None:
            protocol.connection_lost(None)
        else:
            protocol.transport.write(data)
        futures_done, pending = await asyncio.wait(futures, timeout=self.wait_s)
        if pending:  # it hangs: give the connection up
            self.unknown += len(pending)
            self.drop()
        return [future.result() if future in futures_done else LOST for future in futures]

    def _take(self, call: Call, outcome: Any) -> bool:
        """Hands an outcome to the auditor; whether the call is to be sent again."""
        text = outcome if outcome is not LOST else "-"
        self._trace(self.name, call.method, call.user, call.tries, call.request_id, text)
        if outcome is LOST:
            return bool(call.request_id) or call.method not in COMMANDS
        error, result = outcome
        if error is None:
            call.answer = result
            if call.method == "history":
                self._auditor.read_history(call, result)
            else:
                self._auditor.answered(call, result)
            if call.method == "hold":
                self._programs.holds.setdefault(call.user, []).append(result["hold_id"])
            return False
        self.refusals[error["name"]] = self.refusals.get(error["name"], 0) + 1
        if error["retry"]:
            return error["applied"] == "no" or bool(call.request_id) or call.method not in COMMANDS
        call.answer = error
        self._auditor.refused(call, error)
        return False

    async def _chosen(self) -> SimSocket:
        """The door to knock at."""
        return self._door

    async def _connected(self) -> Protocol:
        while self._protocol is None or self._protocol.transport is None:
            door = await self._chosen()
            protocol = Protocol()
            stream = self.stream = Stream(self._loop.kernel, self._rng.getrandbits(32), self._loop.net.slow)
            assert door.listener is not None
            door.listener.connect(stream.ends[1])
            self._loop.net.attach(stream.ends[0], self._loop, protocol)
            await asyncio.sleep(0.001)
            if protocol.transport is None:
                await asyncio.sleep(0.05)
                continue
            self._number += 1
            greeting = protocol.waiting[self._number] = self._loop.create_future()
            protocol.transport.write(msgpack.packb([0, self._number, "hello", [{"errors": "map"}]]))
            futures_done, _ = await asyncio.wait([greeting], timeout=self.wait_s)
            if futures_done and greeting.result() is not LOST:
                self._protocol = protocol
            elif protocol.transport is not None:
                protocol.transport.close()
        return self._protocol


assert SECOND_NS == 10**9
