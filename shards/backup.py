"""A backup while serving: finds the positions up to which the logs may be copied, so that the copies show one instant.

A backup has four steps. The supervisor does three, and the process that takes the backup copies:

    1 hold   from here on no bucket moves, no snapshot begins and nothing is trimmed
    2 cut    the supervisor chooses an instant a little ahead. Each worker stands still from just before it until it
             has passed, closes its open batch, and answers with the position up to which everything stamped at or
             before that instant is durable, and nothing stamped later is there. Where a worker was too late, the
             supervisor chooses another instant
    3 copy   the caller copies each journal up to its position, and the map's log up to its own
    4 end    moves, snapshots and trimming go on

**Other hosts.** Where several serve at once, the steps for a shard of another host go over a worker's link to it, and
the copy is made from the log, which this host can read like the shard's owner. A worker that holds its files takes part
in no move, whichever host drives the move; it begins to hold once its present moves are over. The cut is an instant of
billing time, which two hosts reach at different moments, as their clocks differ; so it is chosen further ahead. A shard
that changes its host meanwhile makes the backup void.

    ("hold_files", holder)   ("let_go", holder)   ("cut", at_ns, stand_ns)     the steps, as they pass over a link

**Nobody waits.** A worker of this host that does not answer, or has no grant of time, is named within seconds, and a
backup that is cancelled while it begins lets go of everything. Commands are served as ever, except at the moment of the
cut (2 ms, more where cores are short); only snapshots, trimming and moves rest. A caller that is gone cannot keep them
resting: without `renew` the hold ends after `LEASE_S`, on every host. A worker that ends meanwhile holds nothing in its
new life, so the backup is void, and `end` says so. `shards.worker.holds` has a worker's side of the steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol

from shards.control import BackupReport, Cut, FilesHeld, HoldFiles, ShardTold
from shards.journal import JournalError
from shards.machine import Command
from shards.moves.mover import Mover
from shards.supervisor.registry import Registry
from shards.supervisor.worker_figures import LOOK_S
from shards.worker.holds import LEASE_S

MS = 1_000_000
ATTEMPTS_NS = ((20 * MS, 2 * MS), (50 * MS, 5 * MS), (100 * MS, 20 * MS), (500 * MS, 100 * MS), (1000 * MS, 400 * MS))
STILL_TIMEOUT_S = 120.0  # how long a snapshot or a move that is under way may take to end
CUT_TIMEOUT_S = 30.0


class OtherHosts(NamedTuple):
    """The other hosts, as a backup uses them."""

    holder: str  # this host's name on the others
    clocks_ns: int  # by how much the clocks of two hosts may differ
    lives: Callable[[], dict[int, tuple[int, int]]]  # shards that other hosts serve -> the life of the worker
    ask: Callable[[int, Command], None]  # sends a step to a shard, which answers ShardTold. Raises ConnectionError


class _Way(Protocol):
    """Sends messages to a shard's worker."""

    def send(self, message: Any) -> None:
        """Sends HoldFiles or Cut."""


