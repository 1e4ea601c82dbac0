"""A retry that arrives while the first call is unsynced waits for it: ledger and shard together, no daemon."""

from __future__ import annotations

from typing import Any

from billing.ledger import commands as ops
from billing.ledger.errors import Refused
from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.shard import Ready, Shard

BUCKET = 5
NOW_NS = 1_700_000_000 * 10**9


class ReplyRecorder:
    """Keeps the replies that left."""

    def __init__(self) -> None:
        self.replies: list[Any] = []

    def answer(self, token: object, reply: object) -> None:
        self.replies.append(reply)

    def flush(self) -> None:
        pass

    def refuse(self, token: object, reply: object) -> None:
        self.answer(token, reply)


class ShardDriver:
    """One shard whose disk is the test: `write` takes what is to be written, `sync` is its return."""

    def __init__(self) -> None:
        self.shard = Shard(1, BillingMachine(Rules(accrue=False, request_ids_per_bucket=10, restore=False)))
        self.shard.serve(NOW_NS)
        self.shard.adopt(BUCKET, 1)
        self.recorder = ReplyRecorder()
        self.written: list[object] = []
        self.sync(self.write())

    def ask(self, op: int, amount: int, request_id: bytes) -> None:
        command = (op, b"u", amount, 0, 0, b"", request_id, b"", b"", b"")
        self.shard.receive(self.recorder, None, BUCKET, command, NOW_NS)

    def write(self) -> Ready | None:
        ready = self.shard.take_ready()
        if ready is not None and ready.payload:
            self.written.append(ready.payload)
        return ready

    def sync(self, ready: Ready | None) -> None:
        assert ready is not None
        self.shard.synced(ready)
        for caller, token, reply in ready.replies:
            caller.answer(token, reply)


def test_a_retry_of_a_call_that_is_being_synced_is_answered_behind_it() -> None:
    driver = ShardDriver()
    driver.ask(ops.TOP_UP, 5, b"r")
    first = driver.write()
    driver.ask(ops.TOP_UP, 5, b"r")
    assert driver.write() is None, "nothing leaves while the first is unsynced"
    assert driver.recorder.replies == []
    driver.sync(first)
    driver.sync(driver.write())
    original, second = driver.recorder.replies
    assert second == {**original, "replayed": True}
    assert original["balance_nanos"] == 5
    assert len(driver.written) == 2, "the bucket's adoption and the call: the retry wrote nothing"


def test_a_retry_in_the_same_batch_is_answered_with_it() -> None:
    driver = ShardDriver()
    driver.ask(ops.TOP_UP, 5, b"r")
    driver.ask(ops.TOP_UP, 5, b"r")
    driver.sync(driver.write())
    assert [reply["replayed"] for reply in driver.recorder.replies] == [False, True]


def test_so_does_the_retry_of_a_refusal_and_a_conflict() -> None:
    driver = ShardDriver()
    driver.ask(ops.TOP_UP, 5, b"")
    driver.sync(driver.write())
    driver.recorder.replies.clear()
    driver.ask(ops.DEBIT, 9, b"r")
    first = driver.write()
    driver.ask(ops.DEBIT, 9, b"r")
    driver.ask(ops.DEBIT, 8, b"r")
    assert driver.write() is None
    driver.sync(first)
    driver.sync(driver.write())
    refused, again, conflict = driver.recorder.replies
    assert isinstance(refused, Refused)
    assert again.as_map() == refused.as_map() | {"replayed": True}
    assert conflict.name == "REQUEST_ID_CONFLICT"
