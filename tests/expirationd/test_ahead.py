"""The connection of a cutoff is open before its instant, also after a start, and never in anybody's way."""

from __future__ import annotations

import asyncio

import pytest

from billing.expirationd.endpoint import FEW, Endpoint
from billing.trial.faults import Fault
from billing.trial.receiver import Receiver
from tests.expirationd.fake_obligations import FakeObligations, receiving, sending, settings


async def opened(obligations: FakeObligations, endpoint: Endpoint, receiver: Receiver) -> None:
    """Waits until a connection was opened ahead, on both sides."""

    def is_open() -> bool:
        endpoint.open_ahead()  # again, where it was closed before anybody looked: it is kept for a moment only
        return endpoint._ahead is not None and len(receiver.connections) == 1

    await obligations.until(is_open)


async def test_the_first_call_after_a_start_is_written_on_a_connection_that_was_open() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url)) as delivery:
        delivery.expect(delivery.now_ns())
        await obligations.until(lambda: delivery.endpoints[0]._ahead is not None)
        assert receiver.calls == []
        obligations.exhaust(delivery, b"u")
        await obligations.until(obligations.nothing_owed)
        assert (receiver.connects, delivery.endpoints[0].connects) == (1, 1)


async def test_what_nobody_used_is_closed() -> None:
    obligations = FakeObligations()
    async with receiving() as receiver, sending(obligations, settings(receiver.url)) as delivery:
        endpoint = delivery.endpoints[0]
        await opened(obligations, endpoint, receiver)
        await obligations.until(lambda: endpoint.connections == 0 and not receiver.connections)


async def test_a_server_that_serves_one_at_a_time_answers_the_call_of_another_process_behind_it() -> None:
    obligations = FakeObligations()
    one_at_a_time = receiving(fault=Fault("one-at-a-time"))
    async with (
        one_at_a_time as receiver,
        sending(obligations, settings(receiver.url)) as first,
        sending(obligations, settings(receiver.url)) as second,
    ):
        await opened(obligations, first.endpoints[0], receiver)
        obligations.exhaust(second, b"u")
        await obligations.until(obligations.nothing_owed)
        await opened(obligations, first.endpoints[0], receiver)
        obligations.exhaust(first, b"v")
        await obligations.until(obligations.nothing_owed)
        assert obligations.errors() == []


async def test_a_call_that_comes_first_is_not_left_behind_a_silent_connection() -> None:
    obligations = FakeObligations()
    async with (
        receiving(fault=Fault("one-at-a-time")) as receiver,
        sending(obligations, settings(receiver.url)) as delivery,
    ):
        endpoint = delivery.endpoints[0]
        endpoint.open_ahead()
        obligations.exhaust(delivery, b"u")  # in the same turn of the loop: the connection is not there yet
        await obligations.until(obligations.nothing_owed)
        await obligations.until(lambda: endpoint._opening is None)
        assert endpoint._ahead is None
        assert obligations.errors() == []


@pytest.mark.parametrize("why", ["few", "no warm ones", "an idle one", "one already", "closed"])
async def test_none_is_opened_where_it_would_harm_or_is_not_needed(why: str) -> None:
    obligations = FakeObligations()
    async with (
        receiving() as receiver,
        sending(obligations, settings(receiver.url, warm=0 if "warm" in why else 1)) as delivery,
    ):
        endpoint = delivery.endpoints[0]
        match why:
            case "few":
                endpoint.serves = FEW
            case "an idle one":
                obligations.exhaust(delivery, b"u")
                await obligations.until(obligations.nothing_owed)
                if not endpoint._proved:
                    pytest.skip("the machine is so busy that the idle one is closed already")
            case "one already":
                await opened(obligations, endpoint, receiver)
            case "closed":
                await endpoint.close()
        endpoint.open_ahead()
        assert endpoint._opening is None


async def test_an_endpoint_that_cannot_be_reached_costs_nothing() -> None:
    obligations = FakeObligations()
    async with receiving(fault=Fault("refuse")) as receiver, sending(obligations, settings(receiver.url)) as delivery:
        endpoint = delivery.endpoints[0]
        endpoint.open_ahead()
        opening = endpoint._opening
        assert opening is not None
        await asyncio.wait([opening])
        assert (endpoint.connections, endpoint._opening) == (0, None)
        assert obligations.reports == []
