"""Requests of every kind over real sockets: answered in order, refused as HTTP has it, and never harmful to others."""

from __future__ import annotations

import pytest

from billing.api.auth import Guard
from billing.api.door import Limits
from billing.ledger.errors import Refused
from shards.replies import Moving
from tests.api.http.harness import HttpHarness, open_harness, request

TOKENS = "metering:charge:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n"  # of `test`


async def test_a_command_is_carried_out_and_its_first_answer_told_again(harness: HttpHarness) -> None:
    harness.gate.replies["1"] = {"user_id": "ann", "replayed": True}
    answer = await harness.ask("POST", "/v1/accounts/ann/top_up", {"amount": "5"}, Idempotency_Key="k")
    assert (answer.status, answer.headers["idempotent-replayed"]) == (200, "true")
    assert harness.gate.commands == [(1, b"ann", 5 * 10**9, 0, 0, b"", b"k", b"", b"", b"")]
    figures = harness.door.latency.figures()
    assert (list(figures), sum(figures["http"]["top_up"]["counts"])) == (["http"], 1)


async def test_two_keys_that_differ_are_no_key(harness: HttpHarness) -> None:
    wire = await harness.connect()
    once = request("POST", "/v1/accounts/ann/top_up", {"amount": "5"}, Idempotency_Key="k")
    for other, status in ((b"k", 200), (b"q", 400)):
        twice = once.replace(b"Idempotency-Key: k\r\n", b"Idempotency-Key: k\r\nIdempotency-Key: %b\r\n" % other)
        assert twice != once
        assert (await wire.ask(twice)).status == status
    assert len(harness.gate.commands) == 1


async def test_a_dry_run_is_answered_in_the_form_of_its_method(harness: HttpHarness) -> None:
    reply = {"user_id": "ann", "balance_nanos": 5, "captured_nanos": 10**9, "replayed": False}
    harness.gate.replies["dry_run"] = dict(reply)
    wanted = {**reply, "balance": "0.000000005", "captured": "1"}
    body = {"method": "capture", "params": ["ann", "h", "1"]}
    answer = await harness.ask("POST", "/v1/dry_run", body)
    assert (answer.status, answer.json) == (200, {"dry_run": wanted})
    for params in ({"method": "no_such"}, {"method": 7}, {"method": "ping"}):
        answer = await harness.ask("POST", "/v1/dry_run", {**params, "params": []})
        assert (answer.status, answer.json["name"]) == (400, "INVALID_PARAMS")


async def test_requests_of_one_connection_are_answered_in_their_order(harness: HttpHarness) -> None:
    wire = await harness.connect()
    wire.writer.write(b"".join(request("GET", f"/v1/accounts/u{number}/bucket_id") for number in range(20)))
    buckets = [(await wire.answer()).json["bucket_id"] for _ in range(20)]
    assert buckets == [harness.gate.bucket_of(b"u%d" % number) for number in range(20)]


async def test_a_head_has_no_body_and_an_unknown_verb_says_which_are_known(harness: HttpHarness) -> None:
    wire = await harness.connect()
    wire.writer.write(request("HEAD", "/v1/ping"))
    answer = await wire.answer(head=True)
    assert (answer.status, answer.headers["content-length"]) == (200, "15")
    answer = await wire.ask(request("DELETE", "/v1/ping"))
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert (await wire.ask(request("GET", "/nothing"))).status == 404


async def test_what_shards_say_is_a_problem_that_may_be_tried_again(harness: HttpHarness) -> None:
    harness.gate.replies["get_account"] = Moving(7)
    answer = await harness.ask("GET", "/v1/accounts/ann")
    assert (answer.status, answer.headers["retry-after"], answer.json["name"]) == (503, "1", "BUCKET_MOVING")
    harness.gate.replies["4"] = Refused("INSUFFICIENT_FUNDS", "there is less", {"shortfall_nanos": 7})
    answer = await harness.ask("POST", "/v1/accounts/ann/debit", {"amount": "1"})
    assert (answer.status, answer.headers["content-type"]) == (402, "application/problem+json")
    assert (answer.json["shortfall_nanos"], answer.json["applied"]) == (7, "no")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": "evil.example:3312"},
    ],
)
async def test_no_page_of_another_site_may_call_over_loopback(harness: HttpHarness, headers: dict[str, str]) -> None:
    answer = await harness.ask("POST", "/v1/accounts/ann/top_up", {"amount": "5"}, **headers)
    assert (answer.status, answer.json["name"]) == (403, "FORBIDDEN")
    assert harness.gate.asked == []


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://127.0.0.1:3312/v1/ping", 200),
        ("HTTP://LOCALHOST/v1/accounts/ann?x=1", 400),  # a field that the method has not
        ("https://localhost", 404),
        ("http://localhost?x=/v1/ping", 404),
        ("http://evil.example/v1/ping", 403),
        ("http://ann@localhost/v1/ping", 404),
        ("ftp://localhost/v1/ping", 404),
    ],
)
async def test_a_url_is_taken_as_its_path_and_its_host_goes_before_the_header(
    harness: HttpHarness, url: str, status: int
) -> None:
    wire = await harness.connect()
    assert (await wire.ask(request("GET", url, None, Host="localhost"))).status == status
    foreign = (await wire.ask(request("GET", url, None, Host="evil.example"))).status
    assert foreign == (403 if "@" in url or url[0] == "f" else status), "only a target without a host leaves it to it"


