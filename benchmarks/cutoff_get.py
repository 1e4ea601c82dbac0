"""The CPU microseconds of a cutoff's GET in the sending process, by several ways of using aiohttp.

From top to bottom: `session.get` with its defaults; the same session with everything optional switched off; aiohttp's
request and response classes without a session; a held aiohttp connection and its parser; a bare protocol on a
keep-alive socket (the floor of the loop). Then delivery as a whole, unsigned and signed: outbox, query of what is owed,
request bytes, exchange and both reports.

The receiver is `billing receiver` in a process of its own. Each way sends `--count` GETs over `--connections` kept-open
connections, and a tenth as many over a single one (where the wake-up for each answer dominates the cost).

    python -m benchmarks.cutoff_get [--count 20000] [--connections 64]
"""

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any

import aiohttp
import uvloop
from yarl import URL

from benchmarks.floor import child_process
from billing.expirationd.delivery import Delivery, DeliveryDependencies, DeliverySettings, Obligations, Owed, one_by_one
from billing.expirationd.request import GetTemplate
from billing.trial.receiver import Receiver, run_receiver
from shards.system.clock import MACHINE_CLOCKS

E = 1_700_000_000_000_000_000
HEADERS = {"webhook-id": "e", "webhook-timestamp": "1700000000", "Cache-Control": "no-store"}
Call = Callable[[int], Awaitable[None]]


class LeanRequest(aiohttp.ClientRequest):
    """A request without Accept, Accept-Encoding and User-Agent."""

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        return None


def check(status: int) -> None:
    assert status == 200, status


class Bare(asyncio.Protocol):
    """A connection, and the future of its next answer."""

    transport: asyncio.WriteTransport
    answer: asyncio.Future[bytes]

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.answer.set_result(data)


