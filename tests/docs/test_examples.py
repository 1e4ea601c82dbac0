"""The programs of examples/, each run as its own process against one daemon that signs its cutoffs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.client import Client
from tests.docs.pages import REPOSITORY
from tests.system.daemon import Daemon
from tests.system.ports import free_port

EXAMPLES = REPOSITORY / "examples"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WAIT_S = 120
COIN = 10**9


class Served:
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

    def ask(self, method: str, *params: object, **options: object) -> dict[str, object]:
        """One call of the daemon."""

        async def asked() -> dict[str, object]:
            async with Client(self.daemon.address) as client:
                return dict(await client.call(method, *params, **options))

        return asyncio.run(asked())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("examples")
    secret = place / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    port = free_port()
    url = f"http://127.0.0.1:{port}/cutoff"
    with Daemon(place, cutoff__url=url, cutoff__secret_file=str(secret), shards__workers=1) as daemon:
        yield Served(daemon, port)


def test_every_example_stands_in_the_readme_of_examples():
    listed = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f"]({path.name})" not in listed] == []


def test_payments_are_booked_once_however_often_they_are_read(served: Served, tmp_path: Path):
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


def test_the_controller_starts_what_is_paid_for_and_stops_everything_at_the_cutoff(served: Served):
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
