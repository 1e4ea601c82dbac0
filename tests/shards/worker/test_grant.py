"""Beyond what its journal has granted a worker answers nothing and stamps nothing, until the grant is renewed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from shards.journal import Full, backends
from shards.journal import Unavailable as NotWritten
from shards.replies import Unavailable
from shards.shard import COMMAND
from shards.system.clock import MACHINE_CLOCKS, Clocks
from shards.worker.backpressure import LAPSED
from tests.shards.journal.memory import GRANT_NS, MemoryServer
from tests.shards.worker.hosted import SHARD, Caller, WorkerHarness

KIND = "memory of this test"


class PausingClock:
    """The boot clock of a process that the machine lets stand, as SIGSTOP or a suspend do."""

    def __init__(self) -> None:
        self.paused_ns = 0

    def boot_ns(self) -> int:
        return MACHINE_CLOCKS.boot_ns() + self.paused_ns

    def wall_ns(self) -> int:
        return MACHINE_CLOCKS.wall_ns() + self.paused_ns


class GrantedWorker(NamedTuple):
    """A worker whose journal grants it time, and the clock that may run ahead of it."""

    harness: WorkerHarness
    clock: PausingClock
    server: MemoryServer


@pytest.fixture
def server(data_dir: Path) -> Iterator[MemoryServer]:
    server = MemoryServer(f"{data_dir}/log")
    backends.KINDS[KIND] = backends.Kind("tests.shards.journal.memory", is_shared=False)
    try:
        yield server
    finally:
        del backends.KINDS[KIND]
        server.close()


def harness_on(data_dir: Path, clock: PausingClock) -> WorkerHarness:
    clocks = Clocks(clock.boot_ns, clock.wall_ns)
    return WorkerHarness(data_dir, journal={"kind": KIND, "path": f"{data_dir}/log"}, clocks=clocks)


@pytest.fixture
async def granted(server: MemoryServer, data_dir: Path) -> AsyncIterator[GrantedWorker]:
    clock = PausingClock()
    harness = harness_on(data_dir, clock)
    await harness.start()
    yield GrantedWorker(harness, clock, server)
    await harness.stop()


async def test_commands_and_reads_beyond_the_grant_are_refused_until_it_is_renewed(granted: GrantedWorker) -> None:
    harness, caller = granted.harness, Caller()
    harness.ask(caller, "before", 1, ("add", "x", 5))
    await harness.until(lambda: ("before", 5) in caller.heard)
    granted_ns = harness.worker.journal.granted_ns
    granted.clock.paused_ns += 2 * GRANT_NS
    harness.worker.arrived()
    harness.worker.read(caller, "read", 1, ("get", "x"))
    harness.worker.submit(caller, "command", 1, ("add", "x", 7))
    assert [token for token, _ in caller.refused] == ["read", "command"]
    for _, refusal in caller.refused:
        assert isinstance(refusal, Unavailable)
        assert refusal.applied == "no"
    assert harness.worker.fresh_now_ns() == granted_ns - 1, "its time stands"
    await harness.until(lambda: not harness.worker.backpressure.reason)
    harness.ask(caller, "after", 1, ("add", "x", 1))
    await harness.until(lambda: ("after", 6) in caller.heard)


async def test_a_read_that_was_answered_within_the_grant_does_not_leave_beyond_it(granted: GrantedWorker) -> None:
    harness, caller = granted.harness, Caller()
    harness.ask(caller, "before", 1, ("add", "x", 5))
    await harness.until(lambda: ("before", 5) in caller.heard)
    harness.worker.arrived()
    harness.worker.read(caller, "read", 1, ("get", "x"))
    granted.clock.paused_ns += 2 * GRANT_NS  # between the question and the turn that lets the answer leave
    await harness.until(lambda: bool(caller.heard[1:] or caller.refused))
    assert [token for token, _ in caller.refused] == ["read"]
    assert caller.heard[1:] == []


async def test_questions_to_all_shards_beyond_the_grant_are_refused_at_once_and_what_others_say_leaves(
    granted: GrantedWorker,
) -> None:
    harness, caller = granted.harness, Caller()
    worker = harness.worker
    harness.ask(caller, "before", 1, ("add", "x", 5))
    await harness.until(lambda: ("before", 5) in caller.heard)
    granted.clock.paused_ns += 2 * GRANT_NS
    worker.arrived()
    worker.operate(caller, "all", ("sum",))
    worker.operate(caller, "one", ("of_shard", SHARD, ("sum",)))
    worker.pass_back(caller, "of the supervisor", {"shards": 1})
    refusal = Unavailable(SHARD, LAPSED, "no")
    assert caller.refused == [("all", refusal), ("one", refusal), ("of the supervisor", {"shards": 1})]
    await harness.until(lambda: not worker.backpressure.reason)
    worker.arrived()
    worker.operate(caller, "all again", ("sum",))
    worker.pass_back(caller, "again", {"shards": 1})
    await harness.until(lambda: len(caller.heard) == 3)
    assert caller.heard[1:] == [("again", {"shards": 1}), ("all again", 5)]


async def test_nothing_may_leave_that_no_append_has_proved(granted: GrantedWorker) -> None:
    assert granted.harness.worker.may_act()
    granted.clock.paused_ns += 2 * GRANT_NS
    assert not granted.harness.worker.may_act()
    await granted.harness.until(granted.harness.worker.may_act)


async def test_what_time_causes_beyond_the_grant_waits_and_keeps_its_instant(granted: GrantedWorker) -> None:
    harness, caller = granted.harness, Caller()
    due_ns = harness.worker.fresh_now_ns() + GRANT_NS + GRANT_NS // 2
    harness.ask(caller, "at", 1, ("at", "x", due_ns))
    await harness.until(lambda: bool(caller.heard))
    head = harness.worker.journal.head
    granted.clock.paused_ns += 3 * GRANT_NS
    harness.worker._on_alarm()
    assert harness.application.machine.buckets[1].get("x", 0) == 0, "not before another owner can be told from this one"
    await harness.until(lambda: harness.worker.journal.head > head)
    assert harness.application.machine.buckets[1]["x"] == 1
    assert f'[{due_ns}, ["fire", "x"]' in str(granted.server.memory.logs[1].payloads)


@pytest.mark.parametrize("fault", ["a limit that nothing announced", "no log for longer than a change of its leader"])
async def test_nobody_waits_for_a_batch_that_is_not_written_and_the_worker_begins_anew(
    server: MemoryServer, data_dir: Path, fault: str
) -> None:
    harness, caller, memory = harness_on(data_dir, PausingClock()), Caller(), server.memory
    await harness.start()
    harness.ask(caller, "before", 1, ("add", "x", 5))
    await harness.until(lambda: ("before", 5) in caller.heard)
    full = fault.startswith("a limit")
    memory.capacity_bytes, memory.is_out_of_reach = (0, False) if full else (-1, True)
    harness.ask(caller, "lost", 1, ("add", "x", 7))
    harness.worker.read(caller, "read", 1, ("get", "x"))
    harness.worker.reply(caller, "made elsewhere", 3)
    await harness.until(lambda: len(caller.refused) == 3)
    memory.is_out_of_reach = True  # not even a beat fits
    harness.ask(caller, "later", 1, ("add", "x", 1))
    harness.worker.read(caller, "later read", 1, ("get", "x"))
    applied = {token: refusal.applied for token, refusal in caller.refused if isinstance(refusal, Unavailable)}
    assert applied == {"lost": "no", "read": "no", "made elsewhere": "unknown", "later": "no", "later read": "no"}
    if not full:
        await harness.until(lambda: memory.beats_refused > 0)
        assert harness.failures == [], "the worker that follows could not take the shard"
    assert caller.heard == [("before", 5)]

    memory.capacity_bytes, memory.is_out_of_reach = -1, False
    await harness.until(lambda: bool(harness.failures))
    assert [type(failure) for failure in harness.failures] == [Full if full else NotWritten]
    harness.abandon()

    following = harness_on(data_dir, PausingClock())
    await following.start()
    following.ask(caller, "after", 1, ("add", "x", 1))
    await following.until(lambda: ("after", 6) in caller.heard)
    await following.stop()


async def test_what_others_own_is_passed_on_also_while_the_worker_waits_to_begin_anew(
    server: MemoryServer, data_dir: Path
) -> None:
    harness, caller, memory = harness_on(data_dir, PausingClock()), Caller(), server.memory
    passed_on = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            passed_on.set()
        writer.close()

    peer_server = await asyncio.start_unix_server(peer, f"{data_dir}/other")
    await harness.start()
    link_of = harness.worker.links
    harness.worker.open_links({SHARD + 1: f"{data_dir}/other"}, {}, None)
    await harness.until(lambda: link_of[SHARD + 1].is_open)
    memory.capacity_bytes = 0
    harness.ask(caller, "lost", 1, ("add", "x", 7))
    await harness.until(lambda: len(caller.refused) == 1)
    assert harness.worker.halted
    link_of[SHARD + 1].ask(caller, "elsewhere", COMMAND, 1, ("add", "x", 1))
    harness.worker.wake()
    async with asyncio.timeout(60):
        await passed_on.wait()
    harness.abandon()
    link_of[SHARD + 1].close()
    peer_server.close()
