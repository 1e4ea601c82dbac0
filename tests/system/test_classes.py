"""Cutoff classes of the real daemon: a grace outlives a kill, its call goes to the URL of the class, a class may go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.endpoint import receiving, until
from tests.system.rpc import Rpc

SECOND_NS = 10**9
GRACE_NS = 3 * SECOND_NS
HOUR_NS = 3600 * SECOND_NS
GONE = "accounts in cutoff classes that the configuration does not have: 2"
NOTED = "1 account is in the cutoff class gold, which is not in the configuration: the default serves them"


async def spend(rpc: Rpc, user: str, name: str) -> dict[str, Any]:
    """An account of a class that has money for a tenth of a second."""
    await rpc.ask("top_up", user, SECOND_NS // 10)
    await rpc.ask("set_class", user, name, {"message": "contract 7"})
    standing: dict[str, Any] = await rpc.ask("set_rate", user, SECOND_NS)
    return standing


async def test_a_grace_outlives_a_kill_and_a_class_that_goes(data_dir: Path) -> None:
    async with receiving() as receiver:
        daemon = Daemon(data_dir, shards__workers=1, cutoff__url=f"{receiver.url}/off")
        plain = daemon.config.read_text()
        urls = f'url = "{receiver.url}/gold/off?zone=3"\nrestore_url = "{receiver.url}/gold/on"\n'
        gold = f"[cutoff.class.gold]\ngrace_s = {GRACE_NS // SECOND_NS}\n{urls}"
        daemon.config.write_text(f"{plain}{gold}[cutoff.class.long]\ngrace_s = {HOUR_NS // SECOND_NS}\n")
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            saved = await spend(rpc, "saved", "long")
            late_account = await spend(rpc, "late", "gold")
            daemon.kill()
            await asyncio.to_thread(daemon.start)
            await until(lambda: len(receiver.calls) == 1)
            (call,) = receiver.calls
            assert (call.user_id, call.path, call.exhausted_at_ns) == (
                "late",
                "/gold/off",
                late_account["exhausts_at_ns"],
            )
            assert call.target.startswith("/gold/off?zone=3&user_id=late&")
            assert call.lateness_us >= GRACE_NS // 1000
            rpc = await Rpc.connect(daemon.rpc_port)
            rows = await rpc.ask("history", "late")
            ended_ns = [row["at_ns"] for row in rows if row["operation"] == "grace_ended"]
            assert ended_ns == [late_account["exhausts_at_ns"] + GRACE_NS]
            assert [(row["class"], row["message"]) for row in rows if row["class"]] == [("gold", "contract 7")]

            explained = await rpc.ask("explain", "saved")
            assert (explained["state"], explained["class"], explained["owes"]) == ("exhausted", "long", None)
            assert explained["cutoff"]["status"] == "in_grace"
            assert explained["cutoff_at_ns"] == saved["exhausts_at_ns"] + HOUR_NS
            (row,) = await rpc.ask("accounts", {"class": "long"})
            assert (row["user_id"], row["class"], row["cutoff_at_ns"]) == ("saved", "long", explained["cutoff_at_ns"])
            assert await rpc.ask("accounts", {"class": "default"}) == []
            forecast = await rpc.ask("forecast", {"within_ns": 2 * HOUR_NS})
            assert forecast["cutoffs"] == 1, "the call at the end of the grace"
            restored = await rpc.ask("top_up", "saved", 10**15)
            assert (restored["restored"], restored["cutoff"]["status"]) == (True, "superseded")
            await rpc.ask("top_up", "late", 10**15)
            await until(lambda: receiver.calls[-1].path == "/gold/on")
            assert [call.user_id for call in receiver.calls] == ["late", "late"]
        daemon.config.write_text(plain)
        with daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            account = await rpc.ask("get_account", "late")
            assert (account["class"], account["cutoff_at_ns"]) == ("gold", account["exhausts_at_ns"])
            await until(lambda: GONE in daemon.log.read_text(errors="replace"))
        result = await asyncio.to_thread(carried_out, "doctor", "--config", daemon.config)
        assert result.returncode == 0, result.stdout + result.stderr
        assert NOTED in result.stdout
        assert "no faults" in result.stdout
