"""An error at every I/O call, for real: the n-th call of a worker (or of the supervisor) fails, for every n.

    python -m tests.torture.faults --target shard --what EIO --sticky

A data directory with snapshots and a log behind them is made once. Each run starts the real daemon on a copy of it,
lets one call below `shard-1` (or `map`) fail by a preloaded shim, and leads it through all it does there: recovery,
batches, barriers, a switch of segments, a clean stop with its snapshot, trimming. Runs go on until one comes to its end
without a hit. In each of them

- whatever was answered is in the files afterwards, once, and nothing else is: they are recovered in this process, by a
  disk that does not fail, and the independent reader finds no fault in them;
- a broken disk ends the worker with 74, which is held with the reason on `/readyz`, and the other shard serves on; a
  full one is refused or waited for; a write that falls short or is interrupted is carried on;
- nobody waits for an answer for ever.

Prints what it counted as JSON; exit code 1 with the number of the call where anything does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path

from billing.ledger.ledger import Rules
from billing.worker.machine import BillingMachine
from shards.journal.file.journal import FileJournal, FileSettings
from shards.shard import Shard
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk
from shards.worker.recover import recover
from tests.system.daemon import Daemon
from tests.system.rpc import ConnectionLost, Rpc
from tests.torture.cycles import IDS_PER_BUCKET, examined, struck_daemon

BUCKETS = 8
USERS = [f"user_{number}" for number in range(6)]
ANSWER_S = 30.0
START_S = 60.0
STOP_S = 120.0  # a disk that others use, too, may take seconds for each of a stop's syncs
CALLS_MAX = 600
BROKEN = {"EIO": (74,), "EROFS": (74, 78)}  # what it ends with: the disk failed, or nothing was written: it is unfit


def why_not() -> str:
    """Why this cannot be done here; empty where it can."""
    return "" if shutil.which("cc") else "there is no C compiler (cc)"


def shim(directory: Path) -> Path:
    """Compiles the library that is preloaded."""
    library = directory / "failing.so"
    source = Path(__file__).with_name("failing.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


class Journal:
    """What the client called and was answered; each call adds one nano."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.said: Counter[str] = Counter()

    async def call(self, rpc: Rpc, user: str, message: str = "") -> None:
        self.called[user] += 1
        options = {"request_id": f"{user}-{self.called[user]}", **({"message": message} if message else {})}
        try:
            error, _ = await asyncio.wait_for(rpc.call("top_up", user, 1, options), ANSWER_S)
        except ConnectionLost:
            self.said["lost"] += 1
            return
        except TimeoutError:
            self.said["nothing"] += 1
            return
        assert error is None or error.startswith("UNAVAILABLE"), error
        self.said[error or "ok"] += 1
        self.answered[user] += error is None


async def lead(daemon: Daemon, journal: Journal) -> None:
    """One life: single calls, a burst that fills a segment, a pause for the barrier."""
    for step in range(4):
        with suppress(OSError):
            rpc = await Rpc.connect(daemon.rpc_port)
            for user in USERS:
                await journal.call(rpc, user)
            if step == 1:
                await asyncio.gather(*(journal.call(rpc, USERS[number % 6], "x" * 400) for number in range(240)))
            rpc.close()
        await asyncio.sleep(0.06)


def readiness(daemon: Daemon) -> str:
    """What /readyz says; empty where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.admin_port}/readyz", timeout=2) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return ""


async def settled_start(daemon: Daemon) -> str:
    """Starts it; what /readyz says once it serves, holds a shard, waits for room or has ended."""
    process = daemon.launch()
    status = ""
    for _ in range(int(START_S / 0.03)):
        if process.poll() is not None:
            return "ended"
        status = await asyncio.to_thread(readiness, daemon)
        if status.startswith("ready") or ("shard 2" not in status and ("held" in status or "waiting" in status)):
            return status
        await asyncio.sleep(0.03)
    raise AssertionError(f"neither ready nor held: {status}")


async def recovered_balances(data_dir: Path) -> Counter[str]:
    """The balances that the files hold, by the daemon's own recovery in this process."""
    balances: Counter[str] = Counter()
    disk = RealDisk()
    for number in (1, 2):
        settings = FileSettings(segment_bytes=65536)
        journal = FileJournal(f"{data_dir}/shard-{number}", disk, settings, now_ns=lambda: 0, salt=lambda: 1)
        journal.open(number, "looking")
        machine = BillingMachine(Rules(accrue=False, request_ids_per_bucket=IDS_PER_BUCKET, restore=False))
        await recover(Shard(number, machine), journal, lambda done, total: None, MACHINE_CLOCKS.boot_ns)
        journal.close()
        for bucket_id, book in machine.ledger.books.items():
            for user_id in book.slots:
                reply = machine.read(bucket_id, ("get_account", user_id), 2**62)
                assert isinstance(reply, dict), reply
                balances[user_id.decode()] = reply["balance_nanos"]
    return balances


