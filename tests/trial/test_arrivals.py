"""Reading a receiver: whose cutoff a call is, and that nothing that was forgotten goes unnoticed."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from billing.trial.arrivals import Arrival, ArrivalReader, ReceiverError, arrival_of, target_pattern
from billing.trial.received_calls import ReceivedCalls
from billing.trial.receiver import Receiver

TAIL = "event_id=a%3A1%3A5&seq=1&exhausted_at_ns=5"


def call(target: str, method: str = "GET") -> dict[str, object]:
    """As `/received` shows it; the receiver's own idea of the user id is not used."""
    return {
        "method": method,
        "target": target,
        "user_id": "",
        "event_id": "a:1:5",
        "seq": 1,
        "exhausted_at_ns": 5,
        "arrived_ns": 9,
    }


@pytest.mark.parametrize(
    ("url", "target", "user_id"),
    [
        ("http://h/cutoff?user_id={user_id}", f"/cutoff?user_id=a%2Fb&{TAIL}", "a/b"),
        ("http://h/cutoff", f"/cutoff?user_id=a&{TAIL}", "a"),
        ("http://h", f"/?user_id=a&{TAIL}", "a"),
        ("http://h/off?zone=3", f"/off?zone=3&user_id=%C3%BC&{TAIL}", "ü"),
        ("http://h/off/{user_id}/now", f"/off/a%40b/now?{TAIL}", "a@b"),
        ("http://h/off/{user_id}?who={user_id}", f"/off/a?who=a&{TAIL}", "a"),
    ],
)
def test_the_user_id_is_where_the_url_has_it(url: str, target: str, user_id: str) -> None:
    assert arrival_of(call(target), target_pattern(url)) == Arrival(user_id, "a:1:5", 1, 5, 9)


@pytest.mark.parametrize(
    "arrival",
    [
        call(f"/restore?user_id=a&{TAIL}"),
        call(f"/cutoff2?user_id=a&{TAIL}"),
        call("/cutoff?user_id=a"),
        call(f"/cutoff?user_id=a&{TAIL}", "POST"),
        {**call(f"/cutoff?user_id=a&{TAIL}"), "exhausted_at_ns": -1},
    ],
)
def test_other_calls_are_no_cutoffs(arrival: dict[str, Any]) -> None:
    assert arrival_of(arrival, target_pattern("http://h/cutoff?user_id={user_id}")) is None


async def send(receiver: Receiver, session: aiohttp.ClientSession, *users: str) -> None:
    for user in users:
        url = f"{receiver.url}/cutoff?user_id={user}&event_id={user}&seq=1&exhausted_at_ns=7"
        async with session.get(url) as answer:
            assert answer.status == 200


async def test_each_call_is_given_out_once() -> None:
    receiver = Receiver()
    await receiver.start()
    try:
        async with aiohttp.ClientSession() as session:
            reader = ArrivalReader(session, f"127.0.0.1:{receiver.port}", f"{receiver.url}/cutoff?user_id={{user_id}}")
            await send(receiver, session, "before")
            await reader.skip()
            await send(receiver, session, "a", "b", "a")
            assert [arrival.user_id for arrival in await reader.fresh()] == ["a", "b", "a"]
            assert await reader.fresh() == []
            await send(receiver, session, "c")
            assert [arrival.user_id for arrival in await reader.fresh()] == ["c"]
    finally:
        await receiver.close()


async def test_what_was_forgotten_is_an_error() -> None:
    receiver = Receiver(received=ReceivedCalls(keep=2))
    await receiver.start()
    try:
        async with aiohttp.ClientSession() as session:
            reader = ArrivalReader(session, f"127.0.0.1:{receiver.port}", f"{receiver.url}/cutoff?user_id={{user_id}}")
            await send(receiver, session, "a", "b", "c")
            with pytest.raises(ReceiverError, match="forgotten 1 call"):
                await reader.fresh()
    finally:
        await receiver.close()
