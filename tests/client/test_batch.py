"""Many commands at once: each number answered once, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from billing.client import Client, FrameTooLarge, InsufficientFunds, Unavailable
from billing.client.errors import BillingError
from billing.ledger.commands import DEBIT
from billing.ledger.errors import Refused
from tests.api.outside import open_harness
from tests.client.test_client import address_of, open_liar, request

COIN = 10**9


class Answers:
    """What came, by number."""

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}
        self.errors: dict[int, BillingError] = {}
        self.reads = 0

    def on_read(self) -> None:
        self.reads += 1

    def on_answer(self, number: int, error: BillingError | None, result: Any) -> None:
        assert number not in self.results
        assert number not in self.errors
        if error is None:
            self.results[number] = result
        else:
            self.errors[number] = error


async def test_commands_are_answered_by_their_numbers() -> None:
    answers = Answers()
    async with open_harness() as harness:
        harness.gate.replies[str(DEBIT)] = Refused("INSUFFICIENT_FUNDS", "no", {"shortfall_nanos": 5})
        async with Client(address_of(harness)).batch(answers.on_answer, answers.on_read) as batch:
            batch.send([("top_up", [f"u{number}", COIN]) for number in range(3000)], number=100)
            assert answers.results == {}
            assert batch.open == 3000
            await batch.answered()
            assert {number: reply["user_id"] for number, reply in answers.results.items()} == {
                number + 100: f"u{number}" for number in range(3000)
            }
            assert 0 < answers.reads < 3000
            batch.send([("debit", ["u0", COIN])])
            await batch.answered()
    error = answers.errors[0]
    assert isinstance(error, InsufficientFunds)
    assert error.details == {"shortfall_nanos": 5}


async def test_what_cannot_be_sent_of_a_batch_is_answered_or_raised_and_harms_no_other() -> None:
    answers = Answers()
    async with open_harness() as harness, Client(address_of(harness)).batch(answers.on_answer) as batch:
        batch.add(0, "top_up", ["u", 5])
        with pytest.raises(OverflowError):
            batch.add(1, "top_up", ["u", 2**64])
        batch.add(2, "top_up", ["u", 5, {"message": "m" * 70_000}])
        batch.add(3, "top_up", ["u", 6])
        batch.flush()
        await batch.answered()
        assert [command[2] for command in harness.gate.commands] == [5, 6]
    assert set(answers.results) == {0, 3}
    assert {number: type(error) for number, error in answers.errors.items()} == {2: FrameTooLarge}


async def test_commands_of_a_batch_keep_their_order() -> None:
    async with open_harness() as harness, Client(address_of(harness)).batch(Answers().on_answer) as batch:
        for number in range(300):
            batch.add(number, "top_up", ["u", number + 1])
            if number % 50 == 0:
                batch.flush()
        batch.flush()
        await batch.answered()
        assert [command[2] for command in harness.gate.commands] == list(range(1, 301))


async def test_what_was_under_way_when_the_connection_broke_is_unknown_and_the_batch_goes_on() -> None:
    answers = Answers()

    async def session(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        while True:
            _, msgid, _, params = await request(unpacker, reader)
            if count == 1 and params == ["break"]:
                return
            writer.write(msgpack.packb([1, msgid, None, params]))

    async with open_liar(session) as address, Client(address).batch(answers.on_answer) as batch:
        batch.send([("do", ["a"]), ("do", ["break"]), ("do", ["b"])])
        await batch.answered()
        assert answers.results == {0: ["a"]}
        assert {number: error.applied for number, error in answers.errors.items()} == {1: "unknown", 2: "unknown"}
        batch.send([("do", ["c"])], number=3)  # not connected at this moment
        await batch.answered()
        assert (type(answers.errors[3]), answers.errors[3].applied) == (Unavailable, "no")
        await batch.connect()
        batch.send([("do", ["d"])], number=4)
        await batch.answered()
        assert answers.results[4] == ["d"]


async def test_nothing_is_answered_from_within_send_and_close_answers_all() -> None:
    answers = Answers()

    async def session(
        unpacker: msgpack.Unpacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
    ) -> None:
        await asyncio.Event().wait()

    async with open_liar(session) as address:
        async with Client(address).batch(answers.on_answer) as batch:
            batch.send([("do", [])] * 3)
            await asyncio.sleep(0.01)
            assert answers.errors == {}
        await batch.answered()
        batch.send([("do", [])], number=3)
        assert sorted(answers.errors) == [0, 1, 2]
        await batch.answered()
        assert sorted(answers.errors) == [0, 1, 2, 3]
