"""A backup while serving: up to which positions the logs may be copied, so that together they are one instant.

It is taken in four steps; the supervisor does three, and the process that takes the backup copies:

    1 hold   no bucket moves, no snapshot begins and nothing is trimmed from here on
    2 cut    an instant is chosen, a little ahead; each worker stands still from just before it until it has passed,
             closes its open batch, and answers the position up to which everything stamped at or before that instant
             is durable, and nothing stamped later is there. Where one was too late, another instant is chosen
    3 copy   the caller copies each journal up to its position, the map's with the rest
    4 end    all goes on

**Nobody waits.** Commands are served as ever, but for the moment of the cut (2 ms, more where cores are short); only
snapshots, trimming and moves rest. A caller that is gone does not keep them from it: without `renew` the hold ends
after `LEASE_S`. A worker that ended meanwhile held nothing in its new life, so the backup is void, and `end` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shards.control import BackupReport, Cut, CutAt, FilesHeld, HoldFiles
from shards.machine import Command
from shards.moves.mover import Mover
from shards.supervisor.registry import Registry
from shards.system.links import Wire

if TYPE_CHECKING:
    from shards.worker.worker import Worker

LEASE_S = 60.0
MS = 1_000_000
ATTEMPTS_NS = ((20 * MS, 2 * MS), (50 * MS, 5 * MS), (100 * MS, 20 * MS), (500 * MS, 100 * MS), (1000 * MS, 400 * MS))
STILL_POLL_S = 0.02
STILL_TIMEOUT_S = 120.0  # for a snapshot, or a move, that is being made
CUT_TIMEOUT_S = 30.0


def cut_at(worker: Worker, at_ns: int, stand_ns: int, done: Callable[[int], None]) -> None:
    """A worker's side. Calls `done(position)` when all that is stamped at or before `at_ns` is durable up to that
    position of its journal, and nothing stamped later is there; -1 where it came to it too late. It stands still from
    `stand_ns` before the instant.
    """
    ahead_ns = at_ns - worker.fresh_now_ns()
    if ahead_ns > stand_ns:
        asyncio.get_running_loop().call_later((ahead_ns - stand_ns) / 1e9, cut_at, worker, at_ns, stand_ns, done)
        return
    if ahead_ns < 0:
        done(-1)
        return
    while worker.fresh_now_ns() <= at_ns:
        continue  # nothing is carried out meanwhile, so nothing before the cut is stamped later
    worker.arrived()  # whatever comes in this turn is stamped anew
    worker.shard.cut()
    if worker.shard.pending_sequence():
        worker.when_durable(lambda: done(worker.journal.head))
        worker.wake()
    else:
        done(worker.journal.head)


def on_message(worker: Worker, message: HoldFiles | Cut, send: Callable[[BackupReport], None]) -> None:
    """A worker's side."""
    if isinstance(message, HoldFiles):
        hold_files(worker, message.held, lambda: send(FilesHeld()))
    else:
        cut_at(worker, message.at_ns, message.stand_ns, lambda position: send(CutAt(position)))


def hold_files(worker: Worker, held: bool, tell: Callable[[], None]) -> None:
    """A worker's side. `tell` is called once no snapshot is made and nothing trimmed, until that is taken back."""
    worker.snapshotter.held = held
    if held:
        _tell_when_still(worker, tell)


def _tell_when_still(worker: Worker, tell: Callable[[], None]) -> None:
    if worker.snapshotter.held and worker.snapshotter.is_still():
        tell()
    elif worker.snapshotter.held:
        asyncio.get_running_loop().call_later(STILL_POLL_S, _tell_when_still, worker, tell)


