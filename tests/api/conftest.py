"""The doors are tested on the loop they run on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from tests.api.outside import DoorHarness, open_harness


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def harness() -> AsyncIterator[DoorHarness]:
    async with open_harness() as opened:
        yield opened
