"""A fast wrong system must not pass: between the load test and a right daemon stands something that is not.

The proxy changes what commands ask for, carries one out twice, or says it did what it did not; the crooked receiver
hides one cutoff, claims that one came early, and that one came that nobody owed. Each must be found.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import pytest
from aiohttp import web

from tests.system.daemon import Daemon
from tests.system.loadtest import LoadtestRun, loadtest
from tests.system.ports import free_port

SMALL = ("--accounts", "50", "--rate", "400", "--duration", "1", "--warmup", "0", "--runs", "1", "--quiet")
CUTOFFS = ("--exhaust-per-second", "20")
NTH = 300  # the command that goes wrong: one of the mix

Meddle = Callable[[list[Any]], list[list[Any]] | dict[str, Any]]


class Proxy:
    """Takes connections, and passes requests on as `meddle` makes them of the NTH one that is a top-up; a map is
    answered without asking the daemon. Replies go back, those to invented requests aside.
    """

    def __init__(self, port: int, meddle: Meddle) -> None:
        self._port = port
        self._meddle = meddle
        self._count = 0
        self.meddled = False
        self.replies: dict[str, dict[str, Any]] = {}  # user -> the last reply about them

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        tasks = [
            asyncio.create_task(self._out(reader, far_writer, writer)),
            asyncio.create_task(self._back(far_reader, writer)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for stream in (writer, far_writer):
            stream.close()
        for task in tasks:
            task.cancel()

    async def _out(self, reader: asyncio.StreamReader, far: asyncio.StreamWriter, near: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker()
        while data := await reader.read(65_536):
            unpacker.feed(data)
            for request in unpacker:
                self._count += 1
                messages: list[list[Any]] | dict[str, Any] = [request]
                if not self.meddled and self._count >= NTH and request[2] == "top_up":
                    self.meddled = True
                    messages = self._meddle(request)
                if isinstance(messages, dict):
                    near.write(msgpack.packb([1, request[1], None, {**self.replies[request[3][0]], **messages}]))
                else:
                    far.write(b"".join(msgpack.packb(message) for message in messages))

    async def _back(self, far: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker(strict_map_key=False)
        while data := await far.read(65_536):
            unpacker.feed(data)
            for reply in unpacker:
                if isinstance(reply[3], dict) and "user_id" in reply[3]:
                    self.replies[reply[3]["user_id"]] = reply[3]
                if reply[1] != INVENTED:
                    near.write(msgpack.packb(reply))


INVENTED = 2**32 - 1


def changed(request: list[Any]) -> list[list[Any]]:
    """One nano more than asked for."""
    kind, msgid, method, (user, amount, options) = request
    return [[kind, msgid, method, [user, amount + 1, options]]]


def doubled(request: list[Any]) -> list[list[Any]]:
    """Twice, the second time under another request_id."""
    kind, _, method, (user, amount, _) = request
    return [request, [kind, INVENTED, method, [user, amount, {"request_id": "again"}]]]


def dropped(request: list[Any]) -> dict[str, Any]:
    """Said to be done; what the reply tells is what was true before."""
    return {"replayed": False}


@contextlib.contextmanager
def served(make: Callable[[], Any]) -> Iterator[int]:
    """A server on a loop in a thread of its own; its port."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def main() -> None:
        server = await make()
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()

    thread = threading.Thread(target=lambda: (loop.create_task(main()), loop.run_forever()))
    thread.start()
    try:
        assert ready.wait(60)
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()


def wrong(outcome: LoadtestRun) -> str:
    """It ended with 1 and says so at the end; what it said."""
    assert outcome.code == 1, outcome.all
    assert outcome.result is not None, outcome.all
    assert not outcome.result.clean
    assert "DO NOT TRUST" in outcome.out
    return outcome.out


@pytest.fixture(scope="module")
def receiver() -> Iterator[str]:
    """The address of the real receiver."""
    address = f"127.0.0.1:{free_port()}"
    with daemon_receiver(address):
        yield address


@pytest.fixture(scope="module")
def daemon(module_dir: Path, receiver: str) -> Iterator[Daemon]:
    """One that is right, and calls the real receiver."""
    with Daemon(module_dir, shards__workers=1, cutoff__url=f"http://{receiver}/cutoff") as started:
        yield started


@pytest.mark.parametrize("meddle", [changed, doubled, dropped])
def test_a_system_that_is_wrong_about_one_command_fails(
    daemon: Daemon, data_dir: Path, meddle: Callable[..., Any]
) -> None:
    proxy = Proxy(daemon.rpc_port, meddle)
    with served(lambda: asyncio.start_server(proxy.serve, "127.0.0.1", 0)) as port:
        options = ("--address", f"127.0.0.1:{port}", "--config", str(daemon.config))
        outcome = loadtest(data_dir, *SMALL, *options)
    assert proxy.meddled
    wrong(outcome)
    assert outcome.result is not None
    money = outcome.result.runs[0].money
    assert money.wrong_balances + money.wrong_replies >= 1
    assert len(money.told) >= 1


def hidden(call: dict[str, Any]) -> dict[str, Any] | None:
    """Never came."""
    return None


def early(call: dict[str, Any]) -> dict[str, Any] | None:
    """Came a second before its instant."""
    return {**call, "arrived_ns": call["exhausted_at_ns"] - 10**9}


def false(call: dict[str, Any]) -> dict[str, Any] | None:
    """Came for an instant at which nobody ran dry."""
    return {**call, "exhausted_at_ns": call["exhausted_at_ns"] + 1}


FORGED = {"dry7": hidden, "dry8": early, "dry9": false}


def test_each_wrong_cutoff_is_found(daemon: Daemon, receiver: str, data_dir: Path) -> None:
    async def received(request: web.Request) -> web.Response:
        page_url = f"http://{receiver}/received"
        async with aiohttp.ClientSession() as session, session.get(page_url, params=request.query) as answer:
            page = await answer.json(content_type=None)
        calls = []
        for call in page["calls"]:
            forge = FORGED.get(call["user_id"].partition("@")[0])
            forged = call if forge is None else forge(call)
            if forged is not None:
                calls.append(forged)
            elif call["number"] == int(request.query["after"]):
                calls.append({**call, "method": "POST"})  # the reader must not notice a gap
        return web.json_response({**page, "calls": calls})

    async def serve() -> Any:
        application = web.Application()
        application.router.add_get("/received", received)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return site._server

    with served(serve) as port:
        options = ("--address", daemon.address, "--config", str(daemon.config), "--receiver", f"127.0.0.1:{port}")
        outcome = loadtest(data_dir, *SMALL, *CUTOFFS, *options)
    wrong(outcome)
    assert outcome.result is not None
    cutoffs = outcome.result.runs[0].cutoffs
    assert (cutoffs.missing, cutoffs.early, cutoffs.false) == (2, 1, 1)  # the false one came in place of a true one
    assert outcome.result.runs[0].money.clean


@contextlib.contextmanager
def daemon_receiver(address: str) -> Iterator[None]:
    """The real receiver, where the daemon calls it."""
    command = [sys.executable, "-m", "billing", "receiver", "--quiet", "--listen", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"listening" in process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
