"""The seam of the other doors: each call has one reply, after durability, whoever made it and in whatever form."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgpack
import pytest
from msgspec import Raw

from billing.api.auth import Grant, Guard
from billing.api.calling import Session, packed, plain, split_response
from billing.api.door import Door, Limits
from billing.api.methods import LISTING_WEIGHT
from billing.api.wire import ERRORS_AS_MAP, encode, encode_reply
from billing.audit.reading import TrailReader
from billing.audit.recorder import Recorder
from billing.ledger.errors import Refused
from shards.replies import Moving, Unavailable
from shards.system.disk import RealDisk
from tests.api.outside import DoorHarness, open_harness

ADMIN = Grant("operator", frozenset({"admin"}))
READER = Grant("reader", frozenset({"read"}))


class RecordingClient:
    """A client of no protocol: it writes down what its session is answered."""

    def __init__(self, harness: DoorHarness, grant: Grant | None = ADMIN) -> None:
        self.replies: list[tuple[int, object]] = []
        self.flushes = 0
        self.session = Session(harness.door, lambda token, reply: self.replies.append((token, reply)), self._flushed)
        self.session.grant = grant

    def _flushed(self) -> None:
        self.flushes += 1

    def ask(self, name: str, *params: Any) -> Any:
        """The reply to a call that is answered at once."""
        self.session.call(99, name, list(params))
        token, reply = self.replies.pop()
        assert token == 99
        return reply


async def test_a_call_goes_to_the_owner_and_its_reply_comes_once_durable(harness: DoorHarness) -> None:
    client = RecordingClient(harness)
    harness.gate.holds_back = True
    client.session.arrived()
    client.session.call(1, "top_up", ["ann", "5", {"request_id": "r1"}])
    client.session.call(2, b"get_account", ["ann"])
    client.session.call(3, "shards_info", None)
    assert [kind for kind, _ in harness.gate.asked] == ["submit", "read", "operate"]
    assert harness.gate.commands[0][1:3] == (b"ann", 5 * 10**9)
    assert (client.session.in_flight, harness.door.in_flight) == (3, 3)
    caller = harness.gate.waiting[0][0]
    caller.answer(1, {"user_id": "ann"})
    assert client.replies == [], "a staged reply left before it was durable"
    caller.flush()
    assert client.replies == [(1, {"user_id": "ann"})]
    assert (client.flushes, client.session.in_flight) == (1, 2)


async def test_a_client_that_asks_too_often_is_refused_until_the_second_is_over() -> None:
    async with open_harness(Limits(requests_per_s_max=5)) as harness:
        client = RecordingClient(harness)
        for number in range(8):
            client.session.call(number, "top_up" if number % 2 else "get_account", ["ann", "5"][: number % 2 + 1])
        refused = {token: reply.name for token, reply in client.replies if isinstance(reply, Refused)}
        assert refused == dict.fromkeys((5, 6, 7), "BUSY")
        assert client.ask("ping") == "pong"
        assert len(harness.gate.asked) == 5
        harness.clock.pass_s(1)
        client.session.call(8, "top_up", ["ann", "5"])
        assert len(harness.gate.asked) == 6


async def test_a_listing_counts_by_its_weight_until_it_is_answered(harness: DoorHarness) -> None:
    client = RecordingClient(harness)
    client.session.call(1, "history", ["ann"])
    client.session.call(2, "get_account", ["ann"])
    assert harness.door.in_flight == LISTING_WEIGHT + 1
    await harness.until(lambda: len(client.replies) == 2)
    assert (harness.door.in_flight, client.session.in_flight) == (0, 0)


async def test_what_cannot_be_called_is_refused_at_once(harness: DoorHarness) -> None:
    client = RecordingClient(harness, READER)
    assert client.ask("top_up", "ann", 5).name == "FORBIDDEN"
    assert client.ask("no_such", "ann").name == "UNKNOWN_METHOD"
    assert client.ask("get_account").name == "INVALID_PARAMS"
    assert client.ask("get_account", "").name == "INVALID_USER_ID"
    assert client.ask("ping") == "pong"
    assert client.ask("bucket_id", "ann") == harness.gate.bucket_of(b"ann")
    assert harness.gate.asked == []
    assert harness.door.errors["FORBIDDEN"] == 1


async def test_nothing_happens_before_the_sign_in() -> None:
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    async with open_harness(guard=Guard(f"metering:charge:{digest}\n")) as harness:
        client = RecordingClient(harness, None)
        for name in ("top_up", "get_account", "methods", "no_such"):
            assert client.ask(name, "ann", 5).name == "UNAUTHENTICATED"
        assert client.ask("hello", {"token": "wrong"}).name == "UNAUTHENTICATED"
        assert client.session.grant is None
        assert client.ask("hello", {"token": "test"}) == {"name": "metering", "roles": ["charge"], "errors": "map"}
        assert client.ask("top_up", "ann", 5).name == "FORBIDDEN"
        client.session.call(1, "debit", ["ann", 5])
        assert harness.gate.commands == [(4, b"ann", 5, 0, 0, b"", b"", b"", b"", b"metering")]


async def test_a_token_that_is_not_known_is_on_record(harness: DoorHarness, data_dir: Path) -> None:
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    recorder = Recorder(RealDisk(), str(data_dir), "shard-1", lambda: 7)
    harness.door = Door(harness.gate, Guard(f"metering:charge:{digest}\n"), lambda: 1, dict, audit=recorder)
    client = RecordingClient(harness)
    client.session.origin = "192.0.2.7"
    assert client.ask("hello", {"token": "wrong"}).name == "UNAUTHENTICATED"
    client.ask("hello", {"token": "test"})
    await recorder.close()
    (row,) = TrailReader(RealDisk(), f"{data_dir}/audit").page("", 9)
    assert (row["act"], row["details"]) == ("sign_in_refused", {"from": "192.0.2.7"})


async def test_a_record_has_what_was_asked_for_and_no_option_that_nobody_gave(
    harness: DoorHarness, data_dir: Path
) -> None:
    recorder = Recorder(RealDisk(), str(data_dir), "shard-1", lambda: 7)
    harness.door = Door(harness.gate, Guard(None), lambda: 1, dict, audit=recorder)
    client = RecordingClient(harness)
    for method, params in (("rebalance", []), ("move_bucket", [5, 2]), ("retry_cutoff", ["ann"])):
        client.session.call(1, method, params)
    await recorder.close()
    rows = TrailReader(RealDisk(), f"{data_dir}/audit").page("", 9)
    assert [(row["act"], row["details"]) for row in rows] == [
        ("rebalance", {}),
        ("move_bucket", {"bucket_id": 5, "shard_id": 2}),
        ("retry_cutoff", {"user_id": "ann"}),
    ]


async def test_a_full_worker_refuses_commands_and_questions() -> None:
    async with open_harness(Limits(in_flight_total_max=2)) as harness:
        client = RecordingClient(harness)
        harness.gate.holds_back = True
        client.session.call(1, "top_up", ["ann", 5])
        client.session.call(2, "top_up", ["ann", 5])
        for name in ("top_up", "debit"):
            refusal = client.ask(name, "ann", 5)
            assert (refusal.name, refusal.retry, refusal.applied) == ("BUSY", True, "no")
        harness.gate.release()
        client.replies.clear()
        client.session.call(3, "top_up", ["ann", 5])
        assert client.replies == []


async def test_what_shards_say_is_a_refusal_under_its_name(harness: DoorHarness) -> None:
    client = RecordingClient(harness)
    harness.gate.replies["get_account"] = Unavailable(2, "its worker went away", "unknown")
    harness.gate.replies["explain"] = Moving(7)
    client.session.call(1, "get_account", ["ann"])
    client.session.call(2, "explain", ["ann"])
    await harness.until(lambda: len(client.replies) == 2)
    away, moving = (reply for _, reply in client.replies)
    assert isinstance(away, Refused)
    assert isinstance(moving, Refused)
    assert (away.name, away.applied, away.details) == ("UNAVAILABLE", "unknown", {"shard_id": 2})
    assert (moving.name, moving.details) == ("BUCKET_MOVING", {"bucket_id": 7})
    assert harness.door.errors == {"UNAVAILABLE": 1, "BUCKET_MOVING": 1}


@pytest.mark.parametrize("msgid", [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1])
@pytest.mark.parametrize("result", [{"balance_nanos": -5}, [1, None], "pong", 7, None])
def test_the_response_of_another_worker_is_split_without_decoding(msgid: int, result: object) -> None:
    token, reply = split_response(encode_reply(msgid, ERRORS_AS_MAP, result))
    assert token == msgid
    assert plain(reply) == result
    assert msgpack.unpackb(packed(reply)) == result


@pytest.mark.parametrize("msgid", [0, 200, 2**32 - 1])
def test_the_refusal_of_another_worker_is_one_here(msgid: int) -> None:
    refused = Refused("INSUFFICIENT_FUNDS", "there is less", {"shortfall_nanos": 7})
    token, reply = split_response(encode_reply(msgid, ERRORS_AS_MAP, refused))
    assert token == msgid
    assert isinstance(reply, Refused)
    assert reply.as_map() == refused.as_map()


async def test_replies_of_other_workers_count_and_leave_as_they_are(harness: DoorHarness) -> None:
    client = RecordingClient(harness)
    harness.gate.holds_back = True
    client.session.call(5, "top_up", ["ann", 5])
    session = harness.gate.waiting.pop()[0]
    session.relay(encode_reply(5, session.mode, {"user_id": "ann"}))
    assert client.flushes == 0
    session.relay_flush()
    assert [(token, plain(reply)) for token, reply in client.replies] == [(5, {"user_id": "ann"})]
    assert (client.flushes, harness.door.in_flight) == (1, 0)


def test_a_result_has_both_forms() -> None:
    account = {"user_id": "ann", "balance_nanos": 5}
    raw = Raw(encode(account))
    assert plain(raw) == plain(account) == account
    assert bytes(packed(raw)) == bytes(packed(account)) == encode(account)


async def test_a_bug_behind_the_gate_ends_the_worker(harness: DoorHarness) -> None:
    client = RecordingClient(harness)
    harness.gate.broken = AssertionError("a broken invariant")
    for name in ("top_up", "accounts"):
        with pytest.raises(AssertionError):
            client.session.call(1, name, ["ann", 5] if name == "top_up" else [])
    assert harness.bugs == [harness.gate.broken] * 2
    await asyncio.sleep(0)
