"""The feed over HTTP: lines, events and pages, each entry with its cursor, and what refuses one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from billing.api.auth import Guard
from billing.api.http.feed import EVENTS, JSON, NDJSON, wanted
from billing.ledger.errors import Refused
from tests.api.http.harness import HttpHarness, RawClient, open_harness, request
from tests.api.http.test_server import TOKENS


def row(number: int) -> dict[str, Any]:
    return {"cursor": f"c{number}", "user_id": "ann", "entry_id": number, "amount_nanos": 10**9 * number}


class ChunkedLines:
    """The body of a streamed answer, in the chunks of HTTP/1.1."""

    def __init__(self, wire: RawClient) -> None:
        self._reader = wire.reader
        self._text = b""

    async def head(self) -> str:
        async with asyncio.timeout(60):
            return (await self._reader.readuntil(b"\r\n\r\n")).decode()

    async def until(self, end: bytes) -> str:
        """The body up to and with `end`; what is left of it where it ends before."""
        async with asyncio.timeout(60):
            while end not in self._text:
                size = int(await self._reader.readuntil(b"\r\n"), 16)
                self._text += await self._reader.readexactly(size)
                await self._reader.readexactly(2)
                if not size:
                    text, self._text = self._text, b""
                    return text.decode()
        text, _, self._text = self._text.partition(end)
        return (text + end).decode()


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", NDJSON),
        ("*/*", NDJSON),
        ("text/html, */*;q=0.1", NDJSON),
        ("application/jsonl", NDJSON),
        ("text/event-stream", EVENTS),
        ("Application/JSON; charset=utf-8", JSON),
        ("text/html, text/event-stream, application/json", EVENTS),
    ],
)
def test_accept_says_what_comes(accept: str, kind: str) -> None:
    assert wanted("", accept, None) == (kind, "", 0, kind == EVENTS)


def test_the_last_event_goes_before_the_cursor_of_the_address() -> None:
    assert wanted("cursor=a&limit=7&follow=true", NDJSON, None) == (NDJSON, "a", 7, True)
    assert wanted("cursor=a", EVENTS, "b").cursor == "b"


@pytest.mark.parametrize("query", ["after=x", "limit=0", "limit=1001", "limit=x", "limit=%C2%B2", "follow=yes"])
async def test_what_makes_no_sense_is_refused(harness: HttpHarness, query: str) -> None:
    answer = await harness.ask("GET", f"/v1/entries?{query}")
    assert (answer.status, answer.json["name"]) == (400, "INVALID_PARAMS")


async def test_a_page_of_json_says_where_to_go_on_even_behind_the_newest(harness: HttpHarness) -> None:
    harness.gate.replies["entries"] = [row(1), row(2)]
    answer = await harness.ask("GET", "/v1/entries?cursor=c0&limit=2", Accept=JSON)
    assert harness.gate.operations[-1] == ("entries", b"c0", 2)
    assert answer.json["next_cursor"] == "c2"
    assert [(entry["cursor"], entry["amount"]) for entry in answer.json["entries"]] == [("c1", "1"), ("c2", "2")]
    harness.gate.replies["entries"] = []
    assert (await harness.ask("GET", "/v1/entries?cursor=c2", Accept=JSON)).json == {"entries": [], "next_cursor": "c2"}


async def test_lines_come_page_by_page_up_to_the_newest(harness: HttpHarness) -> None:
    pages = {b"": [row(1), row(2)], b"c2": [row(3)], b"c3": []}
    harness.gate.replies["entries"] = lambda operation: pages[operation[1]]
    wire = await harness.connect()
    wire.writer.write(request("GET", "/v1/entries"))
    lines = ChunkedLines(wire)
    assert "Content-Type: application/x-ndjson" in await lines.head()
    rows = [json.loads(line) for line in (await lines.until(b"the end")).splitlines()]
    assert [row["entry_id"] for row in rows] == [1, 2, 3]
    assert (await wire.ask(request("GET", "/v1/ping"))).status == 200, "the connection goes on"
    assert [operation[1] for operation in harness.gate.operations] == [b"", b"c2", b"c3"]


async def test_a_limit_ends_the_lines(harness: HttpHarness) -> None:
    harness.gate.replies["entries"] = [row(1)]
    wire = await harness.connect()
    wire.writer.write(request("GET", "/v1/entries?limit=3&follow=true"))
    lines = ChunkedLines(wire)
    await lines.head()
    assert len((await lines.until(b"the end")).splitlines()) == 3
    assert [operation[2] for operation in harness.gate.operations] == [3, 2, 1]


async def test_events_go_on_behind_the_last_one_that_was_had_and_wait_for_more(harness: HttpHarness) -> None:
    pages: dict[bytes, Any] = {b"c1": [row(2)], b"c2": []}
    harness.gate.replies["entries"] = lambda operation: pages[operation[1]]
    wire = await harness.connect()
    wire.writer.write(request("GET", "/v1/entries?cursor=old", Accept=EVENTS, Last_Event_ID="c1"))
    lines = ChunkedLines(wire)
    assert "Content-Type: text/event-stream" in await lines.head()
    assert await lines.until(b"\n\n") == "retry: 1000\n\n"
    id_line, event_line, data_line = (await lines.until(b"\n\n")).strip().split("\n")
    assert (id_line, event_line) == ("id: c2", "event: entry")
    assert json.loads(data_line.removeprefix("data: "))["amount"] == "2"
    pages[b"c2"] = Refused("UNAVAILABLE", "a shard is starting")  # which passes
    asked_before = len(harness.gate.operations)
    await harness.until(lambda: len(harness.gate.operations) > asked_before + 1)
    pages[b"c3"] = Refused("UNKNOWN_CURSOR", "entries were taken back")
    pages[b"c2"] = [row(3)]
    assert (await lines.until(b"\n\n")).startswith("id: c3\n")
    assert "event: problem\ndata: {" in await lines.until(b"\n\n")
    assert await lines.until(b"the end") == ""


async def test_an_unknown_cursor_is_a_problem_and_no_stream(harness: HttpHarness) -> None:
    harness.gate.replies["entries"] = Refused("UNKNOWN_CURSOR", "it is of another daemon")
    for accept in (NDJSON, EVENTS, JSON):
        answer = await harness.ask("GET", "/v1/entries?cursor=x", Accept=accept)
        assert (answer.status, answer.json["name"]) == (410, "UNKNOWN_CURSOR")


async def test_a_stream_ends_when_the_worker_stops_reading(harness: HttpHarness) -> None:
    harness.gate.replies["entries"] = []
    wire = await harness.connect()
    wire.writer.write(request("GET", "/v1/entries", Accept=EVENTS))
    lines = ChunkedLines(wire)
    await lines.head()
    await lines.until(b"\n\n")
    harness.door.drain()
    assert await lines.until(b"the end") == ""


async def test_a_listing_that_the_stop_of_the_worker_cut_off_looks_like_no_whole_one(harness: HttpHarness) -> None:
    harness.gate.replies["entries"] = [row(1)]  # there is always one more
    wire = await harness.connect()
    wire.writer.write(request("GET", "/v1/entries"))
    lines = ChunkedLines(wire)
    await lines.head()
    await lines.until(b"\n")
    harness.door.drain()
    *rows, last = (await lines.until(b"the end")).splitlines()
    assert all(json.loads(line)["cursor"] == "c1" for line in rows)
    told = json.loads(last)["problem"]
    assert (told["name"], told["status"], told["retry"]) == ("UNAVAILABLE", 503, True)


async def test_a_stream_ends_when_its_token_is_revoked() -> None:
    tokens = TOKENS.replace("charge", "read")
    async with open_harness(guard=Guard(tokens)) as harness:
        harness.gate.replies["entries"] = []
        wire = await harness.connect()
        wire.writer.write(request("GET", "/v1/entries?follow=true", Authorization="Bearer test"))
        lines = ChunkedLines(wire)
        await lines.head()
        harness.door.take_guard(Guard(tokens.replace("9f86d081", "00000000")))
        assert json.loads(await lines.until(b"the end"))["problem"]["name"] == "UNAUTHENTICATED"
