"""Overload is answered at once, by name: connections of one origin, requests in flight in all, requests a second."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from billing.api.door import Limits
from billing.api.origins import TELL_INTERVAL_NS, origin_of
from billing.api.token_bucket import FRAME_BYTES_MIN, SMALLEST_PIECE_BYTES, TokenBucket, piece_bytes
from billing.ledger.errors import KINDS
from tests.api.outside import SECOND_NS, DoorHarness, RawClient, open_harness

OVER = SMALLEST_PIECE_BYTES // FRAME_BYTES_MIN  # requests beyond a limit per second, at most

# Connects to a unix socket as another user, and says what it was told.
AS_ANOTHER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as one:
    one.connect(sys.argv[1])
    one.sendall(b"\\x94\\x00\\x07\\xa4ping\\x90")
    sys.stdout.buffer.write(one.recv(4096))
"""


def top_ups(count: int, user: str = "u") -> bytes:
    return b"".join(msgpack.packb([0, msgid, "top_up", [user, msgid + 1]]) for msgid in range(count))


async def connect_from(harness: DoorHarness, host: str) -> RawClient:
    reader, writer = await asyncio.open_connection(*harness.address, local_addr=(host, 0))
    return RawClient(reader, writer)


async def refused(wire: RawClient) -> bool:
    """Whether a connection was turned away with its one error."""
    is_refusal = (await wire.reply())[:3] == [1, None, "TOO_MANY_CONNECTIONS: try again later"]
    return is_refusal and await wire.is_closed()


def turned_away(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "turned away" in record.getMessage()]


# -- connections of one origin ----------------------------------------------------------------------------------------


async def test_one_address_gets_no_more_connections_than_its_own_and_others_get_theirs() -> None:
    async with open_harness(Limits(connections_per_origin_max=2)) as harness:
        first, second = await harness.connect(), await harness.connect()
        assert await first.alive()
        assert await second.alive()
        third = await harness.connect()
        assert await refused(third)
        elsewhere = await connect_from(harness, "127.0.0.2")
        assert await elsewhere.alive()
        third.writer.close()
        first.writer.close()
        await harness.until(lambda: len(harness.door.connections) == 2)
        again = await harness.connect()
        assert await again.alive()
        elsewhere.writer.close()


async def test_a_flood_of_one_origin_leaves_room_for_all_others() -> None:
    async with open_harness(Limits(connections_per_origin_max=2, connections_max=30)) as harness:
        flood = [await harness.connect() for _ in range(200)]
        await harness.until(lambda: harness.door.drops == 198)
        assert len(harness.door.connections) < 30, "what is turned away and lingers takes nobody else's place"
        elsewhere = await connect_from(harness, "127.0.0.2")
        assert await elsewhere.alive()
        assert await flood[0].alive()
        assert await flood[1].alive()
        elsewhere.writer.close()


async def test_over_the_unix_socket_a_user_is_an_origin(data_dir: Path) -> None:
    path = data_dir / "socket"
    async with open_harness(Limits(connections_per_origin_max=2), path=str(path)) as harness:
        for _ in range(2):
            assert await (await harness.connect()).alive()
        assert await refused(await harness.connect())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_of_the_unix_socket_has_connections_of_its_own() -> None:
    path = Path("/tmp") / f"billing-test-{os.getpid()}.socket"
    try:
        async with open_harness(Limits(connections_per_origin_max=1), path=str(path)) as harness:
            path.chmod(0o666)
            assert await (await harness.connect()).alive()
            command = [sys.executable, "-I", "-c", AS_ANOTHER, str(path)]
            result = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, timeout=60)
            assert msgpack.unpackb(result.stdout) == [1, 7, None, "pong"]
            assert await refused(await harness.connect())
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "an unknown address"),
    ],
)
def test_what_an_origin_is(address: str, origin: str) -> None:
    assert origin_of(asyncio.BaseTransport({"peername": (address, 5)})) == origin


async def test_turning_away_is_told_at_once_and_then_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with open_harness(Limits(connections_per_origin_max=1)) as harness:
        admitted = await harness.connect()
        assert await admitted.alive()
        for _ in range(5):
            assert await refused(await harness.connect())
        warning = "connections turned away: 1, the last one from 127.0.0.1: too many from there"
        assert turned_away(caplog) == [warning]
        harness.clock.pass_s(TELL_INTERVAL_NS / SECOND_NS - 1)
        harness.door.sweep()
        assert len(turned_away(caplog)) == 1
        harness.clock.pass_s(1)
        harness.door.sweep()
        assert turned_away(caplog)[1:] == [warning.replace("1", "4", 1)]
        harness.clock.pass_s(1000)
        harness.door.sweep()
        assert len(turned_away(caplog)) == 2


# -- requests in flight in all ----------------------------------------------------------------------------------------


async def test_more_in_flight_than_the_worker_takes_is_refused_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with open_harness(Limits(in_flight_max=8, in_flight_total_max=10)) as harness:
        harness.gate.holds_back = True
        first, second, third = [await harness.connect() for _ in range(3)]
        first.send(top_ups(8))
        second.send(top_ups(4))
        await harness.until(lambda: len(harness.gate.asked) == 12)
        third.send(msgpack.packb([0, 1, "hello", [{"errors": "map"}]]))
        await third.reply()
        for msgid, (method, params) in enumerate([("top_up", ["u", 1]), ("get_account", ["u"]), ("history", ["u"])], 2):
            error = (await third.ask(msgpack.packb([0, msgid, method, params])))[2]
            assert (error["name"], error["retry"], error["applied"]) == ("BUSY", True, "no")
        third.send(msgpack.packb([2, "top_up", ["u", 1]]))  # nobody is told, and nothing is done
        assert await third.alive()
        assert len(harness.gate.asked) == 12
        third.send(msgpack.packb([0, 9, "shards_info", []]))  # the operator's questions are carried out
        await harness.until(lambda: harness.gate.asked[-1] == ("operate", ("shards_info",)))
        harness.gate.holds_back = False
        harness.gate.release()
        assert (await third.reply())[1] == 9
        assert (await third.call("top_up", "u", 1))[0] is None
        assert harness.door.in_flight == 0
        assert harness.door.figures()["requests_in_flight"] == 0
        assert harness.door.errors["BUSY"] == 3
        harness.door.sweep()
    assert sum("requests refused: " in record.getMessage() for record in caplog.records) == 1


