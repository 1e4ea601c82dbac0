"""Sending a plan and getting each answer once, against a server that loses, refuses and doubles."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from billing.api.client import Client
from billing.loadtest.drive import Drive, Skew


class Server(asyncio.Protocol):
    """Answers every request with its number, after what `faults` holds for that number: an error's map, or "close"."""

    def __init__(self, faults: dict[int, list[Any]], seen: list[int]) -> None:
        self._faults = faults
        self._seen = seen
        self._unpacker = msgpack.Unpacker()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        for _, msgid, method, params in self._unpacker:
            if method != "do":
                self._reply(msgid, None, {})
                continue
            number = params[0]
            self._seen.append(number)
            fault = self._faults.get(number, []).pop(0) if self._faults.get(number) else None
            if fault == "close":
                self._transport.abort()
                return
            self._reply(msgid, fault, None if fault else {"at_ns": number, "number": number})

    def _reply(self, msgid: int, error: Any, result: Any) -> None:
        self._transport.write(msgpack.packb([1, msgid, error, result]))


def refusal(name: str, retry: bool) -> dict[str, Any]:
    return {"name": name, "code": 1, "message": "no", "retry": retry, "applied": "no"}


async def drive(faults: dict[int, list[Any]], count: int, due_ns: list[int] | None = None) -> tuple[Drive, list, list]:
    seen: list[int] = []
    answers: list[tuple[int, int]] = []
    server = await asyncio.get_running_loop().create_server(lambda: Server(faults, seen), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with Client(f"127.0.0.1:{port}") as client:
            run = Drive(
                client,
                count,
                lambda index: ("do", [index]),
                lambda index, reply: answers.append((index, reply["number"])),
            )
            await run.run(due_ns, lambda _: None)
    finally:
        server.close()
    return run, answers, seen


async def test_every_command_is_answered_once_and_sent_in_order():
    run, answers, seen = await drive({}, 1000)
    assert seen == list(range(1000))
    assert answers == [(index, index) for index in range(1000)]
    assert (run.answered, run.retries, run.stale, run.failed) == (1000, 0, 0, [])


async def test_nothing_goes_before_its_moment():
    due_ns = [0, 1_000_000, 60_000_000]
    run, _, seen = await drive({}, 3, due_ns)
    assert seen == [0, 1, 2]
    assert run.behind_ns >= 0


async def test_what_may_pass_is_tried_again():
    faults = {
        1: [refusal("UNAVAILABLE", True), refusal("BUCKET_MOVING", True)],
        2: [refusal("UNKNOWN_ACCOUNT", False)],
        3: ["close"],
    }
    run, answers, seen = await drive(faults, 5)
    assert sorted(answers) == [(index, index) for index in range(5)]
    assert seen.count(1) == 3
    assert seen.count(2) >= 2
    assert run.retries >= 4
    assert run.failed == []


async def test_what_is_refused_for_good_is_kept():
    run, answers, seen = await drive({1: [refusal("INVALID_RATE", False)]}, 3)
    assert sorted(answers) == [(0, 0), (2, 2)]
    assert seen.count(1) == 1
    assert [(index, error.name) for index, error in run.failed] == [(1, "INVALID_RATE")]


async def test_a_late_retry_may_be_stale_and_a_first_try_may_not():
    faults = {
        0: [refusal("UNAVAILABLE", True), refusal("STALE_RATE", False)],
        1: [refusal("STALE_RATE", False)],
    }
    run, answers, _ = await drive(faults, 2)
    assert (answers, run.stale) == ([], 1)
    assert [index for index, _ in run.failed] == [1]


@pytest.mark.parametrize(
    ("samples", "shift_ns"),
    [
        ([(1000, 900, 1100)], 0),  # stamped in between: the two may be equal
        ([(1000, 500, 600)], 400),  # stamped 400 after the answer came: ahead by at least so much
        ([(1000, 1500, 1600)], -500),  # stamped 500 before it was sent
        ([(1000, 500, 900), (1000, 900, 1100)], 100),  # the one that tells most counts
        ([(1000, 1005, 1900), (1000, 900, 1100)], 0),  # an old stamp on a slow answer does not
    ],
)
def test_what_replies_tell_of_the_clocks(samples, shift_ns):
    skew = Skew()
    for at_ns, sent_ns, received_ns in samples:
        skew.learn(at_ns, sent_ns, received_ns)
    assert skew.shift_ns == shift_ns
