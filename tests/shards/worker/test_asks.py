"""What is asked of the supervisor: answered in any order, and refused where the supervisor says nothing any more."""

from __future__ import annotations

import asyncio
from typing import Any

from shards.control import Answer, Ask
from shards.worker.asks import ALIVE, SILENT_LOOKS, Asks

LOOK_S = 0.01
SILENT = "the main process of the daemon has not answered for 0.08 s"


class Supervisor:
    """Gets what is asked, and answers looks as long as it is `alive`."""

    def __init__(self) -> None:
        self.alive = True
        self.asked: list[Ask] = []
        self.looks = 0
        self.replies: list[tuple[str, int, Any]] = []
        self.asks = Asks(self._send, lambda *reply: self.replies.append(reply), LOOK_S)

    def _send(self, message: Ask) -> None:
        if message.operation == ALIVE:
            self.looks += 1
            if self.alive:
                asyncio.get_running_loop().call_soon(self.asks.on_answer, Answer(message.number, {}))
        else:
            self.asked.append(message)

    async def until_looks(self, count: int) -> None:
        while self.looks < count:
            await asyncio.sleep(LOOK_S)


async def test_an_answer_goes_to_whoever_asked_and_nobody_is_looked_at_afterwards() -> None:
    supervisor = Supervisor()
    supervisor.asks.ask("one", 7, ("shards_info",))
    supervisor.asks.ask("other", 8, ("rebalance", 0))
    first, second = supervisor.asked
    supervisor.asks.on_answer(Answer(second.number, {"moves": 1}))
    supervisor.asks.on_answer(Answer(first.number, []))
    assert supervisor.replies == [("other", 8, {"moves": 1}), ("one", 7, [])]
    await asyncio.sleep(5 * LOOK_S)
    assert not supervisor.looks


async def test_a_question_that_takes_long_is_waited_for_as_long_as_the_supervisor_is_there() -> None:
    supervisor = Supervisor()
    supervisor.asks.ask("one", 7, ("move_bucket", 3, 2))
    await supervisor.until_looks(4 * SILENT_LOOKS)
    assert not supervisor.replies
    supervisor.asks.on_answer(Answer(supervisor.asked[0].number, {"generation": 2}))
    assert supervisor.replies == [("one", 7, {"generation": 2})]
    supervisor.asks.close()


async def test_whoever_waits_for_a_silent_supervisor_is_told_so_and_an_answer_that_comes_later_is_nobodys() -> None:
    supervisor = Supervisor()
    supervisor.alive = False
    supervisor.asks.ask("one", 7, ("shards_info",))
    supervisor.asks.ask("other", 8, ("move_bucket", 3, 2))
    await supervisor.until_looks(SILENT_LOOKS)
    while not supervisor.replies:
        await asyncio.sleep(LOOK_S)
    refusal = {"refused": "UNAVAILABLE", "message": SILENT}
    assert supervisor.replies == [("one", 7, refusal), ("other", 8, {**refusal, "applied": "unknown"})]
    supervisor.asks.on_answer(Answer(supervisor.asked[1].number, {"generation": 2}))
    assert len(supervisor.replies) == 2
    supervisor.alive = True
    supervisor.asks.ask("one", 9, ("shards_info",))
    supervisor.asks.on_answer(Answer(supervisor.asked[2].number, []))
    assert supervisor.replies[2:] == [("one", 9, [])]
    supervisor.asks.close()
