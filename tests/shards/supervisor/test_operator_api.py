"""What an operator is told of shards, buckets and moves, over a real map and workers that answer or do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shards.control import Examine, Examined, Figures, ReadFigures
from shards.journal import backends
from shards.moves.mover import ASKED_NS, Mover, MoveSettings
from shards.supervisor.child_process import WorkerState
from shards.supervisor.operator_api import OperatorApi
from shards.supervisor.registry import Registry
from shards.supervisor.worker_figures import WorkerFigures
from shards.system.clock import MACHINE_CLOCKS
from shards.system.host import REAL
from shards.system.serial_executor import SerialExecutor

BUCKETS = 4
NOW_NS = 1_727_000_000_000_000_000


class FakeControlWire:
    """A worker's control wire: questions are answered at once, with these figures and what it holds."""

    def __init__(self, worker_figures: WorkerFigures, figures: dict[str, Any], held: list[tuple[int, int]]) -> None:
        self.figures = figures
        self.held = held
        self.faults: list[str] = []
        self._worker_figures = worker_figures

    def send(self, message: object) -> None:
        match message:
            case ReadFigures(number):
                self._worker_figures.on_reply(Figures.of(number, self.figures))
            case Examine(number):
                self._worker_figures.on_reply(Examined(number, self.held, self.faults))


class OperatorApiHarness:
    """A supervisor's map, mover and view of two workers, both serving."""

    def __init__(self, data_dir: Path) -> None:
        settings = {"kind": "file", "directory": str(data_dir), "sync": "always", "segment_bytes": 1 << 20}
        log = backends.open(settings | {"sync_interval_ns": 1}, REAL)
        self.registry = Registry(str(data_dir), REAL, log, lambda: NOW_NS)
        self.registry.open(BUCKETS, {1: 1, 2: 1})
        self.worker_figures = WorkerFigures()
        self.wires: dict[int, FakeControlWire] = {}
        self.workers = {shard_id: WorkerState(shard_id) for shard_id in (1, 2)}
        for shard_id, worker in self.workers.items():
            worker.state, worker.pid = "serving", 1000 + shard_id
            owned = self.registry.map.ownership_of(shard_id)
            figures = {"accounts": 10 * shard_id, "bucket_accounts": [[bucket_id, 5] for bucket_id in owned]}
            wire = self.wires[shard_id] = FakeControlWire(self.worker_figures, figures, list(owned.items()))
            worker.wire = wire  # type: ignore[assignment]
        self.mover = Mover(self.registry, self.workers, MoveSettings(frozenset(self.workers)), MACHINE_CLOCKS.boot_ns)
        self.elsewhere: dict[int, str] = {}
        asked_of = self.mover, self.worker_figures, lambda: self.elsewhere
        self.operator_api = OperatorApi(self.registry, self.workers, *asked_of)

    def wire(self, shard_id: int) -> FakeControlWire:
        return self.wires[shard_id]


@pytest.fixture
async def harness(data_dir: Path) -> AsyncIterator[OperatorApiHarness]:
    new_harness = OperatorApiHarness(data_dir)
    executor = SerialExecutor("map", asyncio.get_running_loop())
    new_harness.registry.use(executor)
    yield new_harness
    executor.close()
    new_harness.registry.close()


async def test_shards_say_their_state_and_what_is_wrong_with_them(harness: OperatorApiHarness) -> None:
    harness.workers[2].state, harness.workers[2].reason = "held", "exit 74: the disk failed"
    first, second = await rows_of(harness, "shards_info")
    assert (first["state"], first["buckets"], first["accounts"], first["alerts"]) == ("serving", 2, 10, [])
    assert second["alerts"] == ["SHARD_HELD: nobody serves 2 buckets: exit 74: the disk failed"]


