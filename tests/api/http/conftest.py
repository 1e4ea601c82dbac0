"""The door is tested on the loop it runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.http.shop import Shop, open_shop


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with open_shop() as opened:
        yield opened