async def test_a_browser_that_names_the_host_in_the_target_is_held_to_that(harness: HttpHarness) -> None:
    answer = await harness.ask("GET", "http://localhost:1/v1/ping", None, Origin="http://localhost:1")
    assert answer.status == 200
    assert (await harness.ask("GET", "http://localhost:2/v1/ping", None, Origin="http://127.0.0.1:3312")).status == 403


async def test_a_body_that_is_encoded_for_its_transfer_is_refused(harness: HttpHarness) -> None:
    chunked = request("POST", "/v1/accounts/ann/top_up", b"", Transfer_Encoding="gzip, chunked", Content_Length="")
    wire = await harness.connect()
    assert (await wire.ask(chunked + b'f\r\n{"amount": "5"}\r\n0\r\n\r\n')).status == 501
    assert await wire.is_closed()
    assert harness.gate.asked == []


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
async def test_a_body_of_another_kind_is_refused(harness: HttpHarness, kind: str) -> None:
    answer = await harness.ask("POST", "/v1/accounts/ann/top_up", {"amount": "5"}, Content_Type=kind)
    assert answer.status == 415
    assert harness.gate.asked == []


async def test_a_body_beyond_the_limit_is_refused_however_it_comes(harness: HttpHarness) -> None:
    answer = await harness.ask("POST", "/v1/accounts/ann/top_up", b" " * 70_000)
    assert (answer.status, answer.json["name"]) == (413, "FRAME_TOO_LARGE")
    chunked = request("POST", "/v1/accounts/ann/top_up", b"", Transfer_Encoding="chunked", Content_Length="")
    wire = await harness.connect()
    wire.writer.write(chunked + b"10000\r\n" + b" " * 65_536 + b"\r\n10000\r\n" + b" " * 65_536 + b"\r\n0\r\n\r\n")
    assert (await wire.answer()).status == 413


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\xa5garbage\r\n\r\n",
        b"GET /v1/ping HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST /v1/accounts/a/top_up HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_is_no_request_gets_one_problem_and_the_end(harness: HttpHarness, data: bytes) -> None:
    wire = await harness.connect()
    answer = await wire.ask(data)
    assert (answer.status, answer.json["name"]) == (400, "PROTOCOL_ERROR")
    assert await wire.is_closed()
    assert (await harness.ask("GET", "/v1/ping")).json == {"ping": "pong"}


async def test_an_unfinished_request_is_not_waited_for(harness: HttpHarness) -> None:
    wire = await harness.connect()
    wire.writer.write(b"GET /v1/ping HTTP/1.1\r\nHost: loc")
    await harness.until(lambda: harness.door._watched)
    harness.clock.pass_s(11)
    harness.door.sweep()
    assert (await wire.answer()).status == 408
    assert await wire.is_closed()


async def test_with_tokens_nothing_is_done_without_one() -> None:
    async with open_harness(guard=Guard(TOKENS)) as harness:
        for path in ("/v1/ping", "/v1/openapi.json", "/v1/accounts/ann", "/nothing"):
            answer = await harness.ask("GET", path)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        wire = await harness.connect()
        answer = await wire.ask(
            request("POST", "/v1/accounts/ann/debit", {"amount": "1"}, Authorization="Bearer wrong")
        )
        assert answer.status == 401
        assert await wire.is_closed()
        assert harness.gate.asked == []
        answer = await harness.ask("POST", "/v1/accounts/ann/debit", {"amount": "1"}, Authorization="Bearer test")
        assert answer.status == 200
        answer = await harness.ask("POST", "/v1/accounts/ann/top_up", {"amount": "1"}, Authorization="bearer test")
        assert (answer.status, answer.json["name"]) == (403, "FORBIDDEN")


async def test_connections_beyond_the_limit_are_told_so() -> None:
    async with open_harness(Limits(connections_max=1)) as harness:
        first = await harness.connect()
        assert (await first.ask(request("GET", "/v1/ping"))).status == 200
        answer = await (await harness.connect()).answer()
        assert (answer.status, answer.json["name"]) == (503, "TOO_MANY_CONNECTIONS")
        assert (await first.ask(request("GET", "/v1/ping"))).status == 200
