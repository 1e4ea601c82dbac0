"""What the real daemon logs: starts and troubles with what to do; no request, and nothing that is secret."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.private_files import private_file, tokens_file
from tests.system.rpc import Rpc

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOKEN = "correct-horse-battery-staple"


def logged(daemon: Daemon, words: str, wait_s: float = 60) -> None:
    """Returns when the daemon has logged these words."""
    deadline = time.monotonic() + wait_s
    while words not in daemon.log.read_text():
        assert time.monotonic() < deadline, f"{words!r} was not logged:\n{daemon.log.read_text()}"
        time.sleep(0.05)


async def test_requests_and_secrets_are_not_logged(data_dir: Path) -> None:
    tokens = tokens_file(data_dir / "tokens", ("ops", "admin", TOKEN))
    secret = private_file(data_dir / "secret", SECRET + "\n")
    settings = {"rpc.tokens_file": tokens, "cutoff.secret_file": secret, "log.level": "debug"}
    with Daemon(data_dir, shards__workers=1, **settings) as daemon:
        rpc = await Rpc.connect(daemon.rpc_port)
        await rpc.ask("hello", {"token": TOKEN})
        for number in range(50):
            await rpc.ask("top_up", f"quiet_user_{number}", "0.000001")
            await rpc.call("debit", f"quiet_user_{number}", "5")
            await rpc.ask("set_rate", f"quiet_user_{number}", 1000)
        logged(daemon, "http://127.0.0.1:9 takes no calls")
    text = daemon.log.read_text()
    assert "shard 1 serves" in text
    assert "Nothing is lost" in text, "and what to do"
    assert not [line for line in text.splitlines() if " INFO " in line and " event=" in line], "INFO needs no advice"
    for hidden in (SECRET, SECRET.removeprefix("whsec_"), TOKEN, "quiet_user"):
        assert hidden not in text
    assert len(text.splitlines()) < 60


async def test_a_worker_that_is_killed_is_one_event_with_advice(data_dir: Path) -> None:
    with Daemon(data_dir, shards__workers=1) as daemon:
        daemon.kill(daemon.worker_pids()[0])
        logged(daemon, "ended with -9")
        daemon.wait_ready()
        rpc = await Rpc.connect(daemon.rpc_port)
        assert await rpc.ask("ping") == "pong"
    lines = [line for line in daemon.log.read_text().splitlines() if "ended with -9" in line]
    assert len(lines) == 1
    assert "it recovers from its journal" in lines[0]


def test_why_a_start_is_given_up_is_an_object_of_json_too(data_dir: Path) -> None:
    daemon = Daemon(data_dir, log__format="json")
    (data_dir / "data").mkdir(mode=0o755)
    result = carried_out("serve", "--config", daemon.config)
    assert (result.returncode, result.stdout) == (78, "")
    *_, last = [json.loads(line) for line in result.stderr.splitlines()]
    assert (last["level"], last["event"], last["code"]) == ("critical", "daemon_ends", "78")
    assert last["error"].startswith(f"{data_dir}/data is open to other users (mode 0755)")
