"""Replies in, bytes out: each once, behind those of its kind, and none behind the last words."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.api.response_writer import ENDING, OPEN, PARTED, ResponseWriter
from billing.api.wire import ERRORS_AS_MAP
from billing.ledger.errors import Refused
from shards.replies import Unavailable

OK = msgpack.packb([1, 7, None, {"user_id": "ann"}])


def new_writer() -> tuple[ResponseWriter, list[object]]:
    """With as many requests in flight as a test may answer, and what it noted."""
    noted: list[object] = []
    writer = ResponseWriter(noted.append)
    writer.in_flight = 100
    return writer, noted


def frames(data: bytes | bytearray) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    return list(unpacker)


def test_an_answer_waits_until_it_is_durable_and_leaves_once() -> None:
    writer, noted = new_writer()
    writer.answer(1, {"balance": 5})
    refused = Refused("UNKNOWN_ACCOUNT", "there is none")
    writer.answer(2, refused)
    assert (bytes(writer.prompt()), bytes(writer.relayed()), writer.in_flight) == (b"", b"", 98)
    data = writer.durable()
    assert frames(data) == [[1, 1, None, {"balance": 5}], [1, 2, "UNKNOWN_ACCOUNT: there is none", None]]
    assert noted == [refused]
    assert writer.durable() == b""
    writer.answer(3, {})
    assert len(frames(data)) == 2, "what has left does not change"


def test_the_three_kinds_leave_apart() -> None:
    writer, _ = new_writer()
    writer.answer(1, {})
    writer.relay(OK)
    writer.reply(2, "pong")
    writer.refuse(3, Unavailable(1, "no disk", "no"))
    assert writer.in_flight == 97, "the door's own reply was not in flight"
    assert writer.relayed() == OK
    assert [frame[1] for frame in frames(writer.prompt())] == [2, 3]
    assert [frame[1] for frame in frames(writer.durable())] == [1]


def test_the_doors_own_replies_leave_when_there_are_enough() -> None:
    writer, _ = new_writer()
    writer.reply(1, "x" * 50)
    assert writer.prompt(100) == b""
    writer.reply(2, "x" * 50)
    assert [frame[1] for frame in frames(writer.prompt(100))] == [1, 2]


def test_errors_come_as_the_client_wants_them_from_then_on() -> None:
    writer, _ = new_writer()
    writer.answer(1, Refused("BUSY", "later"))
    writer.mode = ERRORS_AS_MAP
    writer.answer(2, Refused("BUSY", "later"))
    errors = [frame[2] for frame in frames(writer.durable())]
    assert errors[0] == "BUSY: later"
    assert (errors[1]["name"], errors[1]["message"]) == ("BUSY", "later")


def test_the_last_words_wait_for_everything_that_was_asked_for() -> None:
    writer, _ = new_writer()
    writer.in_flight = 2
    states, over = [writer.state], list[bool]()
    writer.end(b"bye")
    states.append(writer.state)
    writer.relay(OK)
    writer.answer(1, {})
    over.append(writer.is_over)  # both are answered, and neither has left
    writer.durable()
    over.append(writer.is_over)
    writer.relayed()
    over.append(writer.is_over)
    writer.reply(None, Refused("PROTOCOL_ERROR", "garbage"))
    end = writer.last_words()
    assert end.endswith(b"bye")
    assert frames(end[:-3]) == [[1, None, "PROTOCOL_ERROR: garbage", None]]
    assert [*over, writer.is_over] == [False, False, True, False]
    assert [*states, writer.state] == [OPEN, ENDING, PARTED]


def test_it_ends_once() -> None:
    writer, _ = new_writer()
    with pytest.raises(AssertionError):
        writer.last_words()
    writer.end(b"")
    with pytest.raises(AssertionError):
        writer.end(b"")


def test_nothing_is_kept_for_a_client_that_is_gone() -> None:
    writer, _ = new_writer()
    writer.answer(1, {})
    writer.relay(OK)
    writer.reply(2, "pong")
    writer.clear()
    assert [bytes(data) for data in (writer.durable(), writer.relayed(), writer.prompt())] == [b"", b"", b""]


@given(st.lists(st.sampled_from(["answer", "relay", "reply", "refuse", "durable", "relayed", "prompt"])))
def test_however_it_is_used_each_reply_leaves_once_and_in_order(steps: list[str]) -> None:
    writer, _ = new_writer()
    given_in: dict[str, list[int]] = {"durable": [], "relayed": [], "prompt": []}
    came_out: dict[str, list[int]] = {"durable": [], "relayed": [], "prompt": []}
    for number, step in enumerate([*steps, "durable", "relayed", "prompt"]):
        if step == "answer":
            writer.answer(number, {})
            given_in["durable"].append(number)
        elif step == "relay":
            writer.relay(msgpack.packb([1, number, None, {}]))
            given_in["relayed"].append(number)
        elif step in ("reply", "refuse"):
            (writer.reply if step == "reply" else writer.refuse)(number, "pong")
            given_in["prompt"].append(number)
        else:
            came_out[step] += [frame[1] for frame in frames(getattr(writer, step)())]
    assert came_out == given_in
    answered = sum(step in ("answer", "relay", "refuse") for step in steps)
    assert writer.in_flight == 100 - answered