async def test_a_shard_of_another_host_has_a_row_without_figures_and_buckets_do_not_move(
    harness: OperatorApiHarness,
) -> None:
    del harness.workers[2]
    harness.elsewhere[2] = "b"
    first, second = await rows_of(harness, "shards_info")
    assert (first["shard_id"], first["state"]) == (1, "serving")
    assert (second["shard_id"], second["state"], second["reason"]) == (2, "elsewhere", "served by b")
    assert (second["buckets"], second["accounts"], second["alerts"]) == (2, None, [])
    assert [row["accounts"] for row in await rows_of(harness, "buckets_info")] == [5, 5, None, None]
    harness.wires[1].figures["links_down"] = {2: "it cannot be reached"}
    _, second = await rows_of(harness, "shards_info")
    assert second["reason"] == "served by b; no link from this host: it cannot be reached"
    assert second["alerts"] == ["UNREACHABLE_SHARD: no link from this host: it cannot be reached"]
    harness.elsewhere[2] = ""
    _, second = await rows_of(harness, "shards_info")
    assert second["alerts"] == ["UNREACHABLE_SHARD: no host serves shard 2"]
    checked = await harness.operator_api.operate(("check_owners",))
    unchecked = ["shard 2: no host serves it"]
    assert checked == {"buckets": 2, "moving": 0, "shards": 1, "faults": [], "unanswered": [], "unchecked": unchecked}


class Peer:
    """The way to the supervisor of another host, as `Mover.far`: it says this of its shards, or nothing in time."""

    def __init__(self, here: dict[str, Any], question: tuple[str, ...] = ("shards_here",)) -> None:
        self.here = here
        self.question = question
        self.asked: list[int] = []

    async def ask_only(self, shard: int, operation: Any) -> dict[str, Any]:
        assert operation == self.question
        self.asked.append(shard)
        return self.here


async def test_a_shard_of_another_host_has_the_figures_that_its_host_says_and_links_both_ways(
    harness: OperatorApiHarness,
) -> None:
    reply = await harness.operator_api.operate(("shards_here",))
    assert isinstance(reply, dict)
    assert [row["shard_id"] for row in reply["rows"]] == [1, 2]
    there = reply["rows"][1] | {"alerts": ("DISK_FULL: changes are refused",), "starts": 3}
    peer = Peer({"node": "b", "rows": (there,), "links_down": {1: "it cannot be reached"}})
    harness.mover.far = peer  # type: ignore[assignment]
    del harness.workers[2]
    harness.elsewhere[2] = "b"
    first, second = await rows_of(harness, "shards_info")
    assert first["links_down"] == ["b: it cannot be reached"]
    assert first["alerts"] == ["UNREACHABLE_SHARD: no link from b: it cannot be reached"]
    assert (second["state"], second["reason"], second["worker_pid"]) == ("elsewhere", "served by b", None)
    assert (second["accounts"], second["starts"], second["links_down"]) == (20, 3, [])
    assert second["alerts"] == ["DISK_FULL: changes are refused"]

    harness.wires[1].figures["links_down"] = {2: "it cannot be reached"}  # nor can this host reach it: it is not asked
    _, second = await rows_of(harness, "shards_info")
    assert (second["accounts"], second["links_down"]) == (None, ["this host: it cannot be reached"])
    assert peer.asked == [2]
    harness.wires[1].figures["links_down"] = {}
    peer.here = {"refused": "UNAVAILABLE", "message": "shard 2 is another host's"}
    _, second = await rows_of(harness, "shards_info")
    assert (second["reason"], second["accounts"]) == ("served by b", None)


