"""The door is tested on the loop it runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.http.harness import HttpHarness, open_harness


@pytest.fixture
async def harness() -> AsyncIterator[HttpHarness]:
    async with open_harness() as opened:
        yield opened
