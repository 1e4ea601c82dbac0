"""The trial receiver: what it takes down, what it refuses, and how it misbehaves when asked to."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import uvloop

from billing.signature import parse_secrets, sign
from billing.trial.faults import Fault, Misbehaviour, bomb, parse_fault
from billing.trial.received_calls import ReceivedCalls
from billing.trial.receiver import Receiver
from billing.trial.receiver_call import line_of

E = 1_700_000_000_000_000_000
SECRETS = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


class Client:
    """A connection that writes bytes and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split(" ")[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def get(self, target: str) -> tuple[int, dict[str, str], bytes]:
        self.send(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        return await self.answer()


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[tuple[Receiver, Client]]:
    options.setdefault("clock", lambda: E + 187_000)
    receiver = Receiver(**options)
    await receiver.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
    try:
        yield receiver, Client(reader, writer)
    finally:
        writer.close()
        await receiver.close()


CUTOFF = f"/off?user_id=%C3%BCser+1&event_id=e-1&seq=7&exhausted_at_ns={E}"


async def test_a_cutoff_is_taken_down_with_its_lateness() -> None:
    async with opened() as (receiver, client):
        status, _, body = await client.get(CUTOFF)
        assert (status, body) == (200, b"ok")
        (call,) = receiver.calls
        assert call._replace(target="") == (0, E + 187_000, "GET", "", "üser 1", "e-1", 7, E, "200", False)
        assert (call.path, call.lateness_us) == ("/off", 187.0)
        assert line_of(call) == "GET  /off  üser 1  seq 7       +187 µs  e-1"
        late = call._replace(arrived_ns=E + 1_807_280_789_000)
        assert line_of(late) == "GET  /off  üser 1  seq 7    +1,807.3 s  e-1"


async def test_stats_and_received_as_json() -> None:
    async with opened() as (_, client):
        for _ in range(3):
            await client.get(CUTOFF)
        await client.get(CUTOFF.replace(str(E), str(E + 200_000)).replace("e-1", "e-2"))
        status, headers, body = await client.get("/stats")
        assert (status, headers["content-type"]) == (200, "application/json")
        stats = json.loads(body)
        assert stats["lateness_us"] == {"least": -13.0, "p50": 187.0, "p99": 187.0, "most": 187.0}
        del stats["lateness_us"]
        assert stats == {
            "received": 4,
            "acknowledged": 4,
            "events": 2,
            "repeated": 2,
            "early": 1,
            "bad_signatures": 0,
            "connections": 1,
            "connects": 1,
        }
        first = json.loads((await client.get("/received?limit=3"))[2])
        assert [call["number"] for call in first["calls"]] == [0, 1, 2]
        assert [call["repeated"] for call in first["calls"]] == [False, True, True]
        assert first["calls"][0]["user_id"] == "üser 1"
        rest = json.loads((await client.get(f"/received?after={first['next']}"))[2])
        assert [call["number"] for call in rest["calls"]] == [3]
        assert (await client.get("/statistics"))[2] == b"ok"  # any other path is an endpoint


async def test_pipelined_and_split_requests_are_answered_in_order() -> None:
    async with opened() as (receiver, client):
        requests = b"".join(b"GET /?user_id=u%d HTTP/1.1\r\n\r\n" % number for number in range(50))
        for start in range(0, len(requests), 37):
            client.send(requests[start : start + 37])
            await asyncio.sleep(0)
        for _ in range(50):
            assert (await client.answer())[0] == 200
        assert [call.user_id for call in receiver.calls] == [f"u{number}" for number in range(50)]


async def test_a_delayed_answer_holds_up_those_behind_it_and_only_on_its_connection() -> None:
    async with opened(misbehaviour=Misbehaviour(Fault("slow", 30))) as (receiver, client):
        client.send(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n" + b"GET /c HTTP/1.1\r\n\r\n" * 4000)
        await client.answer()
        receiver.fault = None
        for _ in range(4001):
            assert (await client.answer())[0] == 200
        assert [call.path for call in receiver.calls][:3] == ["/a", "/b", "/c"]


async def test_a_notice_is_taken_down_with_its_body() -> None:
    body = json.dumps({"type": "account.exhausted", "data": {"user_id": "u1", "seq": 3, "exhausted_at_ns": E}}).encode()
    signature = sign(SECRETS, b"n-1", E // 10**9, body)
    async with opened(secrets=SECRETS) as (receiver, client):
        head = b"POST /notify HTTP/1.1\r\nWebhook-Id: n-1\r\nwebhook-timestamp: %d\r\nwebhook-signature: %b\r\n" % (
            E // 10**9,
            signature,
        )
        client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert (await client.answer())[0] == 200
        client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body.replace(b"u1", b"u2"))
        assert (await client.answer())[0] == 401
        right, wrong = receiver.calls
        assert (right.method, right.event_id, right.user_id, right.seq) == ("POST", "n-1", "u1", 3)
        assert (wrong.user_id, wrong.answered) == ("u2", "401")
        assert receiver.stats()["bad_signatures"] == 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET nowhere HTTP/1.1\r\n\r\n", 400),
        (b"DELETE / HTTP/1.1\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
async def test_what_is_no_call_is_refused_and_the_connection_closed(request_bytes: bytes, status: int) -> None:
    async with opened() as (receiver, client):
        client.send(request_bytes)
        assert (await client.answer())[0] == status
        assert await client.reader.read() == b""
        assert receiver.calls == []


async def test_connection_close_is_honoured() -> None:
    async with opened() as (_, client):
        client.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert (await client.answer())[0] == 200
        assert await client.reader.read() == b""


async def test_hostile_names_cannot_write_to_the_terminal() -> None:
    async with opened() as (receiver, client):
        await client.get("/off?user_id=%1b%5b2J%0aforged&event_id=%00")
        assert line_of(receiver.calls[0]).isprintable()


async def test_only_so_many_calls_are_kept_but_all_are_counted_and_logged() -> None:
    log = io.StringIO()
    async with opened(received=ReceivedCalls(keep=10, log=log)) as (receiver, client):
        for number in range(25):
            await client.get(f"/?user_id=u{number}")
        assert [call.user_id for call in receiver.calls] == [f"u{number}" for number in range(15, 25)]
        assert receiver.stats()["received"] == 25
        logged = [json.loads(line) for line in log.getvalue().splitlines()]
        assert [call["user_id"] for call in logged] == [f"u{number}" for number in range(25)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hang", Fault("hang")),
        ("slow=250", Fault("slow", 250)),
        ("drip", Fault("drip", 1000)),
        ("drip=5", Fault("drip", 5)),
        ("flap=0.5", Fault("flap", 0.5)),
        ("status=503", Fault("status", 503)),
        ("status=429:3", Fault("status", 429, 3)),
        ("hang@0.1", Fault("hang", users=0.1)),
        ("status=409:3600@1", Fault("status", 409, 3600)),
        ("one-at-a-time", Fault("one-at-a-time")),
    ],
)
def test_faults_as_written(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "explode",
        "slow",
        "slow=",
        "slow=x",
        "slow=-1",
        "hang=1",
        "status=99",
        "status=1e9",
        "slow=5:1",
        "flap=0",
        "hang@",
        "hang@2",
        "flap=1@0.5",
    ],
)
def test_faults_that_do_not_exist(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|only status="):
        parse_fault(text)


def test_the_bomb_is_small_until_it_is_unpacked() -> None:
    assert len(bomb()) < 12_000


async def test_refuse_and_listen_take_turns_on_one_port() -> None:
    receiver = Receiver(misbehaviour=Misbehaviour(Fault("refuse")))
    await receiver.start()
    port = receiver.port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3):
        await receiver.listen(True)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = Client(reader, writer)
        assert (await client.get("/"))[0] == 200
        await receiver.listen(False)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.get("/")
        writer.close()
    await receiver.close()
    assert len(receiver.calls) == 3


PROGRAM = """
from billing.trial.received_calls import ReceivedCalls
from billing.trial.receiver import Receiver, run_receiver
from billing.trial.receiver_call import line_of

received = ReceivedCalls(on_call=lambda call: print(line_of(call), flush=True))
raise SystemExit(run_receiver(Receiver(received=received)))
"""


async def test_as_a_process_of_its_own() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            where = (await process.stdout.readline()).decode().strip()
            assert where.startswith("listening on http://127.0.0.1:")
            reader, writer = await asyncio.open_connection("127.0.0.1", int(where.rsplit(":", 1)[1]))
            assert (await Client(reader, writer).get(CUTOFF))[0] == 200
            assert b"seq 7" in await process.stdout.readline()
            writer.close()
            process.send_signal(signal.SIGTERM)
            assert json.loads(await process.stdout.readline())["received"] == 1
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


def test_it_runs_on_the_loop_of_the_workers_too() -> None:
    async def once() -> int:
        async with opened() as (receiver, client):
            await client.get(CUTOFF)
            return len(receiver.calls)

    assert uvloop.run(once()) == 1


async def test_a_fault_is_begun_from_outside_and_ends_by_itself() -> None:
    async with aiohttp.ClientSession() as session:
        receiver = Receiver()
        await receiver.start()
        try:

            async def get(target: str) -> tuple[int, Any]:
                async with session.get(receiver.url + target) as answer:
                    return answer.status, await answer.json(content_type=None) if "?fault" in target else None

            async def status_of(target: str) -> int | None:
                try:
                    return (await get(target))[0]
                except aiohttp.ClientError:
                    return None

            async def begun(fault: str) -> None:
                name = fault.partition("=")[0]
                answer = (await get(f"/misbehave?fault={quote(fault)}&for_s=600"))[1]
                assert answer == {"fault": name, "for_s": 600}
                await until(lambda: receiver.fault is not None)

            def soon_over(fault: str) -> None:
                assert b"error" not in (receiver.page(f"/misbehave?fault={quote(fault)}&for_s=0.1") or b"")

            await begun("status=503")
            assert (await get("/cutoff?event_id=a"))[0] == 503
            soon_over("status=503")
            await until(lambda: receiver.fault is None)
            assert (await get("/cutoff?event_id=a"))[0] == 200
            assert "error" in (await get("/misbehave?fault=lazy&for_s=1"))[1]
            await begun("refuse")
            async with asyncio.timeout(60):
                while (await status_of("/stats")) is not None:  # until it has stopped listening, it still answers
                    await asyncio.sleep(0.005)
            soon_over("refuse")
            async with asyncio.timeout(60):
                while (await status_of("/cutoff?event_id=b")) != 200:
                    await asyncio.sleep(0.005)
            await begun("hang")
            hanging = asyncio.create_task(get("/cutoff?event_id=c"))
            await until(lambda: len(receiver.calls) == 4)
            soon_over("hang")
            assert (await hanging)[0] == 200  # let go when it ends, and sent again by the client
        finally:
            await receiver.close()
    assert [call.answered for call in receiver.calls] == ["503", "200", "200", "hang", "200"]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.005)