async def test_buckets_of_another_host_have_the_accounts_that_it_counts(harness: OperatorApiHarness) -> None:
    reply = await harness.operator_api.operate(("accounts_here",))
    assert reply == {"accounts": [(bucket_id, 5) for bucket_id in range(1, BUCKETS + 1)]}
    harness.wires[1].figures["bucket_accounts"] = [[2, 5]]  # one that has no account is not named
    reply = await harness.operator_api.operate(("accounts_here",))
    assert reply == {"accounts": [(1, 0), (2, 5), (3, 5), (4, 5)]}
    harness.wires[1].figures["bucket_accounts"] = [[1, 5], [2, 5]]
    peer = Peer({"accounts": [[1, 99], [3, 8], [4, 9]]}, ("accounts_here",))  # it takes bucket 1 for its own still
    harness.mover.far = peer  # type: ignore[assignment]
    del harness.workers[2]
    harness.elsewhere[2] = "b"
    assert [row["accounts"] for row in await rows_of(harness, "buckets_info")] == [5, 5, 8, 9]
    peer.here = {"refused": "UNAVAILABLE", "message": "shard 2 is another host's"}
    assert [row["accounts"] for row in await rows_of(harness, "buckets_info")] == [5, 5, None, None]
    harness.wires[1].figures["links_down"] = {2: "it cannot be reached"}
    asked_before = list(peer.asked)
    assert [row["accounts"] for row in await rows_of(harness, "buckets_info")] == [5, 5, None, None]
    assert peer.asked == asked_before, "it is not asked"


async def test_a_worker_that_does_not_answer_is_silent_and_one_without_room_says_so(
    harness: OperatorApiHarness,
) -> None:
    harness.wire(1).figures = {}
    harness.wire(2).figures["no_room"] = "no space left"
    first, second = await rows_of(harness, "shards_info")
    assert (first["state"], first["alerts"]) == ("silent", ["SILENT_SHARD: its worker does not answer"])
    assert second["alerts"] == ["DISK_FULL: changes are refused: no space left"]
    harness.wire(2).figures |= {"no_room": "the grant of time has run out", "lapsed": True}
    assert (await rows_of(harness, "shards_info"))[1]["alerts"] == [
        "NO_GRANT: changes and reads are refused: the grant of time has run out"
    ]


async def test_buckets_say_their_owner_and_accounts_as_their_owner_counts_them(harness: OperatorApiHarness) -> None:
    harness.wire(1).figures["bucket_accounts"] = [
        [bucket_id, 7] for bucket_id in range(1, BUCKETS + 1)
    ]  # it says more than it owns
    rows = await rows_of(harness, "buckets_info")
    assert [(row["bucket_id"], row["shard_id"], row["state"], row["generation"]) for row in rows] == [
        (1, 1, "active", 1),
        (2, 1, "active", 1),
        (3, 2, "active", 1),
        (4, 2, "active", 1),
    ]
    assert [row["accounts"] for row in rows] == [7, 7, 5, 5]


async def test_a_pinned_bucket_stays_and_says_so(harness: OperatorApiHarness) -> None:
    assert await harness.operator_api.operate(("pin_bucket", 2)) == {"bucket_id": 2, "pinned": True}
    rows = await rows_of(harness, "buckets_info")
    assert rows[1]["state"] == "pinned"
    reply = await harness.operator_api.operate(("explain_move", 2, 2))
    assert isinstance(reply, dict)
    assert (reply["waits_for"], reply["whose"]) == ("bucket 2 is pinned to shard 1; unpin it first", "the operator")
    reply = await harness.operator_api.operate(("explain_move", 2, 0))
    assert isinstance(reply, dict)
    assert reply["waits_for"] == "it is pinned: the rebalancer never moves it; unpin_bucket frees it"
    assert await harness.operator_api.operate(("move_bucket", 2, 2)) == {
        "refused": "BUCKET_PINNED",
        "message": "bucket 2 is pinned to shard 1; unpin it first",
    }
    assert await harness.operator_api.operate(("unpin_bucket", 2)) == {"bucket_id": 2, "pinned": False}


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (("move_bucket", 9, 2), "UNKNOWN_BUCKET"),
        (("move_bucket", 0, 2), "UNKNOWN_BUCKET"),
        (("pin_bucket", 5), "UNKNOWN_BUCKET"),
        (("explain_move", 5, 1), "UNKNOWN_BUCKET"),
        (("move_bucket", 1, 3), "UNKNOWN_SHARD"),
        (("move_bucket", 1, 1), "MOVE_REFUSED"),
        (("no_such_question",), "UNKNOWN_METHOD"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    harness: OperatorApiHarness, operation: tuple[Any, ...], name: str
) -> None:
    reply = await harness.operator_api.operate(operation)
    assert isinstance(reply, dict)
    assert reply["refused"] == name


