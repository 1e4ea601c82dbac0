"""Whom a client calls, with which token, and what it does where nobody answers; and the same from threads."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import pytest

from billing.api.auth import Guard
from billing.client import BillingError, Client, InsufficientFunds, SyncClient, Unauthenticated, Unavailable
from billing.client.client import TIMEOUT_S
from billing.client.connection import GONE_S, _probe
from tests.api.outside import DoorHarness, open_harness
from tests.api.test_auth import TOKENS
from tests.client.test_client import open_liar, request
from tests.system.daemon import Daemon
from tests.system.ports import free_port


def address_of(harness: DoorHarness) -> str:
    return f"{harness.address[0]}:{harness.address[1]}"


async def test_where_an_address_does_not_answer_the_next_one_is_tried(harness: DoorHarness) -> None:
    async with Client([f"127.0.0.1:{free_port()}", address_of(harness)], timeout_s=60.0) as client:
        assert await client.ping() == "pong"


async def test_where_the_sign_in_is_not_answered_the_next_address_is_tried(harness: DoorHarness) -> None:
    """As while the daemon of one host starts: its sockets take connections long before it serves."""
    silent = socket.create_server(("127.0.0.1", 0))
    async with Client([f"127.0.0.1:{silent.getsockname()[1]}", address_of(harness)]) as client:
        assert await client.ping() == "pong"
    silent.close()


async def test_a_connection_that_answers_nothing_any_more_is_left() -> None:
    """As to a worker that hangs, while others serve at the same address."""
    hung = asyncio.Event()

    async def hang_at_first(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        while count > 1:
            message = await request(unpacker, reader)
            writer.write(msgpack.packb([1, message[1], None, "pong"]))
        await hung.wait()

    async with open_liar(hang_at_first) as address, Client(address) as client:
        with pytest.raises(Unavailable, match="no answer"):
            await client.call("ping", timeout_s=0.01)
        first = client._link.connection
        assert first is not None
        assert first._watches
        first._leave_silent(first._heard - 1)  # something has come meanwhile
        assert client._link.connection is first
        first._leave_silent(first._heard)
        assert await client.call("ping") == "pong"
        hung.set()


async def test_a_connection_whose_worker_serves_is_kept_while_one_call_takes_long(harness: DoorHarness) -> None:
    """As a backup does, or everything while the log is out of reach: other calls on it would be lost with it."""
    harness.gate.holds_back = True
    async with Client(address_of(harness)) as client:
        with pytest.raises(Unavailable, match="no answer"):
            await client.call("top_up", "u", "5", timeout_s=0.01)
        connection = client._link.connection
        assert connection is not None
        heard = 1  # the sign-in
        await harness.until(lambda: connection._heard > heard)
        connection._leave_silent(heard)
        assert await client.call("ping") == "pong"
        assert client._link.connection is connection


def test_a_kernel_without_these_probes_is_no_reason_to_have_no_connection() -> None:
    here, there = socket.socketpair()  # which know no option of TCP
    with here, there:
        _probe(here, GONE_S)
        assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_a_host_that_is_gone_without_a_word_ends_the_connection(harness: DoorHarness) -> None:
    """By the kernel, which tells it by what is not acknowledged; with time left to go on at the next address."""
    async with Client(address_of(harness)) as client:
        connection = client._link.connection
        assert connection is not None
        assert connection.transport is not None
        plain = connection.transport.get_extra_info("socket")
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        idle_s, each_s, count, unheard_ms = (plain.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        assert idle_s + each_s * count == unheard_ms / 1000 == GONE_S < TIMEOUT_S
        async with client.batch(print) as batch:  # which a daemon whose log stands still stops reading
            connection = batch._link.connection
            assert connection is not None
            assert connection.transport is not None
            plain = connection.transport.get_extra_info("socket")
            assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 60_000


def test_a_handler_of_a_signal_may_close_amid_a_call() -> None:
    client = SyncClient("127.0.0.1:1")

    def call() -> None:
        with client._lock:
            client.close()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


async def test_a_call_goes_on_at_the_next_address_under_its_request_id(harness: DoorHarness) -> None:
    async with open_harness() as first:
        first.gate.holds_back = True
        async with Client([address_of(first), address_of(harness)], jitter=lambda: 0.0) as client:
            top_up = asyncio.ensure_future(client.top_up("u", "5", request_id="r1"))
            await first.until(lambda: first.gate.commands)
            first.close()
            assert (await top_up).user_id == "u"
    assert harness.gate.commands == first.gate.commands


async def test_where_nobody_listens_at_any_address_it_says_so_at_once() -> None:
    client = Client([f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"], timeout_s=3600.0)
    with pytest.raises(Unavailable, match="cannot connect"):
        await client.connect()
    client.close()
    with pytest.raises(ValueError, match="at least one address"):
        Client([])


async def test_who_could_not_be_connected_to_is_left_alone() -> None:
    address = f"127.0.0.1:{free_port()}"
    client = Client(address)
    for entered in (client, client.batch(print), client.fan_out(print)):
        with pytest.raises((BillingError, TimeoutError)):
            async with asyncio.timeout(0.1), entered:  # a batch waits until somebody listens
                pass
    async with asyncio.timeout(10):
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)


async def test_a_connection_on_which_nobody_answers_is_told_from_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        client = Client(f"127.0.0.1:{nobody.getsockname()[1]}", timeout_s=1.0)
        with pytest.raises(Unavailable, match="within 1 s: connected, and not answered"):
            await client.ping()
        client.close()


async def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    held = tmp_path / "token"
    held.write_text("shop\n")
    async with open_harness(guard=Guard(TOKENS)) as harness:
        ways: list[dict[str, Any]] = [
            {"token_file": held, "environment": {"BILLING_TOKEN": "wrong"}},
            {"environment": {"BILLING_TOKEN_FILE": str(held)}},
            {"environment": {"BILLING_TOKEN": "shop", "BILLING_TOKEN_FILE": "/nonexistent"}},
            {"token": "shop", "environment": {"BILLING_TOKEN": "wrong"}},
        ]
        for way in ways:
            async with Client(address_of(harness), **way) as client:
                assert (await client.top_up("u", "5")).user_id == "u"
        with pytest.raises(Unauthenticated):
            await Client(address_of(harness), environment={"BILLING_TOKEN": "wrong"}).connect()


def test_a_program_without_a_loop_calls_from_any_thread(tmp_path: Path) -> None:
    with Daemon(tmp_path, shards__workers=1) as daemon, SyncClient(daemon.address) as client:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda number: client.top_up("u", "0.5", request_id=f"r{number}"), range(64)))
        account = client.get_account("u")
        assert (account.balance, account.state) == (Decimal(32), "active")
        assert client.debit("u", Decimal("0.000000001"), mode="strict").debited_nanos == 1
        with pytest.raises(InsufficientFunds):
            client.debit("u", "33")
        assert [entry.operation for entry in client.history("u", limit=2)] == ["debit", "top_up"]
    with pytest.raises(RuntimeError, match="closed"):
        client.ping()
    assert "billing-client" not in [thread.name for thread in threading.enumerate()]


def test_without_a_daemon_the_synchronous_client_says_so_at_once_and_leaves_no_thread() -> None:
    with pytest.raises(Unavailable, match="cannot connect"), SyncClient(f"127.0.0.1:{free_port()}") as client:
        client.ping()
    assert "billing-client" not in [thread.name for thread in threading.enumerate()]


def test_a_synchronous_client_is_closed_once_by_whichever_thread_and_every_call_ends() -> None:
    client = SyncClient(f"127.0.0.1:{free_port()}")
    started = threading.Barrier(8)

    def call() -> None:
        started.wait()
        while True:
            try:
                client.call("get_account", "u")
            except Unavailable:
                continue
            except RuntimeError:  # closed
                return

    def close() -> None:
        started.wait()
        client.close()

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(function) for function in [call] * 5 + [close] * 3]:
            done.result(60)
    client.close()


FORKED = """
import os, signal
from billing.client import SyncClient
client = SyncClient("127.0.0.1:1")
child = os.fork()
if not child:
    signal.alarm(20)
    try:
        client.ping()
    except RuntimeError as error:
        client.close()
        os._exit("forked" in str(error))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
client.close()
"""


def test_in_a_forked_process_a_synchronous_client_says_so_and_hangs_nowhere() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True)


@pytest.mark.parametrize("options", [{"address": "nowhere"}, {"address": "h:1", "token_file": "/nonexistent/token"}])
def test_what_is_no_address_and_no_file_leaves_no_thread(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, OSError)):
        SyncClient(**options)
    assert "billing-client" not in [thread.name for thread in threading.enumerate()]
