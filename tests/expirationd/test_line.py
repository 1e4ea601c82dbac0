"""A line whose owner gathers what lines have read: nothing that happens to it overtakes an answer that has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from billing.expirationd.answer import AnswerReader
from billing.expirationd.line import Line, Verdict

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Socket(asyncio.Transport):
    """Says what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def write(self, data: Any) -> None:
        self.done.append("write")

    def is_closing(self) -> bool:
        return "close" in self.done or "abort" in self.done

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")


class FakeOwner:
    """The owner of a line, which gathers, or not."""

    def __init__(self, gathering: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.boot_ns: Callable[[], int] = lambda: 1
        self.gathering = gathering
        self.is_taking = False
        self.gathered: list[Line] = []
        self.bodies = 0
        self.lost = 0

    def gathers(self, line: Line) -> bool:
        if self.gathering:
            self.gathered.append(line)
        return self.gathering

    def ask(self, line: Line, request: bytes, timeout_s: float, on_verdict: Callable[[Verdict], None]) -> None:
        raise AssertionError("only endpoints ask")

    def keep(self, line: Line) -> None:
        """It stays."""

    def end(self, line: Line, why: str) -> None:
        line.close()

    def on_answer(self, line: Line, answer: AnswerReader, took_ns: int) -> None:
        if answer.done and answer.reusable:
            line.rest()

    def on_body(self, line: Line) -> None:
        self.bodies += 1

    def on_lost(self, line: Line) -> None:
        self.lost += 1


def asked_line(owner: FakeOwner) -> tuple[Line, Socket, list[Any]]:
    """A line with a request, and what became of it."""
    line, socket, answers = Line(owner), Socket(), list[Any]()
    line.connection_made(socket)
    line.ask(b"GET", 4096, answers.append)
    return line, socket, answers


async def test_what_was_read_is_taken_when_all_have_been_read() -> None:
    owner = FakeOwner(gathering=True)
    line, _, answers = asked_line(owner)
    line.data_received(OK[:-1])
    line.data_received(OK[-1:])
    assert (answers, owner.gathered) == ([], [line]), "it was taken at once, or is gathered twice"
    line.take_gathered()
    assert [answer.status for answer in answers] == [200]
    line.take_gathered()
    assert len(answers) == 1


async def test_what_comes_behind_an_answer_is_no_answer_to_the_next_request() -> None:
    owner = FakeOwner(gathering=True)
    line, _, answers = asked_line(owner)
    line.data_received(OK)
    line.data_received(OK)  # nobody asked for it
    line.take_gathered()
    assert [answer.reusable for answer in answers] == [False]
    assert not line.usable


async def test_a_line_that_is_idle_takes_at_once_what_nobody_asked_for() -> None:
    owner = FakeOwner(gathering=True)
    line, socket, _ = asked_line(owner)
    line.data_received(OK)
    line.take_gathered()
    assert line.usable
    line.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert socket.done == ["write", "abort"]


@pytest.mark.parametrize("end", ["close", "lost"])
async def test_an_answer_that_has_come_counts_whatever_happens_to_the_line(end: str) -> None:
    owner = FakeOwner(gathering=True)
    line, socket, answers = asked_line(owner)
    line.data_received(OK)
    if end == "close":
        line.late = True
        line.close()
        assert (answers, socket.is_closing()) == ([], True), (
            "whoever hears of it would ask anew on what is being closed"
        )
    line.connection_lost(None)
    await asyncio.sleep(0)
    assert [answer.status for answer in answers] == [200]
    assert owner.lost == 1


async def test_where_nothing_is_gathered_an_answer_is_taken_at_once() -> None:
    owner = FakeOwner(gathering=False)
    line, _, answers = asked_line(owner)
    line.data_received(OK)
    assert [answer.status for answer in answers] == [200]
    assert line.usable