async def test_a_move_waits_for_a_shard_that_is_down_and_says_whose_it_is(harness: OperatorApiHarness) -> None:
    harness.workers[2].state = "down"
    reply = await harness.operator_api.operate(("explain_move", 1, 2))
    assert isinstance(reply, dict)
    assert (reply["waits_for"], reply["whose"]) == ("shard 2 is down", "the shard that is down")


async def test_a_move_of_a_plan_that_waits_its_turn_is_given_up_where_its_shard_is_locked_meanwhile(
    harness: OperatorApiHarness,
) -> None:
    mover = harness.mover
    first, planned, wanted = (
        asyncio.ensure_future(mover.move(bucket_id, 3 - owner, planned=is_planned))
        for bucket_id, is_planned, owner in ((1, True, 1), (2, True, 1), (3, False, 2))
    )
    while len(mover.running) < 3:
        await asyncio.sleep(0)
    mover.take_settings(mover.settings._replace(locked=frozenset((1,))))
    reply = await planned
    assert reply == {"refused": "MOVE_REFUSED", "message": "shard 1 is locked: the rebalancer leaves it alone"}
    assert sorted(mover.running) == [1, 3], "one is under way, and the other one an operator has asked for"
    for move in (first, wanted):
        move.cancel()
    await asyncio.gather(first, wanted, return_exceptions=True)


async def test_an_even_load_is_left_alone_and_a_new_weight_makes_a_plan(harness: OperatorApiHarness) -> None:
    assert await harness.operator_api.operate(("rebalance", 1)) == {"moves": 0, "steps": []}
    await harness.registry.record(["weight", 1, 0])
    assert await harness.operator_api.operate(("rebalance", 1)) == {
        "moves": 2,
        "steps": [
            {"bucket_id": 2, "shard_id": 1, "to_shard_id": 2},
            {"bucket_id": 1, "shard_id": 1, "to_shard_id": 2},
        ],
    }
    first, _ = await rows_of(harness, "shards_info")
    assert first["alerts"] == ["DRAINING: waits for 2 buckets to leave"]


async def test_owners_are_checked_against_what_each_worker_holds(harness: OperatorApiHarness) -> None:
    assert await harness.operator_api.operate(("check_owners",)) == {
        "buckets": BUCKETS,
        "moving": 0,
        "shards": 2,
        "faults": [],
        "unanswered": [],
        "unchecked": [],
    }
    harness.wire(1).held = [(1, 1)]  # it lost bucket 2
    harness.wire(2).held = [*harness.wire(2).held, (1, 1)]  # and the other one has bucket 1, too
    harness.wire(2).faults = ["bucket 4: account u: its lines do not add up"]
    reply = await harness.operator_api.operate(("check_owners",))
    assert isinstance(reply, dict)
    assert len(reply["faults"]) == 3
    assert reply["faults"][0] == "shard 2: bucket 4: account u: its lines do not add up"


class OtherOwners:
    """The way to the supervisor of another host, which checks its own shards: `Mover.far`."""

    def __init__(self, held: Any, version: int) -> None:
        self.replies: dict[str, Any] = {
            "held_here": {"shards": ((2, held),), "faults": (), "moving": ()},
            "moving_here": {"moving": (), "version": version},
        }

    async def ask_only(self, shard: int, operation: Any) -> dict[str, Any]:
        assert shard == 2
        return dict(self.replies.get(operation[0], {"refused": "UNAVAILABLE", "message": "it is away"}))


