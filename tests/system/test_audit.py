"""`billing audit` of a real daemon, running and stopped: operators' acts with their actors, and refused sign-ins."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.rpc import Rpc


def audit(daemon: Daemon, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "billing", "audit", "--json", "--config", str(daemon.config), *words]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found: list[dict[str, Any]] = json.loads(told.stdout)
    return found


async def test_acts_and_refused_sign_ins_are_on_record(data_dir: Path) -> None:
    tokens = data_dir / "tokens"
    digest = hashlib.sha256(b"secret").hexdigest()
    tokens.write_text(f"ops:admin:{digest}\n")
    tokens.chmod(0o600)
    http = f"127.0.0.1:{free_port()}"
    settings = {"shards__workers": 2, "shards__bucket_count": 8, "rpc__tokens_file": str(tokens), "http__listen": http}
    with Daemon(data_dir, **settings) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("hello", {"token": "secret"})
        owner = {row["bucket_id"]: row["shard_id"] for row in await rpc.ask("buckets_info")}
        await rpc.ask("pin_bucket", 3)
        await rpc.ask("unpin_bucket", 3)
        await rpc.ask("rebalance", {"plan": True})  # only looks
        await rpc.call("move_bucket", 3, 3 - owner[3])
        await rpc.ask("top_up", "anna", 1)
        await rpc.call("retry_cutoff", "anna")
        guesser = await Rpc.connect(daemon.rpc_port)
        error, _ = await guesser.call("hello", {"token": "guessed"})
        assert str(error).startswith("UNAUTHENTICATED")
        wrong = urllib.request.Request(f"http://{http}/v1/ping", headers={"Authorization": "Bearer guessed"})
        with pytest.raises(urllib.error.HTTPError, match="401"):
            await asyncio.to_thread(urllib.request.urlopen, wrong, timeout=60)
        daemon.config.write_text(daemon.config.read_text() + '[log]\nlevel = "warning"\n')
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGHUP)
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(audit, daemon, "--act", "reload"):
                pass
        running = await asyncio.to_thread(audit, daemon)
    stopped = audit(daemon)
    assert stopped == running, "the same while it serves and when it is down"
    acts = [(row["actor"], row["act"], row["details"]) for row in stopped]
    assert [one for one in acts if one[1] not in ("sign_in_refused", "reload")] == [
        ("ops", "pin_bucket", {"bucket_id": 3}),
        ("ops", "unpin_bucket", {"bucket_id": 3}),
        ("ops", "move_bucket", {"bucket_id": 3, "shard_id": 3 - owner[3]}),
        ("ops", "retry_cutoff", {"user_id": "anna"}),
    ]
    assert [details for _, act, details in acts if act == "sign_in_refused"] == [{"from": "127.0.0.1"}] * 2
    assert [details for _, act, details in acts if act == "reload"] == [{"log.level": '"warning"'}]
    assert [row["act"] for row in audit(daemon, "--actor", "ops", "--limit", "1")] == ["retry_cutoff"]