async def run(base: Path, folder: Path, call_number: int, arguments: argparse.Namespace, library: Path) -> Counter[str]:
    """One run with the fault at this call. AssertionError."""
    shutil.copytree(base / "data", folder / "data", ignore=shutil.ignore_patterns("*.sock"))
    journal, counts = Journal(), Counter({"runs": 1})
    journal.called.update(json.loads((base / "called").read_text()))
    journal.answered.update(journal.called)
    daemon = new_daemon(folder)
    hits = folder / "hits"
    directory = "data/map" if arguments.target == "map" else "data/shard-1"
    daemon.environment = {
        "LD_PRELOAD": str(library), "FAULT_DIR": directory, "FAULT_AT": str(call_number), "FAULT_LOG": str(hits),
        "FAULT_WHAT": str(getattr(errno, arguments.what, 0)), "FAULT_STICKY": str(int(arguments.sticky)),
    }  # fmt: skip
    status = await settled_start(daemon)
    process = daemon.process
    assert process is not None
    if status != "ended":
        if "the map of the buckets: waiting" not in status:  # there, nothing is served, and nothing is answered
            await lead(daemon, journal)
        status = await asyncio.to_thread(readiness, daemon)
        process.terminate()
    try:
        code = await asyncio.to_thread(process.wait, STOP_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        log = daemon.log.read_text()
        raise AssertionError(f"call {call_number}: it did not stop; /readyz said {status}\n{log}") from None
    fired = hits.read_text().splitlines() if hits.exists() else []
    counts["fired"] = bool(fired)
    counts[f"ended with {code}"] += 1
    log = daemon.log.read_text()
    assert "Traceback" not in log, f"call {call_number} ({fired}): {log}"
    if fired and arguments.what in BROKEN and code not in BROKEN[arguments.what]:
        assert code == 0, f"call {call_number} ({fired}): ended with {code}\n{log}"
        counts["harmless"] += 1  # what nothing depends on, such as giving the cache back
    if arguments.what in ("EINTR", "short") and code not in (0, 74):
        raise AssertionError(f"call {call_number} ({fired}): ended with {code}\n{log}")
    if arguments.target == "shard" and "held" in status:
        assert "shard 1: held: " in status, f"call {call_number} ({fired}): {status}"
        reason = "Read-only file system" if code == 78 else "the disk failed"
        assert reason in status, f"call {call_number} ({fired}): {status}\n{log}"
        assert "shard 2" not in status, f"call {call_number} ({fired}): the other shard does not serve: {status}"
        counts["held, the other served"] += 1
    if arguments.what != "ENOSPC":  # there, what was under way waits for room
        assert not journal.said["nothing"], (
            f"call {call_number} ({fired}): {journal.said['nothing']} calls got no answer\n{log}"
        )
    counts["answered"] += journal.said["ok"]
    counts["refused or lost"] += sum(journal.said.values()) - journal.said["ok"]
    examined(folder / "data")
    balances = await recovered_balances(folder / "data")
    for user in USERS:
        description = (
            f"call {call_number} ({fired}): {user} called {journal.called[user]}, answered {journal.answered[user]}"
        )
        assert journal.answered[user] <= balances[user] <= journal.called[user], (
            f"{description}, kept {balances[user]}\n{log}"
        )
    return counts


def new_daemon(directory: Path) -> Daemon:
    """Small segments; no snapshot but at a clean stop."""
    return struck_daemon(
        directory, journal__segment_bytes=65536, journal__snapshot_bytes=1 << 30, shards__bucket_count=BUCKETS
    )


def _target(link: Path) -> str:
    """What a process holds open; empty where it is gone."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


async def prepare(base: Path) -> None:
    """A directory with two snapshots and a log behind them."""
    journal, daemon = Journal(), new_daemon(base)
    for life in range(3):
        await asyncio.to_thread(daemon.start)
        await lead(daemon, journal)
        if life < 2:
            assert await asyncio.to_thread(daemon.stop) == 0
        else:
            daemon.kill()
    assert journal.called == journal.answered, journal.said
    while any(str(base) in open_path for open_path in map(_target, Path("/proc").glob("[0-9]*/fd/*"))):
        await asyncio.sleep(0.05)  # the histories' processes end a moment after those they served
    (base / "called").write_text(json.dumps(journal.called))


async def campaign(arguments: argparse.Namespace, directory: Path) -> Counter[str]:
    """All runs. AssertionError."""
    library = shim(directory)
    base = directory / "base"
    base.mkdir(mode=0o700)
    await prepare(base)
    counts: Counter[str] = Counter()
    for call_number in range(arguments.first, arguments.first + arguments.runs):
        folder = directory / f"at-{call_number}"
        folder.mkdir(mode=0o700)
        run_counts = await run(base, folder, call_number, arguments, library)
        counts += run_counts
        shutil.rmtree(folder)
        if not run_counts["fired"]:
            if call_number == arguments.first:
                raise AssertionError("the fault never fired")
            counts["calls"] = call_number - 1
            return counts
    if arguments.runs == CALLS_MAX:
        raise AssertionError(f"{CALLS_MAX} runs, and there are calls left")
    return counts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["shard", "map"], default="shard")
    parser.add_argument("--what", choices=["EIO", "ENOSPC", "EROFS", "EINTR", "short"], default="EIO")
    parser.add_argument("--sticky", action="store_true", help="all calls from there on")
    parser.add_argument("--first", type=int, default=1, help="begin with this call")
    parser.add_argument("--runs", type=int, default=CALLS_MAX, help="not more than that many")
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk")
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"cannot be done here: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="faults-") as name:
        try:
            counts = asyncio.run(campaign(arguments, Path(name)))
        except Exception:
            traceback.print_exc()
            return 1
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
