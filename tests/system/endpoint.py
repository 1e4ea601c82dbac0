"""The endpoint that a daemon calls, in the process of the test, and waiting until it was called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from billing.trial.faults import Fault, Misbehaviour
from billing.trial.receiver import Receiver


@asynccontextmanager
async def receiving(port: int = 0, fault: Fault | None = None) -> AsyncIterator[Receiver]:
    """A cutoff endpoint in this process."""
    receiver = Receiver("127.0.0.1", port, misbehaviour=Misbehaviour(fault))
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.close()


async def until(condition: Callable[[], object], wait_s: float = 60.0) -> None:
    """Returns when the condition holds; fails where it does not come to hold."""
    for _ in range(int(wait_s / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to hold")
