"""Answers of a burst that have been read and are not taken yet, when a timer rings: they count first."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import NamedTuple

from billing.expirationd.endpoint import GATHERED_FROM, Endpoint, Limits
from billing.expirationd.health import OK as DELIVERED
from billing.expirationd.line import Line, Verdict
from shards.system.clock import Clocks
from tests.expirationd.test_line import OK, Socket

MS = 1_000_000
TIMEOUT_S = 5.0


class BurstEndpoint:
    """An endpoint with calls under way on lines of their own, and a clock that is set by hand. Whoever hears of the
    first call makes another one at once, on a line that is idle, as deliveries do.
    """

    def __init__(self, calls: int = GATHERED_FROM + 1) -> None:
        self.now_ns = 10**12
        self.endpoint = Endpoint("http://127.0.0.1:1", Limits(), Clocks(lambda: self.now_ns, lambda: self.now_ns), None)
        self.lines = [self.line() for _ in range(calls)]
        self.verdicts: dict[object, Verdict] = {}
        self.next_on: Line | None = None
        for number, line in enumerate(self.lines):
            self.endpoint.ask(line, b"GET", TIMEOUT_S, partial(self.hear, number))

    def line(self) -> Line:
        line = Line(self.endpoint)
        line.connection_made(Socket())
        return line

    def hear(self, number: int, verdict: Verdict) -> None:
        self.verdicts[number] = verdict
        if number == 0:
            self.next_on = self.endpoint.spare()
            assert self.next_on is not None
            self.endpoint.ask(self.next_on, b"NEXT", TIMEOUT_S, lambda verdict: self.verdicts.update(next=verdict))

    def read(self) -> None:
        """All answers come in one turn."""
        for line in self.lines:
            line.data_received(OK)

    def close(self) -> None:
        for timer in (self.endpoint._deadline, self.endpoint._listening, self.endpoint._briefly):
            if timer is not None:
                timer.cancel()


def done_to(line: Line) -> list[str]:
    assert isinstance(line.transport, Socket)
    return line.transport.done


async def test_a_deadline_that_rings_between_gives_up_no_call_nor_the_next_one_on_its_line() -> None:
    burst = BurstEndpoint()
    burst.now_ns += int(TIMEOUT_S * 1000) * MS + 5 * MS
    burst.read()
    assert not burst.verdicts
    burst.endpoint._on_deadline()
    assert [burst.verdicts[number] for number in range(len(burst.lines))] == [(DELIVERED, "", -1)] * len(burst.lines)
    assert burst.next_on is burst.lines[0]
    assert done_to(burst.lines[0]) == ["write", "write"], "the next call's line was closed"
    assert "next" not in burst.verdicts
    burst.close()


async def test_a_call_that_is_ended_for_others_has_been_answered() -> None:
    burst = BurstEndpoint()
    burst.read()
    burst.endpoint.end(burst.lines[0], "others wait")
    assert burst.verdicts == {0: (DELIVERED, "", -1)}
    assert done_to(burst.lines[0]) == ["write", "write"]
    await asyncio.sleep(0)
    assert len(burst.verdicts) == len(burst.lines), "the others are taken in their turn"
    burst.close()


async def test_what_has_come_is_no_silence() -> None:
    burst = BurstEndpoint(0)
    idle = burst.line()
    burst.endpoint.ask(idle, b"GET", TIMEOUT_S, lambda _: None)
    idle.data_received(OK)
    burst.lines = [burst.line() for _ in range(GATHERED_FROM + 1)]
    for line in burst.lines:
        burst.endpoint.ask(line, b"GET", TIMEOUT_S, lambda _: None)
    assert burst.endpoint._listening is not None
    burst.now_ns += 21 * MS
    burst.read()
    burst.endpoint._listening.cancel()
    burst.endpoint._on_listened()
    assert not idle.transport.is_closing(), "closed as if its silence had held up the others"
    assert burst.endpoint.connections == len(burst.lines) + 1
    burst.close()


async def test_one_that_meets_a_bug_keeps_none_from_being_taken() -> None:
    loop = asyncio.get_running_loop()
    bugs = list[BaseException]()
    loop.set_exception_handler(lambda _, context: bugs.append(context["exception"]))

    class Bug(NamedTuple):
        name: str = "a bug"

        def take_gathered(self) -> None:
            raise RuntimeError(self.name)

    burst = BurstEndpoint()
    burst.read()
    burst.endpoint._gathered.appendleft(Bug())  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        while len(burst.verdicts) < len(burst.lines):
            await asyncio.sleep(0)
    assert [str(error) for error in bugs] == ["a bug"]
    burst.close()
