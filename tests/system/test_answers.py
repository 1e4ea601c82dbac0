"""What the real daemon's procedures answer, over the wire: maps, lists of maps, histories, numbers that only rise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest

from billing import __version__
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

REPLY = {
    *("user_id", "bucket_id", "state", "balance_nanos", "credit_limit_nanos", "available_nanos", "rate_nanos_per_hour"),
    *("rate_nanos_per_second", "exhausts_at_ns", "runway_ns", "exhaustion_seq", "entry_id", "at_ns", "replayed"),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """For tests that look at accounts of their own only."""
    with Daemon(tmp_path_factory.mktemp("d"), shards__workers=1) as started:
        yield started


async def test_every_procedure_on_an_account_answers_the_same_map_and_some_add_to_it(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    added = {
        "top_up": (("u", 1000), set()),
        "set_rate": (("u", 0), set()),
        "change_rate": (("u", 0), set()),
        "debit": (("u", 1), {"outcome", "debited_nanos"}),
        "set_credit_limit": (("u", 5), set()),
        "hold": (("u", 10, {"request_id": "h"}), {"hold_id"}),
        "capture": (("u", "r:h", 3), {"captured_nanos"}),
        "adjust": (("u", -1, "why"), set()),
        "set_thresholds": (("u", [{"amount": 7}, {"runway_ns": 10**9}]), set()),
        "get_account": (
            ("u",),
            {
                *("rates", "credits", "leases", "class", "cutoff_at_ns", "cutoff", "overrun_nanos", "holds"),
                *("holds_nanos", "thresholds"),
            },
        ),
        "set_class": (("u", "default"), set()),
        "close_account": (("u",), {"paid_out_nanos", "forfeited_nanos"}),
    }
    for number, (method, (params, more)) in enumerate(added.items(), 1):
        reply = await rpc.ask(method, *params)
        assert set(reply) == REPLY | more, method
        assert (reply["user_id"], reply["replayed"]) == ("u", False)
        assert reply["entry_id"] == number - (number > 9), "reading makes no entry"
    await rpc.ask("top_up", "v", 5)
    hold_id = (await rpc.ask("hold", "v", 5))["hold_id"]
    released = await rpc.ask("release", "v", hold_id)
    assert set(released) == REPLY | {"restored", "cutoff"}
    assert (released["restored"], released["cutoff"]["status"]) == (True, "superseded")


async def test_lists_are_arrays_of_maps(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=2, shards__bucket_count=30) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        account = await rpc.ask("top_up", "u", 5)
        bucket_id = await rpc.ask("bucket_id", "u")
        assert bucket_id == account["bucket_id"]
        await rpc.ask("debit", "u", 5)
        buckets = await rpc.ask("buckets_info")
        assert [row["bucket_id"] for row in buckets] == list(range(1, 31))
        for row in buckets:
            assert row.keys() >= {"bucket_id", "shard_id", "state", "generation", "accounts"}
            assert (row["state"], row["generation"]) == ("active", 1)
            assert row["accounts"] == (row["bucket_id"] == bucket_id)
        shards = await rpc.ask("shards_info")
        assert [row["shard_id"] for row in shards] == sorted({row["shard_id"] for row in buckets})
        for row in shards:
            columns = {"shard_id", "worker_pid", "buckets", "accounts", "armed", "pending_cutoffs", "journal_bytes"}
            assert row.keys() >= columns
            assert row["worker_pid"] in daemon.worker_pids()
            assert row["buckets"] == sum(bucket["shard_id"] == row["shard_id"] for bucket in buckets)
        assert sum(row["accounts"] for row in shards) == sum(row["pending_cutoffs"] for row in shards) == 1
        (owed,) = await rpc.ask("pending_cutoffs")
        assert owed.keys() >= {"user_id", "event_id", "seq", "exhausted_at_ns", "attempts", "last_error"}
        assert (owed["user_id"], owed["seq"]) == ("u", 1)


async def test_the_history_is_newest_first_in_pages_and_holds_every_answered_entry(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    await rpc.ask("top_up", "paged", 10**12, {"message": "invoice 7", "request_id": b"\xff\x00"})
    await rpc.ask("set_rate", "paged", 10**9)
    for number in range(30):
        reply = await rpc.ask("debit", "paged", 1, {"message": f"{number}"})
        newest = (await rpc.ask("history", "paged", {"limit": 1}))[0]
        assert (newest["entry_id"], newest["message"]) == (reply["entry_id"], f"{number}")
    rows = await rpc.ask("history", "paged")
    assert [row["entry_id"] for row in rows] == list(range(32, 0, -1))
    assert {frozenset(row) for row in rows} == {
        frozenset(
            {
                *("entry_id", "at_ns", "operation", "amount_nanos", "accrued_nanos", "balance_before_nanos"),
                *("balance_after_nanos", "message", "request_id", "resource", "line_rate_nanos_per_hour"),
                *("rate_nanos_per_hour", "value_nanos", "thresholds", "class", "actor"),
            }
        )
    }
    assert (rows[-1]["message"], rows[-1]["request_id"]) == ("invoice 7", b"\xff\x00")
    page = await rpc.ask("history", "paged", {"limit": 5, "before": 20})
    assert page == [row for row in rows if row["entry_id"] < 20][:5]
    for row, newer in pairwise(rows):
        assert newer["balance_after_nanos"] - row["accrued_nanos"] == row["balance_before_nanos"]
        assert row["balance_before_nanos"] + row["amount_nanos"] == row["balance_after_nanos"]


async def test_entry_ids_and_instants_rise_across_moves_and_restarts(data_dir: Path) -> None:
    daemon = Daemon(data_dir, shards__workers=2)
    stamps: list[tuple[int, int]] = []
    with daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        bucket_id = await rpc.ask("bucket_id", "u")

        async def call() -> None:
            reply = await rpc.ask("top_up", "u", 1)
            stamps.append((reply["entry_id"], reply["at_ns"]))

        for target in (1, 2, 1, 2):
            await call()
            await rpc.call("move_bucket", bucket_id, target)  # an error where it is there already
            await call()
            daemon.kill()
            daemon.start()
            rpc = await Rpc.connect(daemon.rpc_port)
            await call()
        owner = next(row for row in await rpc.ask("buckets_info") if row["bucket_id"] == bucket_id)
        assert owner["generation"] >= 4
        assert owner["shard_id"] == 2
    assert [entry_id for entry_id, _ in stamps] == list(range(1, 13))
    assert [at_ns for _, at_ns in stamps] == sorted(at_ns for _, at_ns in stamps)


async def test_request_ids_are_kept_up_to_a_stated_number_per_bucket_and_a_metric_counts_what_went_early(
    data_dir: Path,
) -> None:
    """The number, and other limits, are what `server_info` says."""
    with Daemon(data_dir, shards__workers=1, ledger__request_ids_per_bucket=3) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for name in "abcde":
            assert (await rpc.ask("top_up", "u", 1, {"request_id": name}))["replayed"] is False
        for name, replayed in (("e", True), ("c", True), ("b", False)):
            assert (await rpc.ask("top_up", "u", 1, {"request_id": name}))["replayed"] is replayed
        dropped = 0.0
        async with aiohttp.ClientSession(f"http://127.0.0.1:{daemon.admin_port}") as session, asyncio.timeout(60):
            while dropped < 3:
                async with session.get("/metrics") as answer:
                    lines = (await answer.text()).splitlines()
                counted = [line for line in lines if line.startswith("billing_request_ids_evicted_early_total")]
                dropped = sum(float(line.rsplit(" ", 1)[1]) for line in counted)
        assert dropped == 3
        info = await rpc.ask("server_info")
        assert (info["version"], info["request_ids_per_bucket"]) == (__version__, 3)
        limits = info["limits"]
        assert (limits["user_id_bytes_max"], limits["request_id_bytes_max"]) == (128, 64)


async def test_what_never_reached_the_ledger_is_not_stored_under_its_request_id(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    for method, params, name in (
        ("top_up", ("unstored", 0), "INVALID_AMOUNT"),
        ("top_up", ("", 5), "INVALID_USER_ID"),
        ("debit", ("unstored", 5), "UNKNOWN_ACCOUNT"),
        ("debit", ("unstored", 5, {"mode": "gently"}), "INVALID_PARAMS"),
    ):
        options = {"request_id": "r", **(params[2] if len(params) > 2 else {})}
        error, _ = await rpc.call(method, *params[:2], options)
        assert error.startswith(f"{name}: ")
    first = await rpc.ask("top_up", "unstored", 5, {"request_id": "r"})
    assert (first["replayed"], first["balance_nanos"]) == (False, 5)
    error, _ = await rpc.call("top_up", "unstored", 0, {"request_id": "r"})
    assert error.startswith("INVALID_AMOUNT: ")
    assert await rpc.ask("top_up", "unstored", 5, {"request_id": "r"}) == {**first, "replayed": True}
