"""A bug in the ledger ends its worker before the entry is written, and the journal stays clean.

The bug is put into the daemon's own processes as a faulty build would have it: a `sitecustomize` on their path makes
releasing a hold forget to give the money back, for one user alone. What notices it is the ledger's own assertion.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.rpc import ConnectionLost, Rpc

FAULTY = """
import billing.ledger.balances as balances

right = balances.free

def free(account, extra, name):
    if account.user_id != b"unlucky":
        return right(account, extra, name)
    extra.holds.pop(name)

balances.free = free
"""


@contextlib.contextmanager
def on_path(directory: Path) -> Iterator[None]:
    """Lets the processes that are started meanwhile find modules here first."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(directory)
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path


async def served_again(daemon: Daemon, user: str) -> Rpc:
    """A new connection, as soon as that user is served again."""
    for _ in range(400):
        with contextlib.suppress(ConnectionLost, OSError):
            rpc = await Rpc.connect(daemon.rpc_port)
            error, _ = await rpc.call("get_account", user)
            if error is None:
                return rpc
            assert error.startswith("UNAVAILABLE"), error
            rpc.close()
        await asyncio.sleep(0.05)
    raise AssertionError(f"{user} is not served again:\n{daemon.log.read_text()}")


async def test_a_broken_invariant_ends_the_worker_before_the_entry_is_written(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    daemon = Daemon(data_dir, shards__workers=2)
    with on_path(tmp_path), daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        for user in ("unlucky", "lucky"):
            await rpc.ask("top_up", user, 100, {"request_id": "first"})
            await rpc.ask("hold", user, 10, {"request_id": "held"})
        assert (await rpc.ask("release", "lucky", "r:held"))["available_nanos"] == 100
        calls = [rpc.call("release", "unlucky", "r:held")]
        calls += [rpc.call("debit", "unlucky", 1), rpc.call("get_account", "unlucky")]  # of an account gone wrong
        for reply in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(reply, ConnectionLost | tuple), reply
            assert isinstance(reply, ConnectionLost) or reply[0].startswith("UNAVAILABLE"), (
                reply
            )  # from another, who passed it on
        for _ in range(20):  # while its process ends: none of these is answered out of what went wrong
            with contextlib.suppress(ConnectionLost, OSError):
                error, account = await (await Rpc.connect(daemon.rpc_port)).call("get_account", "unlucky")
                assert error is not None or account["entry_id"] == 2
        rpc = await served_again(daemon, "unlucky")
        assert "AssertionError: holds do not add up" in daemon.log.read_text()
        account = await rpc.ask("get_account", "unlucky")
        assert (account["balance_nanos"], account["holds_nanos"], account["entry_id"]) == (100, 10, 2)
        assert (await rpc.ask("top_up", "unlucky", 5))["entry_id"] == 3, "it serves on, also this account"
        rows = await rpc.ask("history", "unlucky")
        assert [row["operation"] for row in rows] == ["top_up", "hold", "top_up"]
    result = await asyncio.to_thread(carried_out, "doctor", "--config", daemon.config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no faults" in result.stdout