class _FarWay:
    """Sends messages to a worker of another host."""

    def __init__(self, shard_id: int, other_hosts: OtherHosts) -> None:
        self._shard_id = shard_id
        self._other_hosts = other_hosts

    def send(self, message: HoldFiles | Cut) -> None:
        if isinstance(message, Cut):
            step: Command = ("cut", message.at_ns, message.stand_ns)
        else:
            step = ("hold_files" if message.held else "let_go", self._other_hosts.holder)
        self._other_hosts.ask(self._shard_id, step)


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
        why_silent: Callable[[Any], Awaitable[str]],
        other_hosts: OtherHosts | None = None,
    ) -> None:
        """`workers`: shard id -> an object with `state` and `wire`; `why_silent(worker)` returns why it carries out
        nothing at this moment, or "". `other_hosts`: where several hosts serve at once.
        """
        self._why_silent = why_silent
        self._beginning: asyncio.Task[object] | None = None
        self._other_hosts = other_hosts
        self._far: dict[int, tuple[int, int]] = {}  # shards of other hosts that are held -> the life of their worker
        self._registry = registry
        self._workers = workers
        self._moves = moves
        self._data_dir = data_dir
        self._log_settings = log_settings
        self._now_ns = now_ns
        self._answers: dict[int, asyncio.Future[BackupReport]] = {}  # shard id -> the answer to its last message
        self._held: set[int] = set()
        self._void = ""
        self._lease: asyncio.TimerHandle | None = None
        self._busy = False  # a backup begins, or is under way

    async def operate(self, operation: Command) -> object:
        """Carries out `("backup", "begin" | "renew" | "end" | "cancel")`. Returns a reply, or a refusal as
        plain data.
        """
        step = operation[1]
        if step == "begin":
            if self._busy:
                return _refusal(f"a backup is being taken already; one that was cut off counts for {LEASE_S:.0f} s")
            return await self._begun()
        if step == "cancel" and self._beginning is not None:
            self._beginning.cancel()
            return {"step": step}
        if not self._busy or self._lease is None:
            return _refusal("no backup is being taken: it ended by itself after a minute without a word")
        self._look_at_others()
        if step == "renew":
            self._renew()
            self._tell_far(HoldFiles(True))
        void = self._void if step != "cancel" else ""  # a cancelled copy may be void
        if step in ("end", "cancel") or void:
            self._release()
        return _refusal(void) if void else {"step": step}

    async def _begun(self) -> object:
        """Begins a backup. One that does not come about, or is cancelled meanwhile, keeps nothing from going on."""
        self._busy = True
        self._beginning = asyncio.ensure_future(self._begin())
        try:
            return await self._beginning
        except (TimeoutError, ConnectionError) as error:
            self._release()
            return _refusal(str(error) or "a snapshot or a move took too long; try again")
        except asyncio.CancelledError:
            self._release()
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the supervisor ends
                raise
            return _refusal("it was cancelled")
        except BaseException:
            self._release()
            raise
        finally:
            self._beginning = None

    async def _begin(self) -> object:
        self._void = ""
        self._registry.held = True
        await asyncio.wait_for(self._moves.hold(), STILL_TIMEOUT_S)
        far = {} if self._other_hosts is None else self._other_hosts.lives()
        ways = {shard_id: self._way_to(shard_id, far) for shard_id in sorted(self._registry.map.weights)}
        self._held = ways.keys() - far.keys()
        self._far = far
        await self._ask_all(ways, HoldFiles(True), STILL_TIMEOUT_S)
        if self._other_hosts is not None:
            await self._take_up_moves()
        async with self._registry.deciding:  # the map is cut first, so that it names no batch behind the cut
            head, settled = self._registry.version, dict(self._registry.settled)
        at_ns, positions = await self._cut(ways)
        self._renew()
        return {
            "data_dir": self._data_dir,
            "log": self._log_settings,
            "at_ns": at_ns,
            "bucket_count": self._registry.map.bucket_count,
            "map_position": head,
            "hosts_share": self._other_hosts is not None,
            "shards": [
                {
                    "shard_id": shard_id,
                    "position": position,
                    "here": shard_id in self._held,
                    "settled": settled.get(shard_id, -1),
                }
                for shard_id, position in sorted(positions.items())
            ],
            "lease_s": LEASE_S,
        }

    async def _take_up_moves(self) -> None:
        """Loads the moves that other hosts had decided before their shards were held. Raises ConnectionError."""
        try:
            await self._registry.catch_up()
        except JournalError as error:
            raise ConnectionError(str(error)) from error

    async def _cut(self, ways: dict[int, _Way]) -> tuple[int, dict[int, int]]:
        clocks_ns = self._other_hosts.clocks_ns if self._other_hosts is not None and self._far else 0
        for ahead_ns, stand_ns in ATTEMPTS_NS:
            at_ns = self._now_ns() + clocks_ns + ahead_ns
            answers = await self._ask_all(ways, Cut(at_ns, stand_ns), CUT_TIMEOUT_S)
            self._look_at_others()
            if self._void:
                raise ConnectionError(self._void)
            positions = {
                shard_id: report.position for shard_id, report in answers.items() if not isinstance(report, FilesHeld)
            }
            if min(positions.values()) >= 0:
                return at_ns, positions
        raise ConnectionError("the workers are too busy to stand still at one instant; try again")

    def _way_to(self, shard_id: int, far: dict[int, tuple[int, int]]) -> _Way:
        if self._other_hosts is not None and shard_id in far:
            return _FarWay(shard_id, self._other_hosts)
        worker = self._workers.get(shard_id)
        if worker is None or worker.wire is None or worker.state != "serving":
            state = "not there" if worker is None else worker.state
            raise ConnectionError(f"shard {shard_id} is {state}: a backup takes all shards or none")
        way: _Way = worker.wire
        return way

    def _look_at_others(self) -> None:
        """Voids the backup where a shard of another host has changed its owner, or its worker was restarted: the new
        worker has held nothing.
        """
        now = {} if self._other_hosts is None else self._other_hosts.lives()
        for shard_id, life in self._far.items():
            if now.get(shard_id) != life:
                self._void = f"shard {shard_id} changed its host meanwhile: take the backup again"

    def _tell_far(self, message: HoldFiles) -> None:
        for shard_id in self._far:
            with contextlib.suppress(ConnectionError):  # the lease on that host ends by itself
                assert self._other_hosts is not None
                _FarWay(shard_id, self._other_hosts).send(message)

    async def _ask_all(
        self, ways: dict[int, _Way], message: HoldFiles | Cut, timeout_s: float
    ) -> dict[int, BackupReport]:
        loop = asyncio.get_running_loop()
        self._answers = {shard_id: loop.create_future() for shard_id in ways}
        try:
            for way in ways.values():
                way.send(message)
            async with asyncio.timeout(timeout_s):
                while True:
                    done, pending = await asyncio.wait(
                        self._answers.values(), timeout=LOOK_S, return_when=asyncio.FIRST_EXCEPTION
                    )
                    answers = {
                        shard_id: answer.result() for shard_id, answer in self._answers.items() if answer in done
                    }
                    if not pending:
                        return answers
                    await self._check_silent(self._answers.keys() - answers.keys())
        finally:
            self._answers = {}

    async def _check_silent(self, shard_ids: Iterable[int]) -> None:
        """Raises ConnectionError where the worker of one of these shards of this host carries out nothing."""
        for shard_id in sorted(shard_ids):
            worker = self._workers.get(shard_id) if shard_id in self._held else None
            if worker is not None and (why := await self._why_silent(worker)):
                raise ConnectionError(f"shard {shard_id}: {why}")

    def on_message(self, shard_id: int, message: BackupReport) -> None:
        """Takes a worker's answer. `shard_id`: that of the worker which sent it; the answer may be that of another
        host's shard, which the worker passes on.
        """
        error = ""
        if isinstance(message, ShardTold):
            shard_id, error = message.shard_id, message.error
        answer = self._answers.get(shard_id)
        if answer is not None and not answer.done():
            if error:
                answer.set_exception(ConnectionError(f"shard {shard_id}, of another host, cannot be asked: {error}"))
            else:
                answer.set_result(message)

    def on_down(self, shard_id: int) -> None:
        """A worker has ended. The backup is void where its files were held: the restarted worker does not hold them."""
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
        """Ends the hold: snapshots, trimming and moves go on."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        self._registry.held = False
        self._moves.release()
        for shard_id in self._held:
            worker = self._workers.get(shard_id)
            if worker is not None and worker.wire is not None:
                worker.wire.send(HoldFiles(False))
        self._tell_far(HoldFiles(False))
        self._held, self._far = set(), {}
        self._busy = False


def _refusal(text: str) -> dict[str, str]:
    return {"refused": "BACKUP_REFUSED", "message": text}
