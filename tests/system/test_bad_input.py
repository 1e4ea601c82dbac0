"""Bad input at every door of one daemon that asks for tokens, case by case: refused as declared, and nothing is done.

What a case would do if it were taken is to open an account of its own; afterwards there is none, the daemon serves as
before, and its log has no bug in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from base64 import b64decode
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack
import pytest

from billing.api.http.openapi import document
from billing.api.iproto import protocol
from billing.api.methods import ANYONE, METHODS
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.private_files import private_file

NAME, TOKEN = "shop", "a token of the shop"
HOST = "127.0.0.1"
WAIT_S = 60.0
SIGNED = f"Authorization: Bearer {TOKEN}\r\n"
BODY = b'{"amount":"1"}'


class Answer(NamedTuple):
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


NO_HTTP = (
    b"\x00\xff\xfe\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # a TLS handshake begins so
    b"GET\r\n\r\n",
    b"GET /livez HTTP/9\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    b"\x94\x00\x01\xa4ping\x90\r\n\r\n",  # MessagePack
)


class Doors:
    """The daemon and connections to its doors."""

    def __init__(self, daemon: Daemon, http_port: int, tarantool_port: int) -> None:
        self.daemon = daemon
        self.http_port = http_port
        self.tarantool_port = tarantool_port

    @contextlib.contextmanager
    def wire(self, port: int) -> Iterator[socket.socket]:
        with socket.create_connection((HOST, port), WAIT_S) as connected:
            yield connected

    def http(self, *pieces: bytes) -> list[Answer]:
        """All answers to these bytes, until the daemon closes."""
        with self.wire(self.http_port) as wire:
            for piece in pieces:
                with contextlib.suppress(ConnectionError):  # it may have closed already
                    wire.sendall(piece)
            return answers_in(until_closed(wire))

    def ask(self, verb: str, target: str, body: bytes = b"", more: str = SIGNED) -> Answer:
        """The answer to one request, signed in where nothing else is said."""
        (answer,) = self.http(request(verb, target, body, more + "Connection: close\r\n"))
        return answer

    def is_open(self, user: str) -> bool:
        """Whether there is such an account."""
        return self.ask("GET", f"/v1/accounts/{user}").status == 200

    def entries(self) -> list[Any]:
        """Everything that ever happened."""
        answer = self.ask("GET", "/v1/entries", more=SIGNED + "Accept: application/json\r\n")
        return list(answer.json["entries"])


def request(verb: str, target: str, body: bytes = b"", more: str = SIGNED) -> bytes:
    """A request with a whole head."""
    lines = f"Host: {HOST}\r\n{more}"
    if body and "content-type:" not in more.lower():
        lines += "Content-Type: application/json\r\n"
    if body and "transfer-encoding" not in more.lower():
        lines += f"Content-Length: {len(body)}\r\n"
    return f"{verb} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


def until_closed(wire: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):  # closed with something of ours unread
        while part := wire.recv(65_536):
            received += part
    return received


def answers_in(received: bytes) -> list[Answer]:
    answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        answers.append(Answer(int(first.split()[1]), headers, received[:length]))
        received = received[length:]
    return answers


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("d")
    http_port, tarantool_port = free_port(), free_port()
    proof = protocol.proof_of(TOKEN.encode()).hex()
    tokens = f"{NAME}:admin:{hashlib.sha256(TOKEN.encode()).hexdigest()}:{proof}\n"
    settings = {
        "http.listen": f"{HOST}:{http_port}",
        "tarantool.listen": f"{HOST}:{tarantool_port}",
        "rpc.tokens_file": private_file(folder / "tokens", tokens),
    }
    with Daemon(folder, shards__workers=1, **settings) as daemon:
        doors = Doors(daemon, http_port, tarantool_port)
        yield doors
        assert doors.entries() == [], "something was done"
        assert doors.ask("GET", "/v1/ping").json == {"ping": "pong"}
    log = daemon.log.read_text()
    assert "Traceback" not in log
    assert "a bug" not in log


# -- HTTP: what two readers could understand in two ways ---------------------------------------------------------------

HIDDEN = request("POST", "/v1/accounts/smuggled/top_up", BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HEAD = (
    f"POST /v1/accounts/smuggled/top_up HTTP/1.1\r\nHost: {HOST}\r\n{SIGNED}Content-Type: application/json\r\n".encode()
)

SMUGGLED = {
    "length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKED,
    "two lengths": HEAD + b"Content-Length: 14\r\nContent-Length: 5\r\n\r\n" + BODY,
    "one length twice": HEAD + b"Content-Length: 14\r\nContent-Length: 14\r\n\r\n" + BODY,
    "a list of lengths": HEAD + b"Content-Length: 14, 14\r\n\r\n" + BODY,
    "a length with a sign": HEAD + b"Content-Length: +14\r\n\r\n" + BODY,
    "a negative length": HEAD + b"Content-Length: -14\r\n\r\n" + BODY,
    "a hexadecimal length": HEAD + b"Content-Length: 0xe\r\n\r\n" + BODY,
    "a length in other digits": HEAD + "Content-Length: ١٤\r\n\r\n".encode() + BODY,
    "a length beyond all": HEAD + b"Content-Length: 99999999999999999999\r\n\r\n" + BODY,
    "a length on a line that goes on": HEAD + b"Content-Length: 1\r\n 4\r\n\r\n" + BODY,
    "a header on a line that goes on": HEAD + b"X: a\r\n\tb\r\nContent-Length: 14\r\n\r\n" + BODY,
    "a name with a space behind it": HEAD + b"Content-Length : 14\r\n\r\n" + BODY,
    "a line without a colon": HEAD + b"Content-Length: 14\r\nwhat is this\r\n\r\n" + BODY,
    "a zero byte in a header": HEAD + b"Content-Length: 14\r\nX: a\x00b\r\n\r\n" + BODY,
    "chunks behind something else": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "chunks twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + CHUNKED,
    "chunks by another name": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "a chunk that is longer than all": HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + BODY,
    "a chunk with a sign": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-e\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk that does not end where it says": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n3\r\n"
    + BODY
    + b"\r\n0\r\n\r\n",
    "lines that end without a return": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 14\n\n" + BODY,
    "another protocol": HEAD.replace(b"HTTP/1.1", b"HTTP/9.9") + b"Content-Length: 14\r\n\r\n" + BODY,
    "a target of two words": HEAD.replace(b"top_up", b"top up") + b"Content-Length: 14\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("data", SMUGGLED.values(), ids=SMUGGLED)
def test_a_request_of_two_meanings_is_none_and_nothing_behind_it_is_read(doors: Doors, data: bytes) -> None:
    answers = doors.http(data + HIDDEN)
    assert [(answer.status, answer.json["name"]) for answer in answers] == [(400, "PROTOCOL_ERROR")]
    assert not doors.is_open("smuggled")


HUGE = {
    "a header": HEAD + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "many headers": HEAD + b"".join(b"X-%d: y\r\n" % number for number in range(100_000)) + b"\r\n",
    "a target": b"GET /v1/accounts/" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a name": HEAD + b"X" * 1_000_000 + b": y\r\n\r\n",
    "a token": HEAD.replace(TOKEN.encode(), b"t" * 1_000_000) + b"\r\n",
}


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE)
def test_a_head_beyond_the_limit_is_not_kept(doors: Doors, data: bytes) -> None:
    answers = doors.http(data, HIDDEN)
    assert [(answer.status, answer.json["name"]) for answer in answers[:1]] in ([(400, "PROTOCOL_ERROR")], [])
    assert len(answers) <= 1
    assert not doors.is_open("smuggled")


# -- HTTP: bodies ------------------------------------------------------------------------------------------------------

DEEP = b'{"amount":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
BODIES: dict[str, tuple[bytes, int, str, str]] = {  # body, status, name, what the detail says
    "deep": (DEEP, 400, "INVALID_PARAMS", "nests too deep"),
    "deep maps": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400, "INVALID_PARAMS", "nests too deep"),
    "beyond range": (b'{"amount_nanos":1e400}', 400, "INVALID_AMOUNT", "amount_nanos"),
    "below range": (b'{"amount_nanos":-1e400}', 400, "INVALID_AMOUNT", "amount_nanos"),
    "a limit beyond range": (b'{"amount":"1","expires_at_ns":1e400}', 400, "INVALID_PARAMS", "expires_at_ns"),
    "NaN": (b'{"amount_nanos":NaN}', 400, "INVALID_PARAMS", "NaN is no number"),
    "Infinity": (b'{"amount_nanos":-Infinity}', 400, "INVALID_PARAMS", "-Infinity is no number"),
    "many digits": (b'{"amount_nanos":%b}' % (b"9" * 60_000), 400, "INVALID_PARAMS", "a number"),
    "a fraction of a nano": (b'{"amount_nanos":0.5}', 400, "INVALID_AMOUNT", "amount_nanos"),
    "a bare number of coins": (b'{"amount":1}', 400, "INVALID_AMOUNT", "decimal string"),
    "true": (b'{"amount_nanos":true}', 400, "INVALID_AMOUNT", "amount_nanos"),
    "a name twice": (b'{"amount":"1","amount":"1"}', 400, "INVALID_PARAMS", "amount stands twice"),
    "a name twice within": (b'{"amount":"1","kind":{"a":1,"a":1}}', 400, "INVALID_PARAMS", "a stands twice"),
    "two names for one": (b'{"amount":"1","amount_nanos":1}', 400, "INVALID_PARAMS", "amount_nanos says again"),
    "an unknown field": (b'{"amount":"1","amuont":"1"}', 400, "INVALID_PARAMS", "unknown field: amuont"),
    "a field of somewhere else": (b'{"amount":"1","user_id":"v"}', 400, "INVALID_PARAMS", "unknown field: user_id"),
    "the key in the body": (b'{"amount":"1","request_id":"k"}', 400, "INVALID_PARAMS", "Idempotency-Key"),
    "nothing of what is needed": (b"{}", 400, "INVALID_PARAMS", "amount or amount_nanos is missing"),
    "an array": (b"[1]", 400, "INVALID_PARAMS", "JSON object"),
    "a text": (b'"amount"', 400, "INVALID_PARAMS", "JSON object"),
    "no JSON": (b"amount=1", 400, "INVALID_PARAMS", "no JSON"),
    "half of it": (b'{"amount":"1"', 400, "INVALID_PARAMS", "no JSON"),
    "more than one": (b'{"amount":"1"}{}', 400, "INVALID_PARAMS", "no JSON"),
    "a byte order mark": (b"\xef\xbb\xbf" + BODY, 400, "INVALID_PARAMS", "no JSON"),
    "UTF-16": (BODY.decode().encode("utf-16"), 400, "INVALID_PARAMS", "UTF-8"),
    "half a character": (b'{"amount":"1","message":"\\ud800"}', 400, "INVALID_PARAMS", "message"),
    "a message beyond the limit": (b'{"amount":"1","message":"%b"}' % (b"x" * 2_000), 400, "INVALID_PARAMS", "message"),
    "beyond the limit": (b'{"amount":"1","message":"%b"}' % (b"x" * 70_000), 413, "FRAME_TOO_LARGE", "bytes"),
    "far beyond the limit": (b" " * 5_000_000, 413, "FRAME_TOO_LARGE", "bytes"),
}


@pytest.mark.parametrize(("body", "status", "name", "words"), BODIES.values(), ids=BODIES)
def test_a_body_that_cannot_be_meant_is_refused_and_says_why(
    doors: Doors, body: bytes, status: int, name: str, words: str
) -> None:
    answer = doors.ask("POST", "/v1/accounts/refused/top_up", body)
    assert (answer.status, answer.json["name"]) == (status, name)
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json["detail"]
    assert len(answer.body) < 1_000, "what came is not sent back"
    assert answer.json["applied"] == "no"
    assert not doors.is_open("refused")


KINDS = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/json; charset=utf-16",
    "",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_of_another_kind_is_not_read(doors: Doors, kind: str) -> None:
    answer = doors.ask("POST", "/v1/accounts/refused/top_up", BODY, f"{SIGNED}Content-Type: {kind}\r\n")
    assert (answer.status, answer.json["name"]) == (415, "INVALID_PARAMS")
    answer = doors.ask("POST", "/v1/accounts/refused/top_up", BODY, f"{SIGNED}Content-Encoding: gzip\r\n")
    assert answer.status == 415


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/v1/accounts?limit=1e400", "limit must be a whole number"),
        ("/v1/accounts?limit=NaN", "limit must be a whole number"),
        ("/v1/accounts?limit=5&limit=5", "limit stands twice"),
        ("/v1/accounts?limt=5", "unknown field: limt"),
        ("/v1/accounts?limit=%FF", "UTF-8"),
        ("/v1/accounts?cursor=%00", "next_cursor"),
        ("/v1/entries?limt=5", "fields are cursor, limit, follow"),
        ("/v1/accounts/u/history?before=5", "unknown field: before"),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused_and_says_why(doors: Doors, target: str, words: str) -> None:
    answer = doors.ask("GET", target)
    assert (answer.status, answer.json["name"]) == (400, "INVALID_PARAMS")
    assert words in answer.json["detail"]


# -- the Tarantool door ------------------------------------------------------------------------------------------------


def packet(kind: int, body: dict[int, Any], sync: int = 1) -> bytes:
    packed = msgpack.packb({0: kind, 1: sync}) + msgpack.packb(body)
    return bytes(msgpack.packb(len(packed)) + packed)


def call(name: str, *params: Any, sync: int = 1) -> bytes:
    return packet(protocol.CALL, {protocol.FUNCTION_NAME: name, protocol.TUPLE: list(params)}, sync)


def salt_of(wire: socket.socket) -> bytes:
    """The salt of the greeting."""
    greeting = b""
    while len(greeting) < protocol.GREETING_BYTES:
        greeting += wire.recv(protocol.GREETING_BYTES - len(greeting))
    return b64decode(greeting[64:127].strip())


def replies_in(received: bytes) -> list[tuple[int, int, Any]]:
    """(type, SYNC, data or error) of whole packets."""
    replies = []
    while received:
        size = int.from_bytes(received[1:5], "big")
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(received[5 : 5 + size])
        header, body = unpacker.unpack(), unpacker.unpack()
        replies.append((header[0], header[1], body.get(0x30, body.get(0x31))))
        received = received[5 + size :]
    return replies


MISMATCH = 0x8000 | protocol.ER_PASSWORD_MISMATCH
DENIED = 0x8000 | protocol.ER_ACCESS_DENIED
CALLS = b"".join(call("top_up", f"piped-{number}", "1", sync=number) for number in range(2, 20))


@pytest.mark.parametrize(
    ("user", "token", "cut"),
    [
        (NAME, TOKEN + "?", 20),
        ("nobody", TOKEN, 20),
        ("guest", TOKEN, 20),
        (NAME, TOKEN, 19),
        (NAME, TOKEN, 0),
        ("", "", 20),
    ],
    ids=["another token", "another name", "guest", "a byte is missing", "no scramble", "no name"],
)
def test_a_wrong_scramble_ends_the_connection_and_no_call_behind_it_is_carried_out(
    doors: Doors, user: str, token: str, cut: int
) -> None:
    with doors.wire(doors.tarantool_port) as wire:
        scramble = protocol.scramble_of(token.encode(), salt_of(wire))[:cut]
        auth = packet(protocol.AUTH, {protocol.USER_NAME: user, protocol.TUPLE: ["chap-sha1", scramble]})
        wire.sendall(auth + CALLS)
        ((kind, sync, message),) = replies_in(until_closed(wire))
    assert (kind, sync) == (MISMATCH, 1)
    assert message == f"Incorrect password supplied for user '{user}'"


def test_a_scramble_of_another_connection_is_worth_nothing(doors: Doors) -> None:
    with doors.wire(doors.tarantool_port) as first, doors.wire(doors.tarantool_port) as second:
        scramble = protocol.scramble_of(TOKEN.encode(), salt_of(first))
        assert salt_of(second) != b""
        auth = packet(protocol.AUTH, {protocol.USER_NAME: NAME, protocol.TUPLE: ["chap-sha1", scramble]})
        second.sendall(auth + CALLS)
        assert [kind for kind, _, _ in replies_in(until_closed(second))] == [MISMATCH]


def test_calls_before_the_sign_in_are_denied_one_by_one(doors: Doors) -> None:
    with doors.wire(doors.tarantool_port) as wire:
        salt_of(wire)
        wire.sendall(CALLS + packet(protocol.SELECT, {protocol.SPACE_ID: 281}) + b"\xc1")
        replies = replies_in(until_closed(wire))
    assert [kind for kind, _, _ in replies[:-1]] == [DENIED] * 19
    assert replies[-1][0] == 0x8000 | protocol.ER_INVALID_MSGPACK


# -- slow clients, and who says nothing --------------------------------------------------------------------------------


def test_what_is_left_unfinished_is_not_waited_for_at_any_door_and_not_logged(doors: Doors) -> None:
    """Nor is a body that breaks off on the operators' pages."""
    logged = doors.daemon.log.read_bytes()
    http = {
        "half a head": request("POST", "/v1/accounts/slow/top_up", BODY)[:40],
        "half a body": request("POST", "/v1/accounts/slow/top_up", BODY)[:-5],
        "half a chunk": request(
            "POST", "/v1/accounts/slow/top_up", CHUNKED[:-12], SIGNED + "Transfer-Encoding: chunked\r\n"
        ),
    }
    auth = packet(protocol.AUTH, {protocol.USER_NAME: NAME, protocol.TUPLE: ["chap-sha1", bytes(20)]})
    with contextlib.ExitStack() as opened:
        wires = {name: opened.enter_context(doors.wire(doors.http_port)) for name in http}
        for name, wire in wires.items():
            wire.sendall(http[name])
        page = opened.enter_context(doors.wire(doors.daemon.admin_port))
        page.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert page.recv(65_536).startswith(b"HTTP/1.1 200")
        page.sendall(b"no chunk\r\n")
        silent = opened.enter_context(doors.wire(doors.tarantool_port))
        half_signed_in = opened.enter_context(doors.wire(doors.tarantool_port))
        half_signed_in.sendall(auth[:20])
        half_size = opened.enter_context(doors.wire(doors.tarantool_port))
        half_size.sendall(b"\xce\x00")
        for wire in (silent, half_signed_in, half_size):
            assert until_closed(wire)[protocol.GREETING_BYTES :] == b"", "nothing is said but the greeting"
        for name, wire in wires.items():
            answers = answers_in(until_closed(wire))
            assert [answer.status for answer in answers] == [408], name
            assert answers[0].json["name"] == "PROTOCOL_ERROR"
        until_closed(page)
    assert not doors.is_open("slow")
    assert doors.daemon.log.read_bytes() == logged


