"""A connection of the HTTP door: pieces, pipelines, bodies that nobody wants, offers of other protocols, its end."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from billing.api.door import Limits
from billing.api.http.connection import QUEUE_MAX, HttpConnection
from tests.api.http.harness import HttpHarness, RawClient, open_harness, request

BODY = b'{"amount":"5"}'
TOP_UP = request("POST", "/v1/accounts/ann/top_up", BODY)
CHUNKED = request("POST", "/v1/accounts/ann/top_up", b"", Transfer_Encoding="chunked", Content_Length="")
PING = request("GET", "/v1/ping")
H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAMAAABkAAQAAP__"}
WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket"}


async def piecemeal(wire: RawClient, data: bytes) -> None:
    """Sends byte by byte, each in a segment of its own."""
    wire.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(data)):
        wire.writer.write(data[at : at + 1])
        await asyncio.sleep(0)


@pytest.mark.parametrize("data", [TOP_UP, CHUNKED + b"7\r\n" + BODY[:7] + b"\r\n7\r\n" + BODY[7:] + b"\r\n0\r\n\r\n"])
async def test_a_request_in_pieces_is_the_same_request(harness: HttpHarness, data: bytes) -> None:
    wire = await harness.connect()
    for _ in range(2):
        await piecemeal(wire, data)
        assert (await wire.answer()).status == 200
    assert [command[1:3] for command in harness.gate.commands] == [(b"ann", 5 * 10**9)] * 2


async def test_a_pipeline_longer_than_the_queue_is_answered_to_its_end(harness: HttpHarness) -> None:
    wire = await harness.connect()
    count = 5 * QUEUE_MAX + 3
    users = [f"u{number}" for number in range(count)]
    wire.writer.write(b"".join(request("POST", f"/v1/accounts/{user}/top_up", BODY) for user in users))
    assert [(await wire.answer()).json["user_id"] for _ in users] == users
    assert (await wire.ask(PING)).status == 200


@pytest.mark.parametrize("count", [1, QUEUE_MAX + 8])
async def test_a_half_closed_client_still_gets_its_answers(harness: HttpHarness, count: int) -> None:
    harness.gate.holds_back = True
    wire = await harness.connect()
    wire.writer.write(TOP_UP * count)
    wire.writer.write_eof()
    await harness.until(lambda: len(harness.gate.asked) == 1)
    assert (await harness.ask("GET", "/v1/ping")).status == 200  # what has come is read
    harness.gate.holds_back = False
    harness.gate.release()
    assert [(await wire.answer()).status for _ in range(count)] == [200] * count
    assert await wire.is_closed()


@pytest.mark.parametrize("data", [b"", PING[:9], TOP_UP[:-1]])
async def test_what_a_client_left_unfinished_when_it_closed_is_dropped(harness: HttpHarness, data: bytes) -> None:
    wire = await harness.connect()
    assert (await wire.ask(PING)).status == 200
    wire.writer.write(data)
    wire.writer.write_eof()
    assert await wire.is_closed()
    await harness.until(lambda: not harness.door.connections)


async def test_one_request_of_a_connection_is_in_flight_at_a_time(harness: HttpHarness) -> None:
    harness.gate.holds_back = True
    wire = await harness.connect()
    wire.writer.write(TOP_UP * 10)
    free_wire = await harness.connect()
    assert (await free_wire.ask(PING)).status == 200
    assert len(harness.gate.asked) == 1
    harness.gate.holds_back = False
    harness.gate.release()
    assert [(await wire.answer()).status for _ in range(10)] == [200] * 10


async def test_garbage_behind_a_request_gets_its_problem_behind_the_answer(harness: HttpHarness) -> None:
    harness.gate.holds_back = True
    wire = await harness.connect()
    wire.writer.write(TOP_UP)
    await harness.until(lambda: harness.gate.asked)
    wire.writer.write(b"garbage\r\n\r\n")
    await harness.until(lambda: not wire.writer.transport.get_write_buffer_size())
    harness.gate.release()
    assert [(await wire.answer()).status for _ in range(2)] == [200, 400]
    assert await wire.is_closed()


async def test_a_body_that_breaks_off_ends_its_request(harness: HttpHarness) -> None:
    wire = await harness.connect()
    wire.writer.write(CHUNKED + b"7\r\n" + BODY[:7])
    await harness.until(lambda: harness.door._watched)
    answer = await wire.ask(b" that is no end of a chunk\r\n")
    assert (answer.status, answer.json["name"]) == (400, "PROTOCOL_ERROR")
    assert await wire.is_closed()
    assert harness.gate.asked == []


async def test_a_body_that_nobody_wants_is_passed_over() -> None:
    async with open_harness(Limits(linger_ns=60 * 10**9)) as harness:
        wire = await harness.connect()
        wire.writer.write(request("POST", "/nothing", None, Content_Type="application/json", Content_Length="100000"))
        assert (await wire.answer()).status == 404
        wire.writer.write(b" " * 100_000)
        assert (await wire.ask(TOP_UP)).status == 200
        assert len(harness.gate.commands) == 1


async def test_a_body_that_nobody_wants_is_not_waited_for() -> None:
    async with open_harness(Limits(linger_ns=1)) as harness:
        wire = await harness.connect()
        wire.writer.write(request("POST", "/nothing", None, Content_Type="application/json", Content_Length="100000"))
        assert (await wire.answer()).status == 404
        assert await wire.is_closed()


async def test_a_client_that_waits_for_a_word_before_its_body_is_given_it(harness: HttpHarness) -> None:
    wire = await harness.connect()
    expecting = {"Content_Type": "application/json", "Expect": "100-continue"}
    wire.writer.write(request("POST", "/v1/accounts/ann/top_up", None, Content_Length=str(len(BODY)), **expecting))
    assert (await wire.answer()).status == 100
    assert (await wire.ask(BODY)).status == 200
    wire.writer.write(request("POST", "/v1/accounts/ann/top_up", None, Content_Length="70000", **expecting))
    assert (await wire.answer()).status == 413
    assert await wire.is_closed()


async def test_where_it_is_not_known_whether_a_body_comes_nothing_is_read_behind_it(harness: HttpHarness) -> None:
    wire = await harness.connect()
    expecting = {"Content_Type": "application/json", "Expect": "100-continue"}
    wire.writer.write(request("POST", "/nothing", None, Content_Length=str(len(TOP_UP)), **expecting) + TOP_UP[:9])
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    wire.writer.write(TOP_UP[9:] + TOP_UP)
    assert await wire.is_closed()
    assert harness.gate.asked == []


async def test_a_body_that_nobody_wants_ends_no_call_that_is_being_carried_out() -> None:
    async with open_harness(Limits(linger_ns=60 * 10**9)) as harness:
        harness.gate.holds_back = True
        wire = await harness.connect()
        await piecemeal(wire, request("GET", "/v1/accounts/ann", b"12345")[:-1])
        await harness.until(lambda: harness.gate.asked)
        harness.clock.pass_s(11)
        harness.door.sweep()
        harness.gate.release()
        assert (await wire.answer()).status == 200
        harness.gate.holds_back = False
        assert (await wire.ask(b"5" + PING)).json == {"ping": "pong"}


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
async def test_an_offer_of_another_protocol_is_passed_by(harness: HttpHarness, offer: dict[str, str]) -> None:
    wire = await harness.connect()
    for _ in range(2):
        assert (await wire.ask(request("POST", "/v1/accounts/ann/top_up", BODY, **offer))).status == 200
        assert (await wire.ask(PING)).status == 200
    assert len(harness.gate.commands) == 2


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
async def test_nothing_behind_an_offer_is_answered_as_something_else(
    harness: HttpHarness, offer: dict[str, str]
) -> None:
    wire = await harness.connect()
    answer = await wire.ask(request("POST", "/v1/accounts/ann/top_up", BODY, **offer) + TOP_UP)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await wire.is_closed()
    assert len(harness.gate.commands) == 1


async def test_a_tunnel_is_not_opened(harness: HttpHarness) -> None:
    wire = await harness.connect()
    assert (await wire.ask(b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 404
    assert await wire.is_closed()
    assert harness.gate.asked == []


@pytest.mark.parametrize(
    ("connection", "answered", "goes_on"), [("keep-alive", "keep-alive", True), ("", "close", False)]
)
async def test_http_1_0_goes_on_where_it_asks_for_it(
    harness: HttpHarness, connection: str, answered: str, goes_on: bool
) -> None:
    wire = await harness.connect()
    older = request("GET", "/v1/ping", None, Connection=connection).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert (await wire.ask(older)).headers["connection"] == answered
    if goes_on:
        assert (await wire.ask(older)).status == 200
    else:
        assert await wire.is_closed()


async def test_http_1_0_is_told_nothing_before_its_answer(harness: HttpHarness) -> None:
    wire = await harness.connect()
    length = str(len(BODY))
    head = request("POST", "/v1/accounts/ann/top_up", None, Content_Length=length, Expect="100-continue")
    wire.writer.write(head.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nContent-Type: application/json\r\n"))
    await harness.until(lambda: harness.door._watched)  # its body is waited for
    assert (await wire.ask(BODY)).status == 200
    assert len(harness.gate.commands) == 1


async def test_nothing_is_read_behind_chunks_of_http_1_0(harness: HttpHarness) -> None:
    chunked = request("POST", "/v1/accounts/ann/top_up", b"", Transfer_Encoding="chunked", Connection="keep-alive")
    older = chunked.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Content-Length: 0\r\n", b"")
    wire = await harness.connect()
    answer = await wire.ask(older + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) + TOP_UP)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await wire.is_closed()
    assert len(harness.gate.commands) == 1


async def test_a_feed_to_http_1_0_ends_with_its_connection(harness: HttpHarness) -> None:
    harness.gate.replies["entries"] = lambda operation: [] if operation[1] else [{"cursor": "c1", "entry_id": 1}]
    wire = await harness.connect()
    wire.writer.write(request("GET", "/v1/entries").replace(b"HTTP/1.1", b"HTTP/1.0"))
    async with asyncio.timeout(60):
        head, _, body = (await wire.reader.read()).partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"chunked" not in head
    assert json.loads(body)["entry_id"] == 1


async def test_a_bug_is_told_to_the_worker_and_to_the_client(harness: HttpHarness) -> None:
    harness.gate.broken = AssertionError("an invariant")
    wire = await harness.connect()
    answer = await wire.ask(TOP_UP)
    assert (answer.status, answer.json["name"], answer.json["applied"]) == (500, "INTERNAL", "unknown")
    assert await wire.is_closed()
    assert harness.bugs == [harness.gate.broken]


async def test_a_reply_that_cannot_be_rendered_harms_no_other_call_of_its_batch(harness: HttpHarness) -> None:
    harness.gate.replies["1"] = lambda command: {"user_id": object() if command[1] == b"ann" else "bob"}
    harness.gate.holds_back = True
    wires = [await harness.connect() for _ in range(2)]
    for wire, user in zip(wires, ("ann", "bob"), strict=True):
        wire.writer.write(request("POST", f"/v1/accounts/{user}/top_up", BODY))
    await harness.until(lambda: len(harness.gate.asked) == 2)
    harness.gate.release()
    answers = sorted([await wire.answer() for wire in wires], key=lambda answer: answer.status)
    assert [answer.status for answer in answers] == [200, 500]
    assert answers[1].json["applied"] == "unknown", "the top-up was carried out"


async def test_what_was_asked_for_is_answered_when_the_daemon_stops(harness: HttpHarness) -> None:
    harness.gate.holds_back = True
    busy, resting, reading = [await harness.connect() for _ in range(3)]
    assert (await resting.ask(PING)).status == 200
    reading.writer.write(TOP_UP[:-1])
    busy.writer.write(TOP_UP)
    await harness.until(lambda: harness.gate.asked and harness.door._watched)
    harness.door.drain()
    assert await resting.is_closed()
    assert await reading.is_closed()
    harness.gate.release()
    answer = await busy.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await busy.is_closed()
    assert len(harness.gate.asked) == 1


async def test_a_client_that_does_not_read_is_not_asked_further_and_dropped() -> None:
    async with open_harness(Limits(write_stall_ns=10**9)) as harness:
        harness.gate.replies["accounts"] = [{"user_id": "u" * 100, "state": "active"}] * 1_000
        wire = await harness.connect()
        wire.reader._limit = 1  # type: ignore[attr-defined]
        wire.writer.write(request("GET", "/v1/accounts?limit=1000") * 1_000)
        (writer,) = harness.door.connections
        assert isinstance(writer, HttpConnection)
        await harness.until(lambda: bool(writer._stalled_since_ns))
        asked_before = len(harness.gate.asked)
        assert (await (await harness.connect()).ask(PING)).status == 200
        assert len(harness.gate.asked) == asked_before < 1_000
        harness.clock.pass_s(2)
        harness.door.sweep()
        await harness.until(lambda: len(harness.door.connections) == 1)
        assert len(harness.gate.asked) == asked_before
