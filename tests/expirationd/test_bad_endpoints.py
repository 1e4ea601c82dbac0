"""Endpoints that misbehave, over real sockets: every owed cutoff arrives in the end, at a bounded cost."""

import asyncio
import gzip
import os
import random
import ssl
import subprocess
import sys
import tracemalloc
from email.utils import formatdate
from pathlib import Path

import pytest

from billing.trial.faults import BOMB_BYTES, Fault, Misbehaviour
from shards.system.clock import MACHINE_CLOCKS
from tests.expirationd.fake_obligations import LONG_S, QUICK, FakeObligations, RawEndpoint, receiving, sending, settings

REPOSITORY = Path(__file__).parents[2]
TLS = Path(__file__).parent / "tls"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("reset"), "connection lost before an answer"),
        (Fault("lost"), "connection lost before an answer"),
        (Fault("hang"), "no answer within 0.3 s"),
        (Fault("drip", 50), "no answer within 0.3 s"),
        (Fault("slow", 2000), "no answer within 0.3 s"),
        (Fault("redirect"), "status 302"),
        (Fault("status", 404), "status 404"),
        (Fault("status", 410), "status 410"),
        (Fault("status", 429), "status 429"),
        (Fault("status", 500), "status 500"),
        (Fault("status", 503), "status 503"),
    ],
)
async def test_no_success_is_tried_again_with_the_same_event_until_it_is_one(fault: Fault, error: str) -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=fault) as receiver,
        sending(obligations, settings(receiver.url, timeout_s=0.3 if "no answer" in error else LONG_S)) as delivery,
    ):
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: len(obligations.errors()) >= 3)
        assert error in obligations.errors()
        assert set(obligations.errors()) <= {error, "connection was closed while idle"}
        receiver.fault = None
        await obligations.until(obligations.nothing_owed)
        assert len({(call.event_id, call.seq, call.exhausted_at_ns) for call in receiver.calls}) == 1
        assert {call.path for call in receiver.calls} == {"/"}
        assert obligations.outcomes(b"u")[-2:] == ["started", "delivered"]
        assert obligations.outcomes(b"u").count("started") == len(receiver.calls)


@pytest.mark.parametrize("name", ["hang-body", "endless", "gzip-bomb"])
async def test_2xx_is_success_whatever_its_body_does(name: str) -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault(name)) as receiver:
        tracemalloc.start()
        body_s = 0.05 if name == "hang-body" else 60.0  # what is endless ends by its bytes
        async with sending(obligations, settings(receiver.url, body_s=body_s)) as delivery:
            for number in range(12):
                obligations.exhaust(delivery, b"u%d" % number)
            await obligations.until(obligations.nothing_owed)
            assert obligations.errors() == []
            assert len(receiver.calls) == 12
            await obligations.until(lambda: delivery.endpoints[0].connections <= 5)
            assert receiver.connects >= 12  # none of these connections is used again
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < BOMB_BYTES / 2  # not one of them was unpacked, and of what is endless little was taken


async def test_what_is_packed_stays_packed() -> None:
    """A kilobyte is within the limit, the megabyte in it would not be: the connection is used again."""
    obligations = FakeObligations()
    packed = gzip.compress(bytes(2**20))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with (
        RawEndpoint(head + packed) as raw,
        sending(obligations, settings(raw.url, body_s=LONG_S, warm=0)) as delivery,
    ):
        for _ in range(20):
            obligations.exhaust(delivery, b"u")
            await obligations.until(obligations.nothing_owed)
        assert delivery.endpoints[0].connects < 20, "where the machine pauses, one may be given up for its age"


async def test_refused_starts_no_attempt_so_a_top_up_still_saves_the_user() -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault("refuse")) as receiver:
        chosen = settings(receiver.url + "/off", restore_url=receiver.url + "/on")
        async with sending(obligations, chosen) as delivery:
            obligations.exhaust(delivery, b"saved")
            obligations.exhaust(delivery, b"cut")
            await obligations.until(lambda: len(obligations.errors()) >= 6)
            assert set(obligations.errors()) == {"connection refused"}
            assert obligations.started == set()
            obligations.top_up(delivery, b"saved")
            await receiver.listen(True)
            await obligations.until(obligations.nothing_owed)
            assert [(call.user_id, call.path) for call in receiver.calls] == [("cut", "/off")]


async def test_a_name_that_does_not_resolve() -> None:
    obligations = FakeObligations()
    async with sending(obligations, settings("http://nowhere.invalid/", connect_timeout_s=5.0)) as delivery:
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: len(obligations.errors()) >= 1)
        assert obligations.errors()[0] in ("the name does not resolve", "no connection within 5 s")
        assert obligations.started == set()