# -- before the sign-in ------------------------------------------------------------------------------------------------

PATHS = [(verb.upper(), path) for path, verbs in document()["paths"].items() for verb in verbs]


def test_over_http_nothing_is_told_and_nothing_done_without_a_token(doors: Doors) -> None:
    for verb, path in [*PATHS, ("GET", "/v1/openapi.json"), ("GET", "/nothing")]:
        target = path.format(user_id="early", hold_id="h", bucket_id="1")
        answer = doors.ask(verb, target, BODY if verb != "GET" else b"", "")
        assert (answer.status, answer.json["name"], answer.headers["www-authenticate"]) == (
            401,
            "UNAUTHENTICATED",
            "Bearer",
        )
    for authorization in (
        "Bearer wrong",
        "Basic c2hvcDo=",
        "Bearer",
        f"Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}",
    ):
        answer = doors.ask("POST", "/v1/accounts/early/top_up", BODY, f"Authorization: {authorization}\r\n")
        assert (answer.status, answer.json["name"]) == (401, "UNAUTHENTICATED")
    piped = request("POST", "/v1/accounts/early/top_up", BODY, "Authorization: Bearer wrong\r\n")
    assert [answer.status for answer in doors.http(piped + HIDDEN)] == [401], "one guess each"


def test_no_procedure_is_carried_out_at_the_other_doors_before_the_sign_in(doors: Doors) -> None:
    guarded = [row.name for row in METHODS.values() if row.role != ANYONE]
    for name in guarded:
        with doors.wire(doors.daemon.rpc_port) as wire:
            wire.sendall(msgpack.packb([0, 7, name, ["early", "1"]]) + b"\xc1")
            unpacker = msgpack.Unpacker()
            unpacker.feed(until_closed(wire))
            assert next(unpacker)[2].startswith("UNAUTHENTICATED"), name
        with doors.wire(doors.tarantool_port) as wire:
            salt_of(wire)
            wire.sendall(call(name, "early", "1") + b"\xc1")
            assert replies_in(until_closed(wire))[0][0] == DENIED, name
    assert not doors.is_open("early")


# -- the operators' pages: their log is read for what the daemon does, so what strangers send stands nowhere in it -----


@pytest.mark.parametrize("data", NO_HTTP)
def test_what_is_no_http_on_the_operators_pages_is_the_clients_fault_and_not_logged(doors: Doors, data: bytes) -> None:
    log = doors.daemon.log.read_bytes()
    with doors.wire(doors.daemon.admin_port) as wire:
        wire.sendall(data)
        (answer,) = answers_in(until_closed(wire))
    assert (answer.status, answer.body) == (400, b"this is no HTTP request that is taken here\n")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert doors.daemon.log.read_bytes() == log