class Backups:
    """The supervisor's side; one backup at a time."""

    def __init__(
        self,
        registry: Registry,
        workers: dict[int, Any],
        moves: Mover,
        data_dir: str,
        log_settings: dict[str, Any],
        now_ns: Callable[[], int],
    ) -> None:
        """`workers`: shard id -> what has `state` and `wire`."""
        self._registry = registry
        self._workers = workers
        self._moves = moves
        self._data_dir = data_dir
        self._log_settings = log_settings
        self._now_ns = now_ns
        self._answers: dict[int, asyncio.Future[BackupReport]] = {}  # shard id -> of the message it was sent last
        self._held: set[int] = set()
        self._void = ""
        self._lease: asyncio.TimerHandle | None = None
        self._busy = False  # a backup is beginning, or going on

    async def operate(self, operation: Command) -> object:
        """`("backup", "begin" | "renew" | "end" | "cancel")`; a reply, or a refusal as plain data."""
        step = operation[1]
        if step == "begin":
            if self._busy:
                return _refusal("a backup is being taken already")
            self._busy = True
            try:
                return await self._begin()
            except (TimeoutError, ConnectionError) as error:
                self._release()
                return _refusal(str(error) or "a snapshot or a move took too long; try again")
            except BaseException:
                self._release()
                raise
        if not self._busy or self._lease is None:
            return _refusal("no backup is being taken: it ended by itself after a minute without a word")
        if step == "renew":
            self._renew()
        void = self._void if step != "cancel" else ""  # a copy that nobody wants may be void
        if step in ("end", "cancel") or void:
            self._release()
        return _refusal(void) if void else {"step": step}

    async def _begin(self) -> object:
        self._void = ""
        self._registry.held = True
        await asyncio.wait_for(self._moves.hold(), STILL_TIMEOUT_S)
        wires = {shard_id: self._wire_of(shard_id) for shard_id in sorted(self._registry.map.weights)}
        self._held = set(wires)
        await self._ask_all(wires, HoldFiles(True), STILL_TIMEOUT_S)
        at_ns, positions = await self._cut(wires)
        async with self._registry.deciding:
            head = self._registry.version
        self._renew()
        return {
            "data_dir": self._data_dir,
            "log": self._log_settings,
            "at_ns": at_ns,
            "bucket_count": self._registry.map.bucket_count,
            "map_position": head,
            "shards": [
                {"shard_id": shard_id, "position": position} for shard_id, position in sorted(positions.items())
            ],
            "lease_s": LEASE_S,
        }

    async def _cut(self, wires: dict[int, Wire]) -> tuple[int, dict[int, int]]:
        for ahead_ns, stand_ns in ATTEMPTS_NS:
            at_ns = self._now_ns() + ahead_ns
            answers = await self._ask_all(wires, Cut(at_ns, stand_ns), CUT_TIMEOUT_S)
            if self._void:
                raise ConnectionError(self._void)
            positions = {shard_id: told.position for shard_id, told in answers.items() if isinstance(told, CutAt)}
            if min(positions.values()) >= 0:
                return at_ns, positions
        raise ConnectionError("the workers are too busy to stand still at one instant; try again")

    def _wire_of(self, shard_id: int) -> Wire:
        worker = self._workers.get(shard_id)
        if worker is None or worker.wire is None or worker.state != "serving":
            state = "not there" if worker is None else worker.state
            raise ConnectionError(f"shard {shard_id} is {state}: a backup takes all shards or none")
        wire: Wire = worker.wire
        return wire

    async def _ask_all(
        self, wires: dict[int, Wire], message: HoldFiles | Cut, timeout_s: float
    ) -> dict[int, BackupReport]:
        loop = asyncio.get_running_loop()
        self._answers = {shard_id: loop.create_future() for shard_id in wires}
        for wire in wires.values():
            wire.send(message)
        try:
            async with asyncio.timeout(timeout_s):
                return dict(zip(self._answers, await asyncio.gather(*self._answers.values()), strict=True))
        finally:
            self._answers = {}

    def on_message(self, shard_id: int, message: BackupReport) -> None:
        """A worker's answer."""
        answer = self._answers.get(shard_id)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def on_down(self, shard_id: int) -> None:
        """A worker has ended: its next life holds nothing."""
        if shard_id in self._held:
            self._void = f"the worker of shard {shard_id} ended meanwhile: take the backup again"
        answer = self._answers.get(shard_id)
        if answer is not None and not answer.done():
            answer.set_exception(ConnectionError(self._void))

    def _renew(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
        self._lease = asyncio.get_running_loop().call_later(LEASE_S, self._release)

    def _release(self) -> None:
        """Everything goes on."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        self._registry.held = False
        self._moves.release()
        for shard_id in self._held:
            worker = self._workers.get(shard_id)
            if worker is not None and worker.wire is not None:
                worker.wire.send(HoldFiles(False))
        self._held = set()
        self._busy = False


def _refusal(text: str) -> dict[str, str]:
    return {"refused": "BACKUP_REFUSED", "message": text}
