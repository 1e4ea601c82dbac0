"""Statements over whatever may happen to a daemon: moves of buckets, SIGKILL, restarts, a step of the wall clock.

One daemon goes through all of it, once, while two machines run and money moves. Each test looks at its books from
another side.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from tests.system.clock_step import ClockStep
from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

RATES = {"vm-1": 360_000_000, "vm-2": 720_000_000}  # nanos an hour
NOW = 2**63 - 1
HOUR_S = 3600


class DaemonAfterUpheavals(NamedTuple):
    """The daemon behind it, still serving, and instants between its upheavals."""

    daemon: Daemon
    cuts: list[int]
    moved: list[int]  # the shards at which the account was


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonAfterUpheavals]:
    home = tmp_path_factory.mktemp("upheavals")
    step = ClockStep(home)
    daemon = Daemon(home, shards__workers=2, shards__bucket_count=8)
    daemon.environment = step.environment
    with daemon:
        yield asyncio.run(_live(daemon, step))


async def _live(daemon: Daemon, step: ClockStep) -> DaemonAfterUpheavals:
    rpc = await Rpc.connect(daemon.rpc_port)
    await rpc.ask("top_up", "anna", "1000")
    cuts: list[int] = []
    for resource, rate in RATES.items():
        await rpc.ask("set_rate", "anna", rate, {"per": "hour", "resource": resource})
    bucket_id = await rpc.ask("bucket_id", "anna")
    moved: list[int] = []

    async def some_entries(rpc: Rpc) -> None:
        cuts.append((await rpc.ask("statement", "anna", 0, NOW, {"limit": 0}))["to_ns"])
        await rpc.ask("debit", "anna", 1_000_000_007)
        await rpc.ask("top_up", "anna", 3)

    async def move(rpc: Rpc) -> None:
        owner = {row["bucket_id"]: row["shard_id"] for row in await rpc.ask("buckets_info")}[bucket_id]
        await rpc.ask("move_bucket", bucket_id, 3 - owner)
        moved.append(3 - owner)

    await some_entries(rpc)
    await move(rpc)
    await some_entries(rpc)
    daemon.kill()
    await asyncio.to_thread(daemon.start)
    rpc = await Rpc.connect(daemon.rpc_port)
    await some_entries(rpc)
    step.to(HOUR_S)
    async with asyncio.timeout(60):
        while "the wall clock was stepped by" not in daemon.log.read_text():
            await asyncio.sleep(0.05)
    await some_entries(rpc)
    await move(rpc)
    await some_entries(rpc)
    await asyncio.to_thread(daemon.stop)
    await asyncio.to_thread(daemon.start)
    rpc = await Rpc.connect(daemon.rpc_port)
    await some_entries(rpc)
    await some_entries(rpc)
    rpc.close()
    return DaemonAfterUpheavals(daemon, cuts, moved)


async def test_pieces_join_and_sum_to_the_whole_and_each_machine_spent_its_rate(books: DaemonAfterUpheavals) -> None:
    rpc = await Rpc.connect(books.daemon.rpc_port)
    cuts = books.cuts
    pieces = [await rpc.ask("statement", "anna", *period, {"by": "resource"}) for period in pairwise(cuts)]
    whole = await rpc.ask("statement", "anna", cuts[0], cuts[-1], {"by": "resource"})
    assert all(earlier["exact"]["closing"] == later["exact"]["opening"] for earlier, later in pairwise(pieces))
    for piece, (from_ns, to_ns) in zip([*pieces, whole], [*pairwise(cuts), (cuts[0], cuts[-1])], strict=True):
        lines = {line["resource"]: int(line["exact_accrued"]) for line in piece["resources"]}
        assert lines == {resource: rate * (to_ns - from_ns) for resource, rate in RATES.items()}
        assert piece["whole_from_ns"] is None
    for name in ("credits", "debits", "accrued"):
        assert sum(int(piece["exact"][name]) for piece in pieces) == int(whole["exact"][name])
        assert sum(piece[f"{name}_nanos"] for piece in pieces) == whole[f"{name}_nanos"]
    assert whole["debits_nanos"] == (len(cuts) - 1) * 1_000_000_007


async def test_the_step_charges_nobody_for_an_hour(books: DaemonAfterUpheavals) -> None:
    rpc = await Rpc.connect(books.daemon.rpc_port)
    whole = await rpc.ask("statement", "anna", books.cuts[0], books.cuts[-1])
    assert whole["accrued_nanos"] < sum(RATES.values()) // 2, "less than half an hour has passed for anybody"


async def test_past_balances_are_the_openings_of_periods(books: DaemonAfterUpheavals) -> None:
    rpc = await Rpc.connect(books.daemon.rpc_port)
    for cut in books.cuts:
        account = await rpc.ask("balance_at", "anna", cut - 1)
        period = await rpc.ask("statement", "anna", cut - 1, cut)
        assert account["exact_balance"] == period["exact"]["opening"]
        assert account["rate_nanos_per_hour"] == sum(RATES.values())


def test_the_doctor_agrees_while_it_serves_and_with_its_files(books: DaemonAfterUpheavals) -> None:
    online = carried_out("doctor", "--json", "--online", "--address", books.daemon.address)
    assert online.returncode == 0, online.stdout + online.stderr
    report: dict[str, Any] = json.loads(online.stdout)
    assert (report["faults"], report["statements"]["accounts"]) == ([], 1)
    assert report["statements"]["periods"] >= 1
    assert len(set(books.moved)) == 2
    books.daemon.stop()
    offline = carried_out("doctor", "--json", "--config", books.daemon.config)
    books.daemon.start()
    assert offline.returncode == 0, offline.stdout + offline.stderr
