"""What waits at a start, with the real ledger and delivery: told of when durable, released, superseded meanwhile.

The journal is played by hand: what the ledger names is durable as soon as `Start.synced` hands on its notices, as the
application does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from billing.expirationd.delivery import Owed
from billing.expirationd.routes import CUTOFF, RESTORE
from billing.ledger import commands as ops
from billing.ledger.ledger import Rules
from billing.ledger.posting import SUPERSEDED
from billing.trial.faults import Fault
from billing.trial.receiver import Receiver
from billing.worker.dependencies import REAL
from billing.worker.machine import BillingMachine
from billing.worker.outgoing_calls import BucketCalls, OutgoingCalls
from billing.worker.startup_hold import UNDECIDED, StartupHold
from shards.machine import Command
from shards.restored import FIRST_SERVED, RESTORED
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk
from tests.expirationd.fake_obligations import FakeObligations, receiving, settings

BUCKET = 1
COIN = 10**9
HOUR = 3600
REPORTS = {
    ("cutoff", "started"): ops.CUTOFF_STARTED,
    ("cutoff", "delivered"): ops.CUTOFF_DELIVERED,
    ("cutoff", "failed"): ops.CUTOFF_FAILED,
    ("restore", "started"): ops.RESTORE_STARTED,
    ("restore", "delivered"): ops.RESTORE_DELIVERED,
    ("restore", "failed"): ops.RESTORE_FAILED,
}


class StartingWorker(FakeObligations):
    """A worker that comes up: its ledger, its delivery to a receiver, and what it holds back."""

    def __init__(self, directory: Path, receiver: Receiver, hold_above: int) -> None:
        super().__init__()
        self.receiver = receiver
        self.machine = BillingMachine(Rules(accrue=False, request_ids_per_bucket=10, restore=True))
        self.machine.create(BUCKET)
        self.now_ns = MACHINE_CLOCKS.wall_ns() - HOUR * COIN  # an hour ago the accounts were made
        self.startup_hold = StartupHold(RealDisk(), str(directory), hold_above)
        chosen = settings(receiver.url + "/off", restore_url=receiver.url + "/on")
        self.delivery = self.delivery_of(chosen)

    def owed(self, bucket_id: int, user: bytes) -> Owed | None:
        call = self.machine.ledger.owed(bucket_id, user)
        if call is None:
            return None
        return call.kind, call.event_id, call.seq, call.exhausted_at_ns, call.attempts, call.due_ns, ""

    def report(self, kind: str, bucket_id: int, user: bytes, seq: int, outcome: str, error: str, now_ns: int) -> None:
        super().report(kind, bucket_id, user, seq, outcome, error, now_ns)
        self.command(REPORTS[kind, outcome], user, seq)

    def command(self, op: int, user: bytes, a: int = 0, b: int = 0, c: int = 0) -> None:
        command = (op, user, a, b, c, b"", b"", b"", b"", b"")
        self.machine.apply(BUCKET, command, max(self.now_ns, MACHINE_CLOCKS.wall_ns() - HOUR * COIN))

    def runs_dry(self, user: bytes) -> None:
        """An hour ago it had a coin for a second."""
        self.command(ops.TOP_UP, user, COIN)
        self.command(ops.SET_RATE, user, HOUR * COIN, -1, -1)

    def serve(self) -> None:
        """Recovery is over: what the journal had is durable."""
        self.machine.notices.clear()
        self.machine.records.clear()
        self.now_ns = MACHINE_CLOCKS.wall_ns()
        self.startup_hold.take_up(self.machine, self.delivery, self.now_ns)
        self.delivery.start()
        self.machine.start(0)
        self.machine.arm(BUCKET)

    def now(self, op: int, user: bytes, a: int = 0) -> None:
        self.now_ns = MACHINE_CLOCKS.wall_ns()
        self.machine.apply(BUCKET, (op, user, a, 0, 0, b"", b"", b"", b"", b""), self.now_ns)

    def time_passes(self) -> None:
        """The ledger is ahead of the journal from here until `synced`."""
        self.machine.due(MACHINE_CLOCKS.wall_ns(), 1000)

    def synced(self) -> None:
        notices = self.machine.notices[:]
        self.machine.notices.clear()
        for kind, _, bucket_id, user_id, seq in notices:
            holds = self.startup_hold.holds_back
            if kind == SUPERSEDED:
                self.delivery.outbox.superseded(bucket_id, user_id, seq)
            elif kind == RESTORE or (
                kind == CUTOFF and not holds(self.machine, self.delivery, bucket_id, user_id, seq)
            ):
                self.delivery.notify(bucket_id, user_id, kind, seq=seq)

    def called(self) -> list[tuple[str, str, int]]:
        return [(call.path, call.user_id, call.seq) for call in self.receiver.calls]

    def ran_out_elsewhere(self, user: bytes) -> None:
        """It runs out now; another shard, which owns the bucket, hears of it."""
        self.now(ops.TOP_UP, user, COIN)
        self.now(ops.DEBIT, user, COIN)
        self.machine.notices.clear()

    async def free(self, user: bytes) -> None:
        """Somebody who is not held runs out and is told; all that could go before has gone by then."""
        self.now(ops.TOP_UP, user, COIN)
        self.now(ops.DEBIT, user, COIN)
        self.synced()
        await self.until(lambda: ("/off", user.decode(), 1) in self.called())


@pytest.fixture(params=["restored", "hold_above"])
def why(request: pytest.FixtureRequest, tmp_path: Path) -> int:
    """Held because of a backup, or because of their number: `hold_above`."""
    if request.param == "restored":
        (tmp_path / RESTORED).touch()
        return -1
    return 0


@asynccontextmanager
async def starting(directory: Path, hold_above: int) -> AsyncIterator[StartingWorker]:
    async with receiving() as receiver:
        start = StartingWorker(directory, receiver, hold_above)
        try:
            yield start
        finally:
            await start.delivery.close()
        assert start.broken == []


async def test_the_log_says_whether_the_restore_or_the_number_is_why_they_wait(
    tmp_path: Path, why: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with starting(tmp_path, why) as start:
        start.runs_dry(b"u")
        start.serve()
        (message,) = [record.getMessage() for record in caplog.records if record.name == "billing.worker.startup_hold"]
        after_restore = "restored from a backup: overdue cutoffs that wait for a release: 1"
        by_number = "overdue cutoffs that wait: 1; look at them, then billing cutoffs release"
        assert message == (after_restore if why < 0 else by_number)


async def test_what_becomes_durable_later_is_held_released_and_sent_once(tmp_path: Path, why: int) -> None:
    async with starting(tmp_path, why) as start:
        start.runs_dry(b"u")
        start.serve()
        assert start.delivery.outbox.held == 0, "nothing of it is owed yet: its instant is found by the wheel"
        start.time_passes()
        await start.free(b"free")
        assert start.owed(BUCKET, b"u") is not None
        assert start.delivery.outbox.held == 1
        assert start.startup_hold.release(start.machine, start.delivery) == 1
        await start.until(lambda: ("/off", "u", 1) in start.called())
        assert start.called() == [("/off", "free", 1), ("/off", "u", 1)]
        await start.until(lambda: len(start.delivery.outbox) == 0)
        assert not (tmp_path / RESTORED).exists()


async def test_a_release_between_the_instant_and_its_being_durable_counts_it_but_sends_it_only_then(
    tmp_path: Path, why: int
) -> None:
    async with starting(tmp_path, why) as start:
        start.runs_dry(b"u")
        start.serve()
        start.time_passes()
        assert start.startup_hold.release(start.machine, start.delivery) == 1
        assert len(start.delivery.outbox) == start.delivery.outbox.held, "nothing may go before it is durable"
        start.synced()
        await start.until(lambda: start.called() == [("/off", "u", 1)])


async def test_a_held_cutoff_that_is_superseded_is_never_sent_and_the_next_one_is_not_held(
    tmp_path: Path, why: int
) -> None:
    async with starting(tmp_path, why) as start:
        for user in (b"saved", b"again", b"between"):
            start.runs_dry(user)
        start.serve()
        start.time_passes()
        start.now(ops.TOP_UP, b"between", 1000 * HOUR * COIN)  # before its cutoff was told
        start.synced()
        assert start.delivery.outbox.held == 2
        start.now(ops.TOP_UP, b"saved", 1000 * HOUR * COIN)
        start.now(ops.TOP_UP, b"again", 1)
        start.time_passes()  # the nano is spent at once
        start.synced()
        await start.until(lambda: ("/off", "again", 2) in start.called())
        assert start.called() == [("/off", "again", 2)]
        assert start.delivery.outbox.held == 0, "nobody waits for a release any more"
        start.startup_hold.release(start.machine, start.delivery)
        await start.until(lambda: len(start.delivery.outbox) == 0)
        assert start.called() == [("/off", "again", 2)]


async def test_what_the_ledger_names_beyond_the_durable_waits_although_a_release_let_an_older_one_go(
    tmp_path: Path, why: int
) -> None:
    async with starting(tmp_path, why) as start:
        start.runs_dry(b"u")
        start.serve()
        start.time_passes()
        start.synced()
        assert start.delivery.outbox.held == 1
        start.now(ops.TOP_UP, b"u", 1)
        start.time_passes()  # dry again: seq 2, none of it durable
        start.startup_hold.release(start.machine, start.delivery)
        await start.until(lambda: len(start.delivery.outbox) == 0)
        assert start.called() == []
        start.synced()
        await start.until(lambda: start.called() == [("/off", "u", 2)])


async def test_a_restore_owed_from_before_does_not_carry_the_overdue_cutoff_along(tmp_path: Path, why: int) -> None:
    async with starting(tmp_path, why) as start:
        start.command(ops.TOP_UP, b"u", COIN)
        start.command(ops.DEBIT, b"u", COIN)
        start.command(ops.CUTOFF_STARTED, b"u", 1)
        start.command(ops.TOP_UP, b"u", COIN)  # owes a restore, and
        start.command(ops.SET_RATE, b"u", HOUR * COIN, -1, -1)  # ran out a second later
        start.serve()
        start.time_passes()
        await start.free(b"free")
        await start.until(lambda: start.delivery.outbox.held == 1)
        assert start.called() == [("/off", "free", 1)]
        start.startup_hold.release(start.machine, start.delivery)
        await start.until(lambda: ("/off", "u", 2) in start.called())
        assert ("/on", "u", 1) not in start.called()


async def test_after_a_restore_whoever_ran_out_since_it_first_came_up_is_called_at_every_start(tmp_path: Path) -> None:
    mark = tmp_path / RESTORED
    mark.write_text(json.dumps({"taken_at_ns": 1, FIRST_SERVED: MACHINE_CLOCKS.wall_ns() - 2 * HOUR * COIN}))
    async with starting(tmp_path, -1) as start:
        start.runs_dry(b"since")
        start.serve()
        assert start.startup_hold.overdue == 0
        start.time_passes()
        start.synced()
        await start.until(lambda: start.called() == [("/off", "since", 1)])
    assert mark.exists(), "what was overdue at first may still wait, at another shard"


@pytest.mark.parametrize("hold_above", [-1, 0])
async def test_the_mark_of_a_restore_says_from_the_first_start_on_when_it_first_came_up(
    tmp_path: Path, hold_above: int
) -> None:
    mark = tmp_path / RESTORED
    mark.write_text(json.dumps({"taken_at_ns": 1}))
    for _ in range(2):
        async with starting(tmp_path, hold_above) as start:
            start.runs_dry(b"u")
            first_ns = json.loads(mark.read_text()).get(FIRST_SERVED)
            start.serve()
            assert start.startup_hold.overdue == 1
            mark_content = json.loads(mark.read_text())
            assert mark_content == {"taken_at_ns": 1, FIRST_SERVED: first_ns or start.now_ns}
            start.time_passes()
            start.synced()
            await start.free(b"later")
            assert start.called() == [("/off", "later", 1)]


async def test_a_restore_of_an_older_cutoff_than_the_newest_is_sent_once_the_call_before_it_has_ended(
    tmp_path: Path,
) -> None:
    """The newest cutoff was heard of and superseded, both while the call for the older one was under way."""
    async with starting(tmp_path, -1) as start:
        start.serve()
        start.receiver.fault = Fault("slow", 500)
        start.now(ops.TOP_UP, b"u", COIN)
        start.now(ops.DEBIT, b"u", COIN)
        start.synced()
        await start.until(lambda: start.called() == [("/off", "u", 1)])
        for _ in range(2):
            start.now(ops.TOP_UP, b"u", COIN)
            start.synced()
            start.now(ops.DEBIT, b"u", COIN)
            start.synced()
        start.now(ops.TOP_UP, b"u", COIN)
        start.synced()
        start.receiver.fault = None
        await start.until(lambda: ("/on", "u", 1) in start.called())
        await start.until(lambda: len(start.delivery.outbox) == 0)
        assert start.called() == [("/off", "u", 1), ("/on", "u", 1)]


class Shards:
    """The answers of all shards to the question up to which instant they hold cutoffs back: each is taken once, the
    last one for ever.
    """

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked = 0

    def operate(self, caller: Any, token: None, operation: Command) -> None:
        assert operation == ("held_until",)
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, list):
            caller.answer(token, answer)
        else:
            caller.refuse(token, answer)


def arrives(start: StartingWorker, shards: Shards) -> None:
    """The bucket arrives now, with all that it owes."""

    def hand_over(bucket_id: int = BUCKET) -> None:
        start.startup_hold.hand_over(list(start.machine.owed_in(bucket_id)), start.delivery)

    start.now_ns = MACHINE_CLOCKS.wall_ns()
    start.startup_hold.arrive(BUCKET, start.now_ns, shards.operate, hand_over)
    hand_over()


async def test_a_bucket_that_arrives_takes_its_hold_along_and_what_ran_out_since_is_called(tmp_path: Path) -> None:
    async with starting(tmp_path, 0) as start:
        start.serve()  # nothing is overdue here
        start.ran_out_elsewhere(b"held")
        start_ns = MACHINE_CLOCKS.wall_ns()  # at which the former shard of the bucket came up, and held it back
        start.ran_out_elsewhere(b"since")
        shards = Shards("a shard is just starting", [UNDECIDED, -1], [start_ns, -1])
        arrives(start, shards)
        assert start.delivery.outbox.held == 2, "nobody knows yet"
        await start.until(lambda: ("/off", "since", 1) in start.called())
        assert shards.asked == 3
        assert start.delivery.outbox.held == 1
        assert start.startup_hold.held_until_ns() == start_ns, "it answers so where the bucket moves on"
        await start.free(b"free")
        assert start.startup_hold.release(start.machine, start.delivery) == 1
        await start.until(lambda: ("/off", "held", 1) in start.called())
        assert start.startup_hold.held_until_ns() == -1


async def test_a_bucket_that_arrives_while_nobody_holds_anything_back_is_called_for_at_once(tmp_path: Path) -> None:
    async with starting(tmp_path, 0) as start:
        start.serve()
        start.ran_out_elsewhere(b"u")
        arrives(start, Shards([-1, -1]))
        await start.until(lambda: start.called() == [("/off", "u", 1)])


async def test_a_release_before_the_other_shards_have_answered_counts(tmp_path: Path) -> None:
    async with starting(tmp_path, 0) as start:
        start.serve()
        start.ran_out_elsewhere(b"u")
        shards = Shards([UNDECIDED], [UNDECIDED], [MACHINE_CLOCKS.wall_ns()])  # an answer from before the release
        arrives(start, shards)
        assert start.startup_hold.release(start.machine, start.delivery) == 1
        await start.until(lambda: start.called() == [("/off", "u", 1)])
        await start.until(lambda: shards.asked == 3)
        assert start.startup_hold.held_until_ns() == -1


async def test_without_hold_above_nobody_is_asked(tmp_path: Path) -> None:
    async with starting(tmp_path, -1) as start:
        start.serve()
        start.ran_out_elsewhere(b"u")
        shards = Shards([-1])
        arrives(start, shards)
        await start.until(lambda: start.called() == [("/off", "u", 1)])
        assert shards.asked == 0


async def test_a_bucket_whose_move_is_given_up_waits_for_no_other_shard(tmp_path: Path) -> None:
    async with starting(tmp_path, 0) as start:
        start.serve()
        asked: list[Command] = []
        worker: Any = SimpleNamespace(
            fresh_now_ns=MACHINE_CLOCKS.wall_ns,
            may_act=lambda: True,
            fail=start.broken.append,
            operate=lambda caller, token, operation: asked.append(operation),
            report=lambda reports, now_ns: [None] * len(reports),
            when_durable=lambda function: function(),
            apply=None,
            wake=lambda: None,
            map=SimpleNamespace(weights={1: 1}),
        )
        bucket_calls = BucketCalls(MACHINE_CLOCKS.boot_ns)
        chosen = start.delivery.settings
        calls = OutgoingCalls(start.machine, worker, start.startup_hold, bucket_calls, chosen, 0.0, REAL)
        start.ran_out_elsewhere(b"u")
        calls.take_up(BUCKET)
        assert asked == []
        await start.until(lambda: ("/off", "u", 1) in start.called())
        calls.forget(BUCKET)
        calls.take_up(BUCKET)
        assert asked == [("held_until",)]
        await calls.close()


async def test_who_was_freed_by_an_operator_is_not_held_again_by_another_delivery(tmp_path: Path, why: int) -> None:
    async with starting(tmp_path, why) as start:
        for user in (b"freed", b"held"):
            start.runs_dry(user)
        start.serve()
        start.time_passes()
        start.synced()
        assert start.delivery.outbox.held == 2
        start.startup_hold.let_go(BUCKET, b"freed")
        start.startup_hold.hand_over(list(start.machine.owed()), start.delivery)  # as a reload does
        await start.until(lambda: start.called() == [("/off", "freed", 1)])
        assert start.delivery.outbox.held == 1


async def test_a_shard_that_may_tell_nothing_at_that_moment_decides_later(tmp_path: Path) -> None:
    """The question is refused where the disk is full, or the grant of time has just run out."""
    asked: list[str] = []

    def operate(caller: Any, token: None, operation: Command) -> None:
        asked.append(operation[0])
        if len(asked) == 1:
            caller.refuse(token, "not now")
        else:
            caller.answer(token, [1, 0])

    async with starting(tmp_path, 5) as start:
        start.runs_dry(b"u")
        start.serve()
        start.startup_hold.ask(operate, 2, lambda: start.startup_hold.release(start.machine, start.delivery))
        start.time_passes()
        start.synced()
        assert start.delivery.outbox.held == 1
        await start.until(lambda: start.called() == [("/off", "u", 1)])
        assert asked == ["overdue", "overdue"]