async def test_what_is_in_flight_is_counted_until_it_is_answered_whoever_is_left_to_hear_it() -> None:
    async with open_harness(Limits(in_flight_max=600, trial_in_flight_max=600)) as harness:
        harness.gate.holds_back = True
        gone, listing = await harness.connect(), await harness.connect()
        gone.send(top_ups(5))
        listing.send(msgpack.packb([0, 1, "history", ["u"]]) + msgpack.packb([2, "top_up", ["u", 1]]))
        await harness.until(lambda: len(harness.gate.asked) == 7)
        assert harness.door.in_flight == 5 + 256 + 1
        plain = gone.writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.writer.transport.abort()
        await harness.until(lambda: len(harness.door.connections) == 1)
        assert harness.door.in_flight == 5 + 256 + 1
        harness.gate.release()
        assert harness.door.in_flight == 0


# -- until a client has shown that it reads ----------------------------------------------------------------------------


async def test_a_client_on_trial_has_little_in_flight_and_one_that_reads_has_all() -> None:
    async with open_harness(Limits(trial_in_flight_max=8, trial_bytes=10_000)) as harness:
        wire = await harness.connect()
        harness.gate.holds_back = True
        wire.send(top_ups(600))
        await harness.until(lambda: len(harness.gate.asked) == 8)
        await harness.settle()
        assert len(harness.gate.asked) == 8
        harness.gate.holds_back = False
        harness.gate.release()
        assert [reply[1] for reply in await wire.replies(600)] == list(range(600))
        assert await wire.alive()
        harness.gate.asked.clear()
        harness.gate.holds_back = True
        wire.send(top_ups(500))
        await harness.until(lambda: len(harness.gate.asked) == 500)
        harness.gate.release()
        assert len(await wire.replies(500)) == 500


# -- requests a second ------------------------------------------------------------------------------------------------


async def test_a_connection_that_asks_too_often_is_refused_what_is_too_much() -> None:
    async with open_harness(Limits(requests_per_s_max=100)) as harness:
        wire, neighbour = await harness.connect(), await harness.connect()
        wire.send(top_ups(1000))
        replies = await wire.replies(1000)
        carried_out = [reply[1] for reply in replies if reply[2] is None]
        assert 100 <= len(carried_out) <= 100 + OVER
        assert len(carried_out) == len(harness.gate.commands)
        assert carried_out == list(range(len(carried_out))), "the first ones, in order"
        refusals = {reply[2] for reply in replies if reply[2]}
        assert refusals == {"BUSY: this connection asks more than 100 times a second"}
        assert await wire.alive(), "a sign of life is always given"
        assert (await neighbour.call("top_up", "u", 1))[0] is None
        wire.send(msgpack.packb([2, "top_up", ["u", 1]]) * 50)
        assert await wire.alive()
        assert len(harness.gate.commands) == len(carried_out) + 1


async def test_over_time_no_more_is_carried_out_than_the_limit_allows() -> None:
    async with open_harness(Limits(requests_per_s_max=100)) as harness:
        wire = await harness.connect()
        for _ in range(10):
            wire.send(top_ups(500))
            await wire.replies(500)
            harness.clock.pass_s(0.5)
        assert 100 + 9 * 50 <= len(harness.gate.commands) <= 100 + 9 * 50 + OVER


async def test_what_is_wrong_counts_too() -> None:
    async with open_harness(Limits(requests_per_s_max=50)) as harness:
        wire = await harness.connect()
        wire.send(msgpack.packb([0, 1, "top_up", ["u", -5]]) * 200)
        names = [reply[2].partition(":")[0] for reply in await wire.replies(200)]
        assert 50 <= names.count("INVALID_AMOUNT") <= 50 + OVER
        assert names.count("BUSY") == 200 - names.count("INVALID_AMOUNT")


async def test_a_client_within_its_limit_never_hears_of_it() -> None:
    async with open_harness(Limits(requests_per_s_max=100)) as harness:
        wire = await harness.connect()
        for _ in range(30):
            wire.send(top_ups(50))
            assert [reply[2] for reply in await wire.replies(50)] == [None] * 50
            harness.clock.pass_s(0.5)


def test_a_token_bucket_fills_up_to_a_second() -> None:
    bucket = TokenBucket(0)
    assert bucket.available(10**18, 10) == 10
    bucket.spend(25, 10)
    assert bucket.available(10**18 + SECOND_NS, 10) == 0
    assert bucket.available(10**18 + 2 * SECOND_NS, 10) == 5
    assert piece_bytes(1) == SMALLEST_PIECE_BYTES
    assert piece_bytes(1000) == 8000


def test_the_refusal_asks_to_try_again() -> None:
    assert KINDS["BUSY"].retry
    assert KINDS["TOO_MANY_CONNECTIONS"].retry


def test_no_request_is_shorter() -> None:
    assert len(msgpack.packb([2, "ping", []])) == FRAME_BYTES_MIN
