"""Connections, refused ones and calls never take the descriptors that the journal needs."""

from __future__ import annotations

import msgspec
import pytest

from billing.api.connection_limits import ASIDE, calls_max, fit
from billing.api.door import Limits
from billing.config.schema import Cutoff, class_of
from tests.api.outside import open_harness


@pytest.mark.parametrize("descriptors", [128, 300, 1024, 4096, 65_536, 1_048_576])
@pytest.mark.parametrize("asked_for", [1, 10_000, 1_000_000])
def test_what_fits(descriptors: int, asked_for: int) -> None:
    limits = fit(asked_for, descriptors, 20)
    assert 1 <= limits.connections_max <= asked_for
    assert 1 <= limits.refused_max <= 256
    assert limits.connections_max + limits.refused_max + ASIDE + 20 <= max(descriptors * 9 // 10, ASIDE + 22)


def test_enough_descriptors_change_nothing() -> None:
    assert fit(10_000, 65_536, 128) == Limits(connections_max=10_000)


async def test_beyond_those_that_are_told_nobody_is_told() -> None:
    async with open_harness(Limits(connections_max=2, refused_max=1)) as harness:
        first, second = await harness.connect(), await harness.connect()
        assert await first.alive()
        assert await second.alive()
        last_told = await harness.connect()
        assert (await last_told.reply())[2].startswith("TOO_MANY_CONNECTIONS: ")
        untold = await harness.connect()
        assert await untold.is_closed()
        assert len(harness.door.connections) == 3
        assert await first.alive()


def test_each_endpoint_has_descriptors_for_its_calls() -> None:
    plain = Cutoff(concurrency=100)
    of_class = class_of(plain, url="https://other.example/off", restore_url="https://other.example/on")
    assert calls_max(plain) == 200
    assert calls_max(msgspec.structs.replace(plain, restore_url="https://first.example/on")) == 400
    assert calls_max(msgspec.structs.replace(plain, classes={"other": of_class, "same": class_of(plain)})) == 600