class Ways:
    """The ways of sending: each method returns a function that sends one GET."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.loop = asyncio.get_running_loop()
        self.template = GetTemplate(base + "/off")
        self.cleanup: list[Callable[[], Awaitable[None]]] = []

    def url(self, number: int) -> str:
        return f"{self.base}/off?user_id=user_{number}&event_id=e&seq=3&exhausted_at_ns={E}"

    def plain(self) -> Call:
        session = aiohttp.ClientSession()
        self.cleanup.append(session.close)

        async def call(number: int) -> None:
            async with session.get(self.url(number), headers=HEADERS) as answer:
                await answer.read()
                check(answer.status)

        return call

    def tuned(self) -> Call:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            request_class=LeanRequest,
        )
        self.cleanup.append(session.close)

        async def call(number: int) -> None:
            url = URL(self.url(number), encoded=True)
            async with session.get(url, headers=HEADERS, allow_redirects=False) as answer:
                check(answer.status)

        return call

    def classes(self) -> Call:
        connector = aiohttp.TCPConnector(limit=0)
        self.cleanup.append(connector.close)
        timeout = aiohttp.ClientTimeout(total=None)

        async def call(number: int) -> None:
            url = URL(self.url(number), encoded=True)
            request = LeanRequest("GET", url, headers=HEADERS, loop=self.loop)
            connection = await connector.connect(request, [], timeout)
            assert connection.protocol is not None
            connection.protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            answer = await request.send(connection)
            await answer.start(connection)
            check(answer.status)
            answer.release()

        return call

    def held(self) -> Call:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        free: list[aiohttp.connector.Connection] = []

        async def call(number: int) -> None:
            if free:
                connection = free.pop()
            else:
                request = aiohttp.ClientRequest("GET", URL(self.base), loop=self.loop)
                connection = await connector.connect(request, [], timeout)
            protocol = connection.protocol
            assert protocol is not None
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            assert connection.transport is not None
            connection.transport.write(self.template.request(b"user_%d" % number, "e", 3, E, 1_700_000_000))
            message, _ = await protocol.read()
            check(message.code)
            free.append(connection)

        async def close() -> None:
            for connection in free:
                connection.close()
            await connector.close()

        self.cleanup.append(close)
        return call

    def bare(self) -> Call:
        free: list[Bare] = []
        port = int(self.base.rpartition(":")[2])

        async def call(number: int) -> None:
            if free:
                protocol = free.pop()
            else:
                _, protocol = await self.loop.create_connection(Bare, "127.0.0.1", port)
            protocol.answer = self.loop.create_future()
            protocol.transport.write(self.template.request(b"user_%d" % number, "e", 3, E, 1_700_000_000))
            assert (await protocol.answer).startswith(b"HTTP/1.1 200")
            free.append(protocol)

        async def close() -> None:
            for protocol in free:
                protocol.transport.close()

        self.cleanup.append(close)
        return call

    def delivery(self, secrets: tuple[bytes, ...] = ()) -> Call:
        waiting: dict[bytes, asyncio.Future[None]] = {}

        def owed(bucket_id: int, user_id: bytes) -> Owed | None:
            return ("cutoff", "e", 3, E, 0, E, "") if user_id in waiting else None

        def report(kind: str, bucket_id: int, user_id: bytes, seq: int, outcome: str, error: str, now_ns: int) -> None:
            if outcome == "delivered":
                waiting.pop(user_id).set_result(None)
            else:
                assert outcome == "started", error

        def failed(error: BaseException) -> None:
            raise error

        settings = DeliverySettings(self.base + "/off", secrets=secrets)
        dependencies = DeliveryDependencies(MACHINE_CLOCKS, random.Random(1))
        delivery = Delivery(Obligations(owed, one_by_one(report)), settings, time.time_ns, failed, dependencies)
        delivery.start()
        self.cleanup.append(delivery.close)

        async def call(number: int) -> None:
            user_id = b"user_%d" % number
            waiting[user_id] = future = self.loop.create_future()
            delivery.notify(1, user_id, since_ns=E)
            await future

        return call


async def cost_us(call: Call, count: int, connections: int) -> tuple[float, float]:
    """Returns (CPU, elapsed) microseconds per GET."""
    numbers = iter(range(count))

    async def sender() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(call(-1 - number) for number in range(connections)))  # opens the connections
    cpu, elapsed = time.process_time_ns(), time.perf_counter_ns()
    await asyncio.gather(*(sender() for _ in range(connections)))
    return (time.process_time_ns() - cpu) / 1000 / count, (time.perf_counter_ns() - elapsed) / 1000 / count


async def measure(base: str, count: int, connections: int) -> None:
    ways = Ways(base)
    table: list[tuple[str, Callable[[], Call]]] = [
        ("session.get", ways.plain),
        ("session.get, all optional off", ways.tuned),
        ("request and response classes", ways.classes),
        ("held connection and parser", ways.held),
        ("bare protocol", ways.bare),
        ("delivery, all included", ways.delivery),
        ("delivery, signed", lambda: ways.delivery((b"s" * 32,))),
    ]
    print(f"{'us of CPU a GET (elapsed)':<34}{connections:>6} connections{'one':>19}")
    for name, opened in table:
        call = opened()
        cpu, elapsed = await cost_us(call, count, connections)
        cpu_one, elapsed_one = await cost_us(call, count // 10, 1)
        print(f"{name:<34}{cpu:8.1f} ({elapsed:6.1f}){cpu_one:12.1f} ({elapsed_one:6.1f})")
        while ways.cleanup:
            await ways.cleanup.pop()()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    with receiver() as base:
        uvloop.run(measure(base, options.count, options.connections))


@contextmanager
def receiver() -> Iterator[str]:
    """Runs `billing receiver` in a process of its own until the end of the block; gives its base URL."""
    with child_process(receive) as pipe:
        yield f"http://127.0.0.1:{int(pipe.recv().rsplit(':', 1)[1])}"


def receive(pipe: Pipe) -> None:
    """The main function of that process."""
    run_receiver(Receiver(), pipe.send)


if __name__ == "__main__":
    main()
