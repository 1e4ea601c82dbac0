"""Connections of the admin server: bounded, and closed where nothing whole comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from billing.admin.visits import VisitLimits, Visits
from shards.system.clock import MACHINE_CLOCKS

WAIT_S = 60.0
GET = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class VisitsHarness(NamedTuple):
    port: int
    visits: Visits
    hold: asyncio.Event  # until it is set, /slow is being answered

    async def client(self, sent: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        return reader, writer

    def set(self, **seconds: Any) -> None:
        self.visits.limits = self.visits.limits._replace(**seconds)


@pytest.fixture
async def harness() -> AsyncIterator[VisitsHarness]:
    hold = asyncio.Event()
    harnesses: list[VisitsHarness] = []

    @web.middleware
    async def door(request: web.Request, handler: Handler) -> web.StreamResponse:
        harnesses[0].visits.answering(request.protocol, 1)
        try:
            return await handler(request)
        finally:
            harnesses[0].visits.answering(request.protocol, -1)

    async def quick(_: web.Request) -> web.Response:
        return web.Response(text="well")

    async def slow(_: web.Request) -> web.Response:
        await hold.wait()
        return web.Response(text="well")

    application = web.Application(middlewares=[door])
    application.router.add_get("/quick", quick)
    application.router.add_get("/slow", slow)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    assert runner.server is not None
    visits = Visits(runner.server, VisitLimits(visits_max=4), MACHINE_CLOCKS.boot_ns)
    server = await asyncio.get_running_loop().create_server(visits.arriving, "127.0.0.1", 0)
    harnesses.append(VisitsHarness(server.sockets[0].getsockname()[1], visits, hold))
    yield harnesses[0]
    hold.set()
    server.close()
    visits.close()
    await runner.cleanup()


async def answer_of(streams: Streams) -> bytes:
    """The status line and what follows it, up to the body's end."""
    async with asyncio.timeout(WAIT_S):
        return await streams[0].readuntil(b"well")


async def is_closed(streams: Streams) -> bool:
    """Waits for the end of a connection on which nothing comes any more."""
    async with asyncio.timeout(WAIT_S):
        try:
            return await streams[0].read(1) == b""
        except ConnectionResetError:
            return True


async def until(visits: Visits, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while len(visits) != count:
            await asyncio.sleep(0.005)


async def test_the_quietest_makes_room_and_who_is_being_answered_never_does(harness: VisitsHarness) -> None:
    answered = await harness.client(GET % b"slow")
    crowd = [await harness.client() for _ in range(3)]
    await until(harness.visits, 4)
    late = []  # kept: of one that is forgotten, its end makes room
    for _ in range(20):
        late.append(await harness.client(GET % b"quick"))
        assert (await answer_of(late[-1])).startswith(b"HTTP/1.1 200")
    assert [await is_closed(reader) for reader in crowd] == [True, True, True]
    assert len(harness.visits) <= 4
    harness.hold.set()
    assert (await answer_of(answered)).startswith(b"HTTP/1.1 200")


async def test_where_all_are_being_answered_one_more_is_closed(harness: VisitsHarness) -> None:
    busy = [await harness.client(GET % b"slow") for _ in range(4)]
    async with asyncio.timeout(WAIT_S):
        while sum(visit.answering for visit in harness.visits._open.values()) < 4:
            await asyncio.sleep(0.005)
    assert await is_closed(await harness.client(GET % b"quick"))
    harness.hold.set()
    assert [(await answer_of(reader)).startswith(b"HTTP/1.1 200") for reader in busy] == [True] * 4


@pytest.mark.parametrize("sent", [b"", b"GET /qui", b"GET /quick HTTP/1.1\r\nHost: localhost\r\n"])
async def test_what_never_becomes_a_request_is_closed(harness: VisitsHarness, sent: bytes) -> None:
    harness.set(request_s=0.05)
    assert await is_closed(await harness.client(sent))
    await until(harness.visits, 0)


async def test_a_half_request_behind_a_whole_one_is_closed_and_idleness_is_borne_longer(harness: VisitsHarness) -> None:
    harness.set(request_s=0.05)
    idle = await harness.client(GET % b"quick")
    half = await harness.client(GET % b"quick")
    await answer_of(idle)
    await answer_of(half)
    half[1].write(b"GET /qui")
    assert await is_closed(half)
    await until(harness.visits, 1)
    idle[1].write(GET % b"quick")
    assert (await answer_of(idle)).startswith(b"HTTP/1.1 200")
    harness.set(idle_s=0.05)
    assert await is_closed(idle)


async def test_who_does_not_read_what_is_sent_is_closed(harness: VisitsHarness) -> None:
    harness.set(stall_s=0.05)
    reading = await harness.client(GET % b"slow")
    await until(harness.visits, 1)
    (visit,) = harness.visits._open.values()
    visit.pause_writing()  # as its transport does, once its buffer is full
    assert await is_closed(reading)
