"""The generators' processes: what a signal does to them."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from billing.trial.loadtest.generators import COMMAND
from shards.system.host import spawn
from shards.system.links import Wire


async def test_an_interruption_is_for_whoever_started_them() -> None:
    child, control = await spawn(list(COMMAND), [])
    messages: asyncio.Queue[Any] = asyncio.Queue()
    _, wire = await asyncio.get_running_loop().create_connection(
        lambda: Wire(
            lambda _, message: messages.put_nowait(message), lambda _: messages.put_nowait(None), lambda _: None
        ),
        sock=control,
    )
    for number in range(2):
        wire.send((number, "check"))
        assert await messages.get() == (number, "failed", "AssertionError: nothing is open yet")
        os.kill(child.pid, signal.SIGINT)
    wire.close()
    assert await child.wait() == 0