async def test_a_dead_endpoint_is_probed_and_its_backlog_drained_when_it_is_back() -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=Fault("status", 503)) as receiver,
        sending(obligations, settings(receiver.url)) as delivery,
    ):
        for number in range(500):
            obligations.exhaust(delivery, b"u%d" % number)
        await obligations.until(lambda: delivery.outbox.lanes[0].shut)
        before = len(receiver.calls)
        await obligations.until(lambda: len(receiver.calls) >= before + 3)
        assert len(receiver.calls) < 30  # probes, not 500 users
        assert len(delivery.outbox) == 500
        receiver.fault = None
        await obligations.until(obligations.nothing_owed)
        acknowledged = [call.user_id for call in receiver.calls if call.answered == "200"]
        assert sorted(acknowledged) == sorted(f"u{number}" for number in range(500))


async def test_retry_after_is_kept_up_to_its_limit_and_by_its_user_alone() -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=Fault("status", 429, 3600)) as receiver,
        sending(obligations, settings(receiver.url)) as delivery,
    ):
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: len(obligations.errors()) == 1)
        receiver.fault = None
        obligations.exhaust(delivery, b"other")
        await obligations.until(obligations.nothing_owed)
        first, of_other, again = receiver.calls
        assert [call.user_id for call in (first, of_other, again)] == ["u", "other", "u"]
        assert again.arrived_ns - first.arrived_ns >= QUICK.retry_after_max_ns


async def test_a_flapping_endpoint_gets_everything_in_the_end() -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=Fault("flap", 0.15)) as receiver,
        sending(obligations, settings(receiver.url)) as delivery,
    ):
        count = 0
        while not obligations.errors() or count < 300:
            for _ in range(30):
                obligations.exhaust(delivery, b"u%d" % count)
                count += 1
            await obligations.until(lambda: delivery.outbox.in_flight < 4 or bool(obligations.errors()))
            await asyncio.sleep(0.01)
        await obligations.until(obligations.nothing_owed)
        assert {call.user_id for call in receiver.calls} == {f"u{number}" for number in range(count)}


@pytest.mark.parametrize(
    "name", ["lost", "reset", "hang", "drip=80", "status=500", "status=404", "hang-body", "endless"]
)
async def test_a_share_of_faults_harms_only_the_calls_that_meet_them(name: str) -> None:
    obligations = FakeObligations()
    what, _, value = name.partition("=")
    fault = Fault(what, float(value or 0))
    timed = what in ("hang", "drip")
    async with (
        receiving(misbehaviour=Misbehaviour(fault, 0.2, random.Random(3))) as receiver,
        sending(obligations, settings(receiver.url, timeout_s=0.3 if timed else LONG_S)) as delivery,
    ):
        for number in range(60):
            obligations.exhaust(delivery, b"u%d" % number)
        await obligations.until(obligations.nothing_owed)
        well = [call for call in receiver.calls if call.answered == "200" or what in ("hang-body", "endless")]
        users = sorted(call.user_id for call in well)
        assert (sorted(set(users)) if timed else users) == sorted(f"u{number}" for number in range(60))


async def test_a_connection_closed_while_idle_is_tried_again_at_once_and_counted() -> None:
    """The close arrives only after the request was written: nobody can know, so it is another attempt."""
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url, warm=0)) as delivery:
        obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        receiver.fault = Fault("lost")
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: bool(obligations.errors()))
        receiver.fault = None
        await obligations.until(obligations.nothing_owed)
        assert obligations.errors() == ["connection was closed while idle"]
        assert [call.seq for call in receiver.calls] == [1, 2, 2]
        assert (delivery.started, delivery.counts.dropped) == (3, 1)


@pytest.mark.parametrize(
    ("certificate", "host", "error"),
    [
        ("valid.pem", "localhost", ""),
        ("expired.pem", "localhost", "TLS: certificate has expired"),
        ("valid.pem", "127.0.0.1", ""),
    ],
)
async def test_tls(certificate: str, host: str, error: str) -> None:
    obligations = FakeObligations()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(TLS / certificate)
    trust = ssl.create_default_context(cafile=str(TLS / certificate))
    async with receiving(tls=server) as receiver:
        url = f"https://{host}:{receiver.port}/off"
        async with sending(obligations, settings(url, tls=trust, connect_timeout_s=5.0)) as delivery:
            obligations.exhaust(delivery, b"u")
            if error:
                await obligations.until(lambda: bool(obligations.errors()))
                assert set(obligations.errors()) == {error}
                assert receiver.calls == []
            else:
                await obligations.until(obligations.nothing_owed)
                assert obligations.errors() == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("reset"), "connection lost before an answer"),
        (Fault("lost"), "connection lost before an answer"),
        (Fault("hang"), "no answer within 0.3 s"),
        (Fault("status", 500), "status 500"),
    ],
)
async def test_over_tls_too_no_success_is_tried_again(fault: Fault, error: str) -> None:
    obligations = FakeObligations()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(TLS / "valid.pem")
    trust = ssl.create_default_context(cafile=str(TLS / "valid.pem"))
    async with receiving(tls=server, fault=fault) as receiver:
        url = f"https://localhost:{receiver.port}/off"
        timeout_s = 0.3 if "no answer" in error else LONG_S
        async with sending(obligations, settings(url, tls=trust, timeout_s=timeout_s)) as delivery:
            for user in (b"u", b"v"):
                obligations.exhaust(delivery, user)
            await obligations.until(lambda: len(obligations.errors()) >= 6)
            assert error in obligations.errors()
            receiver.fault = None
            await obligations.until(obligations.nothing_owed)


