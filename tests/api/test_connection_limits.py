"""Connections, refused ones and calls never take the descriptors that the journal needs."""

from __future__ import annotations

import msgspec
import pytest

from billing.api.connection_limits import ASIDE, calls_max, fit
from billing.api.door import Limits
from billing.config.schema import Config, Cutoff, class_of
from billing.expirationd.delivery import cutoff_routes
from billing.worker.outgoing_calls import delivery_settings
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
    plain = Cutoff(concurrency=100, url="https://first.example/off")
    assert calls_max(Cutoff(concurrency=100)) == calls_max(plain) == 200
    assert calls_max(msgspec.structs.replace(plain, restore_url="https://first.example/on")) == 200, "one server"
    with_restores = msgspec.structs.replace(plain, restore_url="https://second.example/on")
    assert calls_max(with_restores) == 400
    classes = {
        "same": class_of(with_restores),
        "closed": class_of(with_restores, restore_url=""),
        "other": class_of(with_restores, url="https://first.example/other"),
        "two": class_of(with_restores, url="https://third.example/off", restore_url="https://fourth.example/on"),
        "one": class_of(with_restores, url="https://third.example/off", restore_url="https://third.example/on"),
    }
    cutoff = msgspec.structs.replace(with_restores, classes=classes)
    assert calls_max(cutoff) == 1200
    routes = cutoff_routes(delivery_settings(Config(cutoff=cutoff)))
    assert len(routes.origins) == 6, "as delivery has them"
