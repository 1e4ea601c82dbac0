"""Who may do what: tokens, roles, and what a connection may do before it has signed in."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgpack
import pytest

from billing.api.auth import Grant, Guard, TokensError
from billing.api.door import Limits
from billing.api.methods import METHODS
from tests.api.outside import DoorHarness, open_harness
from tests.api.test_methods import RIGHT


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


TOKENS = f"""
# who may call
metering:charge,read:{digest("meter")}
shop:top_up:{digest("shop")}
root:admin:{digest("root")}
"""


def test_a_token_is_known_by_its_hash() -> None:
    guard = Guard(TOKENS)
    assert guard.sign_in(b"meter") == Grant("metering", frozenset({"charge", "read"}), b"metering")
    assert guard.sign_in(b"shop") == Grant("shop", frozenset({"top_up"}), b"shop")
    assert guard.sign_in(b"") is None
    assert guard.sign_in(digest("meter").encode()) is None
    assert Guard().sign_in(b"meter") is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("metering:charge", "line 1"),
        (f"\nmetering:charge:{digest('x')}:more", "line 2"),
        (f"metering::{digest('x')}", "line 1"),
        (f"metering:charge,god:{digest('x')}", "line 1"),
        (f":charge:{digest('x')}", "line 1"),
        (f"me ter:charge:{digest('x')}", "line 1"),
        (f"time:charge:{digest('x')}", "line 1: expected a name of 1 to 64 .*, and not time"),
        (f"metering:anyone:{digest('x')}", "line 1"),
        ("metering:charge:meter", "line 1"),
        (f"metering:charge:{digest('x').upper()}", "line 1"),
        (f"a:charge:{digest('x')}\nb:read:{digest('x')}", "line 2"),
        (f"a:charge:{digest('x')}\na:read:{digest('y')}", "line 2"),
        ("", "at least one"),
        ("# nobody", "at least one"),
    ],
)
def test_a_faulty_tokens_file_says_where(text: str, line: str) -> None:
    with pytest.raises(TokensError, match=line):
        Guard(text)


class Peer:
    """A transport, as far as it says who is there."""

    def __init__(self, host: str, common_name: str = "") -> None:
        subject = ((("countryName", "DE"),), (("commonName", common_name),))
        self._known = {"peername": (host, 5), "peercert": {"subject": subject} if common_name else {}}

    def get_extra_info(self, name: str) -> object:
        return self._known.get(name)


@pytest.mark.parametrize(
    ("peer", "tokens", "grant"),
    [
        (Peer("127.0.0.1"), None, Grant("local", frozenset({"admin"}))),
        (Peer("127.9.9.9"), None, Grant("local", frozenset({"admin"}))),
        (Peer("::1"), None, Grant("local", frozenset({"admin"}))),
        (Peer("::ffff:127.0.0.1"), None, Grant("local", frozenset({"admin"}))),
        (Peer("192.0.2.1"), None, None),
        (Peer("fe80::1%lo"), None, None),
        (Peer("::ffff:192.0.2.1"), None, None),
        (Peer("127.0.0.1"), TOKENS, None),
        (Peer("192.0.2.1", "shop"), None, Grant("shop", frozenset({"admin"}), b"shop")),
        (Peer("192.0.2.1", "time"), None, Grant("time", frozenset({"admin"}), b"certificate:time")),
        (Peer("192.0.2.1", "uid:0"), None, Grant("uid:0", frozenset({"admin"}), b"certificate:uid:0")),
        (Peer("192.0.2.1", "shop"), TOKENS, Grant("shop", frozenset({"top_up"}), b"shop")),
        (Peer("192.0.2.1", "stranger"), TOKENS, None),
    ],
)
def test_what_a_connection_may_do_before_it_signs_in(peer: Peer, tokens: str | None, grant: Grant | None) -> None:
    assert Guard(tokens).greet(peer) == grant  # type: ignore[arg-type]


async def test_loopback_without_tokens_may_do_everything(harness: DoorHarness) -> None:
    wire = await harness.connect()
    assert (await wire.call("adjust", "u", 5, "why"))[0] is None
    assert await wire.call("hello") == (None, {"name": "local", "roles": ["admin"], "errors": "string"})


async def test_a_unix_socket_without_tokens_may_do_everything(data_dir: Path) -> None:
    async with open_harness(path=str(data_dir / "rpc.sock")) as harness:
        assert (await (await harness.connect()).call("adjust", "u", 5, "why"))[0] is None


async def test_the_daemons_own_user_needs_no_token_on_the_unix_socket(data_dir: Path) -> None:
    async with open_harness(guard=Guard(TOKENS), path=str(data_dir / "rpc.sock")) as harness:
        wire = await harness.connect()
        assert (await wire.call("adjust", "u", 5, "why"))[0] is None
        assert harness.door.handshakes == 0


async def test_with_tokens_nothing_but_hello_and_ping_before_sign_in() -> None:
    async with open_harness(guard=Guard(TOKENS)) as harness:
        wire = await harness.connect()
        for name, row in METHODS.items():
            if name not in {"hello", "ping"}:
                error, _ = await wire.call(name, *(RIGHT[field.name] for field in row.required))
                assert error == "UNAUTHENTICATED: sign in first: hello({token})"
        assert (await wire.call("nobody"))[0].startswith("UNAUTHENTICATED: ")
        assert (await wire.call("hello"))[0].startswith("UNAUTHENTICATED: ")
        assert (await wire.call("ping")) == (None, "pong")
        wire.send(msgpack.packb([2, "top_up", ["u", 5]]))
        assert await wire.alive()
        assert harness.gate.asked == []


@pytest.mark.parametrize("token", ["meter", "shop", "root"])
async def test_each_method_is_open_to_the_roles_that_may_call_it_and_to_no_other(token: str) -> None:
    roles = {"meter": {"charge", "read"}, "shop": {"top_up"}, "root": {"charge", "read", "top_up", "admin"}}[token]
    async with open_harness(guard=Guard(TOKENS)) as harness:
        wire = await harness.connect()
        assert (await wire.call("hello", {"token": token}))[0] is None
        for name, row in METHODS.items():
            if name == "hello":
                continue
            error, _ = await wire.call(name, *(RIGHT[field.name] for field in row.required))
            if row.role in roles | {"anyone"}:
                assert error is None
            else:
                assert error == f"FORBIDDEN: {name} needs the role {row.role}"


async def test_a_sign_in_and_what_follows_may_come_in_one_read() -> None:
    async with open_harness(guard=Guard(TOKENS)) as harness:
        wire = await harness.connect()
        calls = [msgpack.packb([0, 0, "hello", [{"token": "shop", "errors": "map"}]])]
        calls += [msgpack.packb([0, msgid, "top_up", ["u", msgid]]) for msgid in range(1, 2000)]
        wire.send(b"".join(calls))
        replies = await wire.replies(2000)
        assert replies[0][3] == {"name": "shop", "roles": ["top_up"], "errors": "map"}
        assert [reply[:3] for reply in replies] == [[1, msgid, None] for msgid in range(2000)]
        assert harness.door.handshakes == 0


async def test_a_wrong_token_is_one_guess() -> None:
    async with open_harness(guard=Guard(TOKENS)) as harness:
        wire = await harness.connect()
        wire.send(msgpack.packb([0, 5, "hello", [{"token": "wrong", "errors": "map"}]]))
        wire.send(msgpack.packb([0, 6, "hello", [{"token": "root"}]]))
        reply = await wire.reply()
        assert reply[:2] == [1, 5]
        assert reply[2]["name"] == "UNAUTHENTICATED"
        assert await wire.is_closed()


async def test_before_sign_in_a_frame_may_have_4_kib() -> None:
    async with open_harness(guard=Guard(TOKENS)) as harness:
        wire = await harness.connect()
        wire.send(b"\x94\x00\x01\xa5hello\x91\x81\xa5token\xc6\x00\x00\x20\x00" + b"x" * 5000)
        assert (await wire.reply())[2].startswith("FRAME_TOO_LARGE: ")
        assert await wire.is_closed()


async def test_a_sign_in_has_a_deadline() -> None:
    async with open_harness(guard=Guard(TOKENS)) as harness:
        late, early = await harness.connect(), await harness.connect()
        assert (await early.call("hello", {"token": "meter"}))[0] is None
        assert await late.alive()
        harness.clock.pass_s(5)
        harness.door.sweep()
        assert (await late.reply())[2] == "UNAUTHENTICATED: no sign-in in time"
        assert await late.is_closed()
        assert await early.alive()


async def test_only_so_many_may_be_signing_in_at_once() -> None:
    async with open_harness(Limits(handshakes_max=2), Guard(TOKENS)) as harness:
        first, second = await harness.connect(), await harness.connect()
        assert await first.alive()
        assert await second.alive()
        third = await harness.connect()
        assert (await third.reply())[2].startswith("TOO_MANY_CONNECTIONS: ")
        assert (await first.call("hello", {"token": "meter"}))[0] is None
        fourth = await harness.connect()
        assert (await fourth.call("hello", {"token": "meter"}))[0] is None


async def test_a_command_carries_who_caused_it(data_dir: Path) -> None:
    async with open_harness(guard=Guard(TOKENS)) as harness:
        wire = await harness.connect()
        await wire.call("hello", {"token": "shop"})
        assert (await wire.call("top_up", "u", 5))[0] is None
        await wire.call("hello", {"token": "root"})
        assert (await wire.call("adjust", "u", 5, "why"))[0] is None
        names = [Guard(TOKENS).sign_in(token) for token in (b"shop", b"root")]
        assert [command[-1] for command in harness.gate.commands] == [grant.actor for grant in names if grant]
    async with open_harness(guard=Guard(TOKENS), path=str(data_dir / "rpc.sock")) as harness:
        assert (await (await harness.connect()).call("top_up", "u", 5))[0] is None
        assert harness.gate.commands[-1][-1] == b"uid:%d" % os.geteuid()
    async with open_harness() as harness:
        assert (await (await harness.connect()).call("top_up", "u", 5))[0] is None
        assert harness.gate.commands[-1][-1] == b""


def test_who_was_let_in_may_stay_while_the_same_token_stands_with_the_same_roles() -> None:
    before = Guard(TOKENS)
    grant = before.sign_in(b"shop")
    assert grant is not None
    line = next(shop_line for shop_line in TOKENS.splitlines() if shop_line.startswith("shop:"))
    assert Guard(TOKENS).outlives(grant, before)
    assert Guard(line).outlives(grant, before)
    assert not Guard(TOKENS.replace(line, "")).outlives(grant, before), "the line is gone"
    assert not Guard(line.replace("top_up", "read")).outlives(grant, before), "it has other roles"
    rotated = line.rpartition(":")[0] + ":" + hashlib.sha256(b"new").hexdigest()
    assert not Guard(rotated).outlives(grant, before), "the same name has another token"
    assert Guard(line).outlives(Grant("local", frozenset({"admin"})), before), "who needed no token stays"
