"""What finance and support ask a running daemon: who did what at which rate, also of an account that is closed."""

from __future__ import annotations

from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.rpc import Rpc


async def test_rows_name_actor_and_rates_and_a_closed_account_answers(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=2) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("top_up", "anna", 10**9, {"message": "invoice 7"})
        await rpc.ask("set_rate", "anna", 3, {"resource": "vm-1", "message": "started"})
        await rpc.ask("set_rate", "anna", 0, {"resource": "vm-1"})
        await rpc.ask("close_account", "anna", {"message": "left"})
        error, _ = await rpc.call("get_account", "anna")
        assert str(error).startswith("UNKNOWN_ACCOUNT")
        rows = await rpc.ask("history", "anna")
        shown = ("operation", "resource", "line_rate_nanos_per_hour", "rate_nanos_per_hour", "message", "actor")
        assert [tuple(row[name] for name in shown) for row in rows] == [
            ("close_account", None, None, 0, "left", ""),
            ("set_rate", "vm-1", 0, 0, "", ""),
            ("set_rate", "vm-1", 3 * 3600, 3 * 3600, "started", ""),
            ("top_up", None, None, 0, "invoice 7", ""),
        ]
        error, _ = await rpc.call("history", "nobody")
        assert str(error).startswith("UNKNOWN_ACCOUNT")
