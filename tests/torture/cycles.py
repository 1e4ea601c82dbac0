"""The cycle of all faults that strike the real daemon: load, strike, heal, verify; again and again on the same data.

    load     clients call, and what they were answered is noted           (`tests.torture.load`)
    strike   at a random instant, something is killed or cut
    heal     whatever it takes until the daemon is ready again
    verify   nothing that was answered is lost, doubled or invented; all owed cutoffs are owed

`prove` is the end of a campaign: the daemon stops cleanly, `billing doctor` proves the files, and after one more start
the endpoint accepts: every owed cutoff comes, with its instant and nobody else's, and every request is in the history.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from billing.doctor.examine import examine, hold
from billing.doctor.report import Report
from billing.trial.receiver import Receiver
from shards.system.disk import RealDisk
from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.rpc import Rpc
from tests.torture.load import Load, pending

LOAD_S = (0.05, 0.3)
IDS_PER_BUCKET = 1_000_000
DELIVERY_S = 90.0

Strike = Callable[[random.Random, Load], Awaitable[str]]
Heal = Callable[[str], Awaitable[None]]


def struck_daemon(directory: Path, **settings: object) -> Daemon:
    """A daemon with small segments and frequent snapshots, whose endpoint refuses until `prove`; not started."""
    return Daemon(
        directory,
        **{
            "journal__segment_bytes": 1024 * 1024,
            "journal__snapshot_bytes": 1024 * 1024,
            "shards__bucket_count": 64,
            "ledger__request_ids_per_bucket": IDS_PER_BUCKET,
            "cutoff__url": f"http://127.0.0.1:{free_port()}/cutoff",
            **settings,
        },
    )


async def cycle(daemon: Daemon, load: Load, rng: random.Random, strike: Strike, heal: Heal) -> None:
    """One of them; counts in `load.counts`."""
    load.begin(daemon.rpc_port)
    try:
        await asyncio.sleep(rng.uniform(*LOAD_S))
        strike_name = await strike(rng, load)
    finally:
        await load.end()
    load.counts[strike_name] += 1
    await heal(strike_name)
    await load.verify(daemon.rpc_port)


async def kill_noticed(daemon: Daemon, pid: int, rng: random.Random) -> None:
    """kill −9 of a worker; returns a moment after that was noticed: until then /readyz says what was before."""
    daemon.kill(pid)
    while pid in daemon.worker_pids():
        await asyncio.sleep(0.01)
    await asyncio.sleep(rng.uniform(0.05, 0.3))


def examined(data_dir: Path) -> None:
    """The independent reader finds no fault in a directory that nothing runs on. AssertionError with what it found."""
    report, disk = Report(), RealDisk()
    with ExitStack() as stack:
        hold(disk, str(data_dir), stack)
        examine(disk, str(data_dir), IDS_PER_BUCKET, report, lambda *_: None)
    assert not report.fault_count, "\n".join(report.lines())


async def prove(daemon: Daemon, load: Load) -> None:
    """The end of a campaign; the daemon runs, and is stopped behind it."""
    assert await asyncio.to_thread(daemon.stop) == 0
    result = await asyncio.to_thread(carried_out, "doctor", "--config", daemon.config)
    assert result.returncode == 0, result.stdout + result.stderr
    port = int(daemon.config.read_text().split("/cutoff")[0].rsplit(":", 1)[1])
    receiver = Receiver("127.0.0.1", port)
    await receiver.start()
    try:
        await asyncio.to_thread(daemon.start)
        await load.verify_history(daemon.rpc_port)
        rpc = await Rpc.connect(daemon.rpc_port)
        for _ in range(int(DELIVERY_S / 0.05)):
            if not await pending(rpc):
                break
            await asyncio.sleep(0.05)
        assert await pending(rpc) == {}, "cutoffs are still owed though the endpoint accepts"
        called = {call.user_id: call.exhausted_at_ns for call in receiver.calls}
        assert called == load.spenders.due, f"called {called}, due {load.spenders.due}"
        events = {(call.user_id, call.event_id) for call in receiver.calls}
        assert len(events) == len(called), "two event ids for one exhaustion"
        load.counts["cutoffs delivered"] = len(called)
        rpc.close()
    finally:
        assert await asyncio.to_thread(daemon.stop) == 0
        await receiver.close()


def judged(daemon: Daemon, campaign: Coroutine[Any, Any, Mapping[str, int]]) -> int:
    """Runs a campaign against the daemon, which is killed behind it, and prints what it counted as JSON. Returns the
    exit code: 1, with the reason and the end of the daemon's log, where anything does not hold.
    """
    try:
        counts = asyncio.run(campaign)
    except BaseException:
        traceback.print_exc()
        print(daemon.log.read_text()[-4000:] if daemon.log.exists() else "", file=sys.stderr)
        return 1
    finally:
        if daemon.process is not None:
            daemon.kill()
    print(json.dumps(counts))
    return 0
