"""Whatever packets come, in whatever pieces: the same answers, and before the sign-in nothing is done."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from billing.api.auth import Guard
from billing.api.iproto import protocol
from tests.api.iproto.streams import Told, converse, salt_of
from tests.api.iproto.test_connection import TOKENS

WRONG = bytes(protocol.SCRAMBLE_BYTES)


def packet(kind: int, body: dict[int, Any], sync: int = 1) -> bytes:
    packed = msgpack.packb({0: kind, 1: sync}) + msgpack.packb(body)
    return bytes(msgpack.packb(len(packed)) + packed)


def call(name: str, *params: Any, sync: int = 1) -> bytes:
    return packet(protocol.CALL, {protocol.FUNCTION_NAME: name, protocol.TUPLE: list(params)}, sync)


def sign_in(scramble: object, name: str = "operator") -> bytes:
    return packet(protocol.AUTH, {protocol.USER_NAME: name, protocol.TUPLE: ["chap-sha1", scramble]}, 9)


PACKETS = st.sampled_from(
    [
        call("top_up", "u", "5", sync=2),
        call("get_account", "u", sync=3),
        call("nothing", sync=4),
        packet(protocol.PING, {}, 5),
        packet(protocol.ID, {}, 6),
        packet(protocol.SELECT, {protocol.SPACE_ID: 281}, 7),
        packet(8, {0x27: "return 1"}, 8),
        b"\xc1",
    ]
)


def sorted_by_sync(replies: list[Told]) -> list[Told]:
    return sorted(replies, key=repr)


@given(st.lists(PACKETS, max_size=12), st.lists(st.integers(0, 10_000), max_size=6))
def test_answers_do_not_depend_on_how_the_stream_was_cut(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(sent)
    replies_at_once, calls, ended = converse(stream, [], Guard())
    replies, asked_in_pieces, ended_in_pieces = converse(stream, cuts, Guard())
    assert sorted_by_sync(replies) == sorted_by_sync(replies_at_once)
    assert (asked_in_pieces, ended_in_pieces) == (calls, ended)
    before = sent[: sent.index(b"\xc1")] if b"\xc1" in sent else sent
    assert len(replies) == len(before) + (b"\xc1" in sent)


@given(
    st.lists(PACKETS, max_size=6),
    st.one_of(st.just(WRONG), st.binary(max_size=40), st.none(), st.integers(), st.lists(st.binary(max_size=20))),
    st.lists(PACKETS, max_size=6),
)
def test_whatever_stands_around_a_wrong_sign_in_nothing_is_done(
    before: list[bytes], scramble: object, behind: list[bytes]
) -> None:
    stream = b"".join([*before, sign_in(scramble), *behind])
    replies, calls, ended = converse(stream, [len(stream) // 2], Guard(TOKENS))
    assert calls == []
    assert ended
    assert replies[-1][0] in (0x8000 | protocol.ER_PASSWORD_MISMATCH, 0x8000 | protocol.ER_INVALID_MSGPACK)


@given(st.integers(0, 200))
def test_half_a_sign_in_lets_nobody_in_and_a_whole_one_does(cut: int) -> None:
    sign_in_packet = sign_in(protocol.scramble_of(b"operator", salt_of(protocol.SALT_BYTES)))
    stream = sign_in_packet[: min(cut, len(sign_in_packet) - 1)] + call("top_up", "u", "5")
    _, calls, _ = converse(stream, [], Guard(TOKENS))
    assert calls == []
    replies, calls, _ = converse(sign_in_packet + call("top_up", "u", "5"), [cut], Guard(TOKENS))
    assert [kind for kind, _, _ in replies] == [0, 0]
    assert len(calls) == 1
