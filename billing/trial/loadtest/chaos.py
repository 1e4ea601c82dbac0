"""Trouble on demand, while the load runs: kills workers, moves buckets, makes workers write snapshots, and makes the
endpoint misbehave.

Each kind of trouble is made at a fixed period. The seed draws the worker and the bucket; the faults of the endpoint
come in turn. All trouble is noted among the events of the run, and the verdict at the end has the same rules as without
trouble: none of it excuses a wrong nano or a missing cutoff.

Only processes of the load test's own daemon are killed, and only by their process ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
import msgspec
import psutil

from billing.client.errors import BillingError
from billing.trial.faults import parse_fault
from billing.trial.loadtest.signing_in import SignIn
from billing.trial.loadtest.watch import Watch
from shards.system.clock import MACHINE_CLOCKS

FAULT_PAUSE_SHARE: Final = 0.5  # of a period: for this share a fault lasts, then the endpoint is well again
SETTLED_S: Final = 1.0  # a worker younger than that is left alone
READY_WAIT_S: Final = 60.0


class Chaos(msgspec.Struct, frozen=True):
    """The periods of each kind of trouble, in seconds (0: never). `receiver_faults`: faults as `billing receiver
    --fault` takes them.
    """

    kill_worker_every_s: float = 0.0
    move_buckets_every_s: float = 0.0
    snapshot_every_s: float = 0.0
    receiver_faults: tuple[str, ...] = ()
    fault_every_s: float = 2.0

    @property
    def disturbs_cutoffs(self) -> bool:
        """Whether cutoffs may arrive twice because of this trouble."""
        return bool(self.kill_worker_every_s or self.receiver_faults)

    def sickness(self) -> Callable[[str], bool] | None:
        """A function that tells whether the endpoint is sick for a user; None if no fault concerns only some users."""
        faults = [fault for fault in map(parse_fault, self.receiver_faults) if fault.users < 1]
        return (lambda user_id: any(fault.concerns(user_id) for fault in faults)) if faults else None

    @property
    def any(self) -> bool:
        """Whether any trouble is to be made."""
        return bool(self.disturbs_cutoffs or self.move_buckets_every_s or self.snapshot_every_s)


class Trouble:
    """Makes the trouble. `pid`: the daemon's main process; None if the load test did not start it. `address` and
    `receiver`: where the daemon and the receiver listen.
    """

    def __init__(
        self, chaos: Chaos, seed: int, *, pid: int | None, address: str, sign_in: SignIn, receiver: str, watch: Watch
    ) -> None:
        self.counts: dict[str, int] = {}
        self._chaos = chaos
        self._rng = random.Random(f"{seed}:chaos")
        self._faults = deque(chaos.receiver_faults)
        self._pid = pid
        self._address = address
        self._sign_in = sign_in
        self._receiver = receiver
        self._watch = watch

    async def run(self, until: Awaitable[None]) -> None:
        """Makes trouble until `until` has finished."""
        chaos = self._chaos
        steps: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (chaos.kill_worker_every_s, self._kill),
            (chaos.move_buckets_every_s, self._move),
            (chaos.snapshot_every_s, self._snapshot),
            (chaos.fault_every_s if chaos.receiver_faults else 0.0, self._misbehave),
        ]
        async with self._sign_in.client(self._address) as self._client:
            tasks = [asyncio.create_task(_every(seconds, step)) for seconds, step in steps if seconds]
            ending = asyncio.ensure_future(until)
            try:
                done, _ = await asyncio.wait({ending, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for each in (ending, *tasks):
                    each.cancel()
                await asyncio.gather(ending, *tasks, return_exceptions=True)

    def _did(self, kind: str, text: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._watch.note(kind, text)

    def _workers(self) -> list[psutil.Process]:
        workers = []
        for process in psutil.Process(self._pid).children():
            with contextlib.suppress(psutil.Error):
                if "worker" in process.cmdline() and MACHINE_CLOCKS.wall_ns() / 1e9 - process.create_time() > SETTLED_S:
                    workers.append(process)
        return sorted(workers, key=lambda each: each.pid)

    async def _kill(self) -> None:
        workers = self._workers()
        if workers:
            victim = self._rng.choice(workers)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
                self._did("kill", f"worker {victim.pid} was killed")

    async def _snapshot(self) -> None:
        for process in self._workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)
        self._did("snapshot", "snapshots were asked for")

    async def _move(self) -> None:
        try:
            shards = [row["shard_id"] for row in await self._client.shards_info()]
            route = await self._client.route()
            bucket_id = self._rng.randrange(route["bucket_count"]) + 1
            owner = route["owners"][bucket_id - 1]
            other_shards = [shard_id for shard_id in shards if shard_id != owner]
            if other_shards:
                target = self._rng.choice(other_shards)
                await self._client.call("move_bucket", bucket_id, target, timeout_s=10.0)
                self._did("move", f"bucket {bucket_id} went from shard {owner} to {target}")
        except BillingError as error:
            self._did("move refused", f"a move was refused: {error}")

    async def _misbehave(self) -> None:
        fault = self._faults[0]
        seconds = self._chaos.fault_every_s * FAULT_PAUSE_SHARE
        wanted = {"fault": fault, "for_s": f"{seconds:g}"}
        with contextlib.suppress(aiohttp.ClientError):
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{self._receiver}/misbehave", params=wanted) as answer,
            ):
                reply = await answer.json(content_type=None)
                if "error" in reply:
                    raise ValueError(reply["error"])
                self._did("fault", f"the endpoint: {fault} for {seconds:g} s")
                self._faults.rotate(-1)


async def _every(seconds: float, step: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await step()
