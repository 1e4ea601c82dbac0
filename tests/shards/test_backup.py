"""A backup that cannot begin says whose worker is the reason, and lets go of everything that it held."""

from __future__ import annotations

import asyncio

from shards.backup import Backups
from shards.control import FilesHeld, HoldFiles
from tests.shards.supervisor.test_operator_api import NOW_NS, FakeControlWire, OperatorApiHarness, harness

__all__ = ["harness"]


def backups_of(harness: OperatorApiHarness) -> Backups:
    where = "", {"kind": "file"}, lambda: NOW_NS
    return Backups(harness.registry, harness.workers, harness.mover, *where, harness.worker_figures.why_silent)


class SilentWire(FakeControlWire):
    """The control wire of a worker whose process stands still."""

    def send(self, message: object) -> None:
        """Nobody reads it."""


class BusyWire(FakeControlWire):
    """The control wire of a worker that answers questions, and does not come to hold its files."""

    def __init__(self, like: FakeControlWire) -> None:
        super().__init__(like._worker_figures, like.figures, like.held)
        self.told: list[bool] = []
        self.is_told = asyncio.Event()

    def send(self, message: object) -> None:
        super().send(message)
        if isinstance(message, HoldFiles):
            self.told.append(message.held)
            self.is_told.set()


async def test_a_worker_that_does_not_answer_is_named_in_less_time_than_callers_wait(
    harness: OperatorApiHarness,
) -> None:
    backups = backups_of(harness)
    harness.workers[2].wire = SilentWire(harness.worker_figures, {}, [])  # type: ignore[assignment]
    async with asyncio.timeout(9):
        begun, checked = await asyncio.gather(
            backups.operate(("backup", "begin")), harness.operator_api.operate(("check_owners",))
        )
    assert begun == {"refused": "BACKUP_REFUSED", "message": "shard 2: its worker does not answer"}
    faults = ["shard 2 does not answer: silent"]
    assert checked == {"buckets": 2, "moving": 0, "shards": 2, "faults": faults, "unanswered": faults, "unchecked": []}
    assert not harness.registry.held
    assert not harness.mover.is_held


async def test_a_worker_without_a_grant_is_named_with_what_its_log_lacks(harness: OperatorApiHarness) -> None:
    figures = harness.wire(2).figures
    assert await harness.worker_figures.why_silent(harness.workers[2]) == ""
    figures |= {"no_room": "the log is full", "grant_left_ns": 10**9}
    assert await harness.worker_figures.why_silent(harness.workers[2]) == "", "it can still end what it is at"
    figures["grant_left_ns"] = 0
    assert await harness.worker_figures.why_silent(harness.workers[2]) == "the log is full"


async def test_a_backup_that_is_cancelled_while_it_begins_holds_nothing_any_more(harness: OperatorApiHarness) -> None:
    backups, wire = backups_of(harness), BusyWire(harness.wire(2))
    harness.workers[2].wire = wire  # type: ignore[assignment]
    beginning = asyncio.ensure_future(backups.operate(("backup", "begin")))
    await wire.is_told.wait()
    backups.on_message(1, FilesHeld())
    assert await backups.operate(("backup", "cancel")) == {"step": "cancel"}
    assert await beginning == {"refused": "BACKUP_REFUSED", "message": "it was cancelled"}
    assert wire.told == [True, False]
    assert not harness.registry.held
    assert not harness.mover.is_held
    again = asyncio.ensure_future(backups.operate(("backup", "begin")))
    while wire.told != [True, False, True]:
        await asyncio.sleep(0)
    await backups.operate(("backup", "cancel"))
    await again