async def test_a_certificate_that_nobody_trusts_is_refused() -> None:
    obligations = FakeObligations()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(TLS / "valid.pem")
    async with (
        receiving(tls=server) as receiver,
        sending(obligations, settings(receiver.url, connect_timeout_s=5.0)) as delivery,
    ):
        obligations.exhaust(delivery, b"u")
        await obligations.until(lambda: bool(obligations.errors()))
        assert obligations.errors()[0].startswith("TLS: ")
        assert receiver.calls == []


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (OK, ""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 299 Fine\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000, ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + OK, ""),
        (b'HTTP/1.1 204 No Content\r\nContent-Type: application/json\r\n\r\n{"ok": true}', ""),
        (b'HTTP/1.1 204 No Content\r\nContent-Length: 12\r\n\r\n{"ok": true}', ""),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 12\r\n\r\n", ""),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""),
        (b"HTTP/1.1 205 Reset Content\r\n\r\n", ""),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nno header at all\r\n\r\n", ""),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", ""),
        (b"\r\n" + OK, ""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "malformed answer"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "malformed answer"),
        (b"HTTP/2 200\r\n\r\n", "malformed answer"),
        (b"HTTP/1.1 20\r\n\r\n", "malformed answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "status 101"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "status 304"),
        (b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", "status 999"),
        (b"220 mail.example ESMTP\r\n", "malformed answer"),
        (b"\x16\x03\x01\x02\x00 not http", "malformed answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9_000 + b"\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 250_000 + b"\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, "malformed answer"),
        (b"HTTP/1.1 200 O", "connection lost before an answer"),
        (b"", "connection lost before an answer"),
    ],
    ids=range(37),
)
async def test_answers_byte_by_byte(answer: bytes, error: str) -> None:
    """What follows decides nothing about it: the second user is cut off, whatever the first answer left behind."""
    obligations = FakeObligations()
    async with RawEndpoint(answer, close=True) as raw, sending(obligations, settings(raw.url)) as delivery:
        obligations.exhaust(delivery, b"first")
        await obligations.until(lambda: bool(obligations.errors()) or obligations.nothing_owed())
        assert obligations.errors()[:1] == ([error] if error else [])
        raw.answers = [OK]
        obligations.exhaust(delivery, b"second")
        await obligations.until(obligations.nothing_owed)


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    obligations = FakeObligations()
    twice = OK + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with (
        RawEndpoint(twice, b"HTTP/1.1 404 No\r\n\r\n") as raw,
        sending(obligations, settings(raw.url)) as delivery,
    ):
        obligations.exhaust(delivery, b"first")
        await obligations.until(obligations.nothing_owed)
        obligations.exhaust(delivery, b"second")
        await obligations.until(lambda: bool(obligations.errors()))
        assert obligations.outcomes(b"second")[:2] == ["started", "failed"]


async def test_cookies_are_not_kept() -> None:
    obligations = FakeObligations()
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1; Path=/\r\nContent-Length: 0\r\n\r\n"
    async with RawEndpoint(answer) as raw, sending(obligations, settings(raw.url)) as delivery:
        for _ in range(2):
            obligations.exhaust(delivery, b"u")
            await obligations.until(obligations.nothing_owed)
        assert len(raw.requests) == 2
        assert b"ookie" not in b"".join(raw.requests)


@pytest.mark.parametrize(
    ("value", "least_ns"),
    [
        ("1", 300_000_000),
        ("{in an hour}", 300_000_000),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("soon", 0),
        ("-5", 0),
        ("9" * 500, 300_000_000),
    ],
)
async def test_retry_after_in_all_its_forms(value: str, least_ns: int) -> None:
    obligations = FakeObligations()
    value = value.replace("{in an hour}", formatdate(MACHINE_CLOCKS.wall_ns() / 1e9 + 3600, usegmt=True))
    refusal = f"HTTP/1.1 503 Later\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n".encode()
    async with RawEndpoint(refusal, OK) as raw, sending(obligations, settings(raw.url)) as delivery:
        before_ns = MACHINE_CLOCKS.wall_ns()
        obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        assert MACHINE_CLOCKS.wall_ns() - before_ns >= least_ns
        assert len(raw.requests) == 2


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Pacific/Kiritimati"])
def test_retry_after_is_a_date_of_utc_in_all_its_forms_wherever_the_machine_is(zone: str) -> None:
    """RFC 9110, section 5.6.7."""
    code = (
        "import sys; from billing.expirationd.endpoint import retry_after_ns_of;"
        "print(*(retry_after_ns_of(text, 784_111_777_000_000_000 - 5) for text in sys.argv[1:]))"
    )
    texts = ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
    command = [sys.executable, "-c", code, *texts]
    result = subprocess.run(command, env=os.environ | {"TZ": zone}, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "5 5 5\n"), result.stderr
