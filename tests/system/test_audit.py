"""`billing audit` of a real daemon, running and stopped: operators' acts with their actors, and refused sign-ins."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.private_files import tokens_file
from tests.system.rpc import Rpc


def audit(daemon: Daemon, *words: str) -> list[dict[str, Any]]:
    result = carried_out("audit", "--json", "--config", daemon.config, *words)
    assert result.returncode == 0, result.stderr
    records: list[dict[str, Any]] = json.loads(result.stdout)
    return records


def guess_as_tarantool(port: int) -> None:
    """Signs in over Tarantool's protocol with a password that is none; the answer is an error."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        stream = connection.makefile("rwb")
        assert len(stream.read(128)) == 128, "its greeting"
        header, body = {0x00: 7, 0x01: 1}, {0x23: "ops", 0x21: ["chap-sha1", b"x" * 20]}
        packet = msgpack.packb(header) + msgpack.packb(body)
        stream.write(msgpack.packb(len(packet)) + packet)
        stream.flush()
        assert b"Incorrect password" in stream.read()


async def test_acts_and_refused_sign_ins_are_on_record(data_dir: Path) -> None:
    tokens = tokens_file(data_dir / "tokens", ("ops", "admin", "secret"), ("viewer", "read", "looks"))
    http, tarantool = f"127.0.0.1:{free_port()}", free_port()
    settings = {"shards__workers": 2, "shards__bucket_count": 8, "rpc__tokens_file": tokens, "http__listen": http}
    settings["tarantool__listen"] = f"127.0.0.1:{tarantool}"
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
        request = urllib.request.Request(f"http://{http}/v1/ping", headers={"Authorization": "Bearer guessed"})
        with pytest.raises(urllib.error.HTTPError, match="401"):
            await asyncio.to_thread(urllib.request.urlopen, request, timeout=60)
        greeting = urllib.request.Request(f"http://127.0.0.1:{daemon.admin_port}/metrics")
        greeting.add_header("Authorization", "Bearer guessed")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            await asyncio.to_thread(urllib.request.urlopen, greeting, timeout=60)
        await asyncio.to_thread(guess_as_tarantool, tarantool)
        daemon.config.write_text(daemon.config.read_text() + '[log]\nlevel = "warning"\n')
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGHUP)
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(audit, daemon, "--act", "reload"):
                await asyncio.sleep(0.05)
        running = await asyncio.to_thread(audit, daemon)
        pages, cursor = [], ""
        while rows := await rpc.ask("audit", {"after": cursor, "limit": 2}):
            pages += rows
            cursor = rows[-1]["cursor"]
        assert pages == running, "over a door the same as out of the files"
        error, _ = await rpc.call("audit", {"after": "of another daemon"})
        assert str(error).startswith("UNKNOWN_CURSOR")
        by_http = urllib.request.Request(f"http://{http}/v1/operator/audit?act=reload")
        by_http.add_header("Authorization", "Bearer secret")
        answer = await asyncio.to_thread(urllib.request.urlopen, by_http, timeout=60)
        assert [row["act"] for row in json.loads(answer.read())["audit"]] == ["reload"]
        reader = await Rpc.connect(daemon.rpc_port)
        await reader.ask("hello", {"token": "looks"})
        error, _ = await reader.call("audit")
        assert str(error).startswith("FORBIDDEN")
        token_file = data_dir / "token"
        token_file.write_text("secret\n")
        words = ("--address", f"127.0.0.1:{daemon.rpc_port}", "--token-file", str(token_file), "--act", "pin_bucket")
        assert [row["actor"] for row in await asyncio.to_thread(audit, daemon, *words)] == ["ops"]
    stopped = audit(daemon)
    assert stopped[:-1] == running, "the same while it serves and when it is down"
    assert (stopped[-1]["act"], stopped[-1]["details"]) == ("stop", {"signal": "SIGTERM"})
    assert (stopped[0]["act"], stopped[0]["details"]["shards"]) == ("start", [1, 2])
    assert [row["act"] for row in stopped].count("audit") == 0, "looking is no act"
    acts = [(row["actor"], row["act"], row["details"]) for row in stopped]
    assert [act for act in acts if act[0]] == [
        ("ops", "pin_bucket", {"bucket_id": 3}),
        ("ops", "unpin_bucket", {"bucket_id": 3}),
        ("ops", "move_bucket", {"bucket_id": 3, "shard_id": 3 - owner[3]}),
        ("ops", "retry_cutoff", {"user_id": "anna"}),
    ]
    assert [details for _, act, details in acts if act == "sign_in_refused"] == [{"from": "127.0.0.1"}] * 4
    assert [details for _, act, details in acts if act == "reload"] == [{"log.level": '"warning"'}]
    assert [row["act"] for row in audit(daemon, "--actor", "ops", "--limit", "1")] == ["retry_cutoff"]


async def test_a_shard_that_drains_is_on_record_and_a_backup_has_the_record(data_dir: Path, tmp_path: Path) -> None:
    with Daemon(data_dir, shards__workers=2, shards__bucket_count=8) as daemon:
        copy = tmp_path / "copy"
        command = [sys.executable, "-m", "billing", "backup", str(copy), "--address", f"127.0.0.1:{daemon.rpc_port}"]
        result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for path in (copy / "audit").iterdir() for line in path.read_text().splitlines()]
    assert {row["act"] for row in lines} == {"start", "backup"}
    with Daemon(data_dir, shards__workers=1, shards__bucket_count=8) as daemon:
        pass
    drains = [row for row in audit(daemon) if row["act"] == "drain"]
    assert [row["details"] for row in drains] == [{"shards": [2]}]


def test_without_a_data_directory_the_command_says_so(data_dir: Path) -> None:
    config = data_dir / "config.toml"
    config.write_text(f'[daemon]\ndata_dir = "{data_dir}/nowhere"\n')
    command = [sys.executable, "-m", "billing", "audit", "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 78
    assert f"there is no data directory {data_dir}/nowhere" in result.stderr