async def test_owners_are_checked_on_every_host_and_a_host_that_does_not_answer_is_named(
    harness: OperatorApiHarness,
) -> None:
    held = tuple(harness.registry.map.ownership_of(2).items())
    reply = await harness.operator_api.operate(("held_here",))
    assert isinstance(reply, dict)
    assert dict(reply["shards"])[2] == list(held), "what another host is told"
    assert await harness.operator_api.operate(("moving_here",)) == {"moving": [], "version": harness.registry.version}
    peer = OtherOwners(held, harness.registry.version)
    harness.mover.far = peer  # type: ignore[assignment]
    del harness.workers[2]
    harness.elsewhere[2] = "b"

    async def check() -> Any:
        return await harness.operator_api.operate(("check_owners",))

    whole = {"buckets": BUCKETS, "moving": 0, "shards": 2, "faults": [], "unanswered": [], "unchecked": []}
    assert await check() == whole
    peer.replies["held_here"] |= {"shards": ((2, (*held, (1, 1))),)}
    assert (await check())["faults"] == ["bucket 1 is held by shard 1 and by shard 2"]
    peer.replies["moving_here"] |= {"moving": (1,)}
    assert await check() == whole | {"buckets": BUCKETS - 1, "moving": 1}
    silent = ["shard 2 does not answer: held"]
    peer.replies["held_here"] |= {"shards": ((2, None),), "faults": silent}
    assert await check() == whole | {"buckets": 1, "moving": 1, "faults": silent}, "of an older version"
    peer.replies["held_here"] |= {"unanswered": silent}
    assert await check() == whole | {"buckets": 1, "moving": 1, "faults": silent, "unanswered": silent}
    del peer.replies["held_here"]
    assert await check() == whole | {"buckets": 2, "shards": 1, "unchecked": ["shard 2: b has not answered"]}


async def test_a_worker_that_is_gone_is_a_fault_and_its_buckets_are_left_out(harness: OperatorApiHarness) -> None:
    harness.workers[2].wire, harness.workers[2].state = None, "down"
    reply = await harness.operator_api.operate(("check_owners",))
    faults = ["shard 2 does not answer: down"]
    assert reply == {"buckets": 2, "moving": 0, "shards": 2, "faults": faults, "unanswered": faults, "unchecked": []}


async def rows_of(harness: OperatorApiHarness, question: str) -> list[dict[str, Any]]:
    reply = await harness.operator_api.operate((question,))
    assert isinstance(reply, list)
    return reply


@pytest.mark.parametrize("shard_id", [1, 2])
async def test_no_bucket_moves_while_the_disk_of_one_of_its_shards_stands_still(
    harness: OperatorApiHarness, shard_id: int
) -> None:
    of_workers = harness.registry, harness.workers, harness.mover.settings, MACHINE_CLOCKS.boot_ns
    mover = Mover(*of_workers, None, harness.worker_figures.why_still)
    figures = harness.wire(shard_id).figures
    figures["sync_waiting_ns"] = 4 * 10**9
    bucket_id = harness.registry.map.buckets_of(1)[0]
    for _ in range(2):
        reply = await mover.move(bucket_id, 2)
        text = f"bucket {bucket_id} stays where it is: shard {shard_id}: its disk has held a batch for 4 s"
        assert reply == {"refused": "MOVE_REFUSED", "message": text}
        assert mover.running == {}
    figures["sync_waiting_ns"] = 2 * 10**9
    assert await harness.worker_figures.why_still(harness.workers[shard_id]) == ""


async def test_workers_that_are_slow_to_say_that_they_take_part_are_asked_once_for_a_move(
    harness: OperatorApiHarness,
) -> None:
    now_ns, asked = 10**9, list[int]()

    async def why_still(worker: Any) -> str:
        nonlocal now_ns
        now_ns += ASKED_NS * 3 // 2
        asked.append(worker.shard_id)
        return "it is asked again and again" if len(asked) > 2 else ""

    settings = harness.mover.settings._replace(locked=frozenset({1}))  # so it ends where it would begin
    mover = Mover(harness.registry, harness.workers, settings, lambda: now_ns, None, why_still)
    bucket_id = harness.registry.map.buckets_of(1)[0]
    reply = await mover.move(bucket_id, 2, planned=True)
    assert reply == {"refused": "MOVE_REFUSED", "message": "shard 1 is locked: the rebalancer leaves it alone"}
    assert sorted(asked) == [1, 2]
