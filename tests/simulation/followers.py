"""History and notices in the world: each shard's real followers, as processes on real files whose medium fails.

The links, the processes' logic and their stores are the daemon's own, on the virtual loop. Their SQLite files stand in
a directory of the machine that runs the tests, and what a fault leaves of them is in `tests.simulation.files`: a
process that is killed leaves what memory has, one that ended on its disk what the medium has or, as long as nobody
forgets it, what memory has, and the loss of power takes of each log what was not synced. `Strikes` kills and hangs
them, loses the write-back of their files without a word or aloud, has them prove what they hold, and lets the power go
in the middle of that, while the other faults of the run go on; among these shards are drained (`draining`).

What must be so: a notice is told to the receiver only once its cause is durable, an account's in their order, each when
all before it had their 2xx; in the end every one that is owed was told, and every history reaches back to the account's
first entry. A shard goes only once all of its journal is proved and nothing is owed there. What is owed is derived here
from the auditor's own reading of the journals.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from billing.expirationd.line import Verdict
from billing.follower.link import FollowedShard
from billing.follower.process import Follower, serve
from billing.follower.store import FollowerStore, ShardFile, code_of, file_of
from billing.history import link as history
from billing.history.projector import Projector
from billing.notices import link as notices
from billing.notices.notifier import Notifier
from billing.notices.settings import NoticeSettings
from billing.notices.store import Store
from shards.exits import Exit
from shards.system.host import Host
from tests.simulation.auditor import Violation
from tests.simulation.decode import CROSSED, LEASE_EXPIRED, REFUSED, RESTORED, THRESHOLD, Item
from tests.simulation.files import MEMORY, FailingDisk, Files
from tests.simulation.machine import SimProcess
from tests.simulation.outside import SimEndpoint
from tests.simulation.wires import SimSocket

if TYPE_CHECKING:
    from tests.simulation.world import World

HISTORY, NOTICES = "history", "notices"
FORGOTTEN = 0.8  # of the ends on a disk: memory forgets what the medium does not hold before the next process starts
STRIKES = {"kill": 2, "hang": 2, "lose": 2, "aloud": 2, "prove": 4, "tear": 1}
TOP_UP, SET_RATE, CHANGE_RATE, DEBIT, CAPTURE = 1, 2, 3, 4, 7


def kinds_of(item: Item) -> list[str]:
    """The kinds of notices that an entry owes, by the contract."""
    if item.flags & REFUSED:
        return ["account-debit_refused"] if item.op == DEBIT else []
    happened = {TOP_UP: "account-topped_up", DEBIT: "account-debited", CAPTURE: "account-debited"}
    happened |= {THRESHOLD: "runway-low" if item.a else "balance-low", LEASE_EXPIRED: "rate-lease_expired"}
    kinds = [happened[item.op]] if item.op in happened else []
    if item.flags & CROSSED and item.op not in (SET_RATE, CHANGE_RATE):
        kinds.append("account-exhausted")
    return [*kinds, "account-restored"] if item.flags & RESTORED else kinds


class NoticeAuditor:
    """What is owed to the receiver of notices, and what it was told."""

    def __init__(self) -> None:
        self.owed: dict[bytes, list[str]] = {}  # user -> names in their order
        self.taken: dict[bytes, int] = {}  # user -> how many of them had their 2xx, or reached it

    def durable(self, shard: int, position: int, index: int, item: Item) -> None:
        """An entry is durable."""
        place = f"{shard}-{position}-{index}"
        stem = f"{item.entry_id}-{item.at_ns}" if item.entry_id else f"{item.at_ns}-{place}"
        self.owed.setdefault(item.user, []).extend(f"{stem}:{kind}" for kind in kinds_of(item))

    def attempt(self, user: bytes, name: str) -> None:
        """A notice is on its way."""
        owed, taken_count = self.owed.get(user, []), self.taken.get(user, 0)
        if name not in owed[: taken_count + 1]:
            raise Violation(
                f"notice {name} of {user!r} is sent after {taken_count} of {owed}: none is owed, or others before"
            )

    def on_accepted(self, user: bytes, name: str) -> None:
        """The receiver has it."""
        self.taken[user] = max(self.taken.get(user, 0), self.owed[user].index(name) + 1)

    def unsent(self) -> list[str]:
        """What is owed still."""
        return [name for user, owed in self.owed.items() for name in owed[self.taken.get(user, 0) :]]


class SimReceiver(SimEndpoint):
    """The service behind `notify.url`, with the moods of the cutoff endpoint."""

    notice_auditor: NoticeAuditor

    def ask(self, line: Any, request: bytes, timeout_s: float, on_verdict: Callable[[Verdict], None]) -> None:
        header = request.split(b"webhook-id: ", 1)[1].split(b"\r\n", 1)[0].decode("ascii")
        quoted, _, name = header.partition(":")
        user = quoted.encode()
        self._trace("notice", header)
        self.notice_auditor.attempt(user, name)
        self.go_on(self._notice(line, user, name, timeout_s, on_verdict))

    async def _notice(
        self, line: Any, user: bytes, name: str, timeout_s: float, on_verdict: Callable[[Verdict], None]
    ) -> None:
        verdict = await self._answer(line, user, timeout_s, lambda _: self.notice_auditor.on_accepted(user, name))
        if not self.closed:
            self._idle.append(line)
        on_verdict(verdict)


class Followers:
    """All followers of one world."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.home = tempfile.mkdtemp(prefix="billing-", dir=MEMORY)
        self.disk = FailingDisk()
        self.notice_auditor = NoticeAuditor()
        self.files: dict[str, Files] = {}  # by the name of the process
        self.links: dict[str, Any] = {}
        self.running: dict[SimProcess, Follower] = {}
        self.ends = 0  # on the disk
        world.auditor.on_entry = self.notice_auditor.durable
        world.auditor.on_retire = self._on_retire
        world.machine.on_power = self._on_power

    def host_of(self, process: SimProcess) -> Host:
        """What a worker's links have of the machine."""
        return process.host()._replace(disk=self.disk)

    def history(
        self, process: SimProcess, shard: FollowedShard, settings: history.HistorySettings
    ) -> history.HistoryLink:
        """The link of a worker's history."""
        name, shard = f"{HISTORY}-{shard.shard_id}", shard._replace(directory=f"{self.home}/{HISTORY}")
        link = history.opened(shard, settings, command=[name], host=self.host_of(process))
        self.links[name] = link
        return link

    def notices(self, process: SimProcess, shard: FollowedShard, settings: NoticeSettings, settled: int) -> Any:
        """The link of a worker's notices, started."""
        name, shard = f"{NOTICES}-{shard.shard_id}", shard._replace(directory=f"{self.home}/{NOTICES}")
        link = notices.opened(shard, settings, settled, command=[name], host=self.host_of(process))
        self.links[name] = link
        return link

    def receiver(self, origin: str, _: Any, clocks: Any, __: Any) -> Any:
        """The endpoint of a notifier."""
        world = self.world
        receiver = SimReceiver(origin, clocks, world.endpoint_faults, world.auditor, world.trace)
        receiver.notice_auditor = self.notice_auditor
        return receiver

    def start(self, process: SimProcess, control: SimSocket) -> Any:
        """The main function of a follower's process."""
        kind, _, shard = process.name.partition("-")
        path = file_of(f"{self.home}/{kind}", int(shard))
        files = self.files.setdefault(process.name, Files(path, self.disk, self.rng))
        process.on_end.append(lambda code: self._on_end(process, files, code))
        process.loop.on_trouble = self.world.on_trouble
        files.log_is_synced()

        def make() -> Follower:
            clocks = self.world.machine.clocks
            follower: Follower = (
                Projector(self.disk, clocks)
                if kind == HISTORY
                else Notifier(self.disk, clocks, process.rng, self.receiver)
            )
            self.running[process] = follower
            self._watch(follower, files)
            return follower

        return serve(control, make)  # type: ignore[arg-type]

    def _watch(self, follower: Follower, files: Files) -> None:
        """Notes what a process proves, and an end that no fault explains."""
        on_open, checkpoint, end = follower.on_open, follower.checkpoint, follower.end

        def checkpointed() -> bool:
            return files.checkpoint(checkpoint)

        def opened(file: ShardFile, suspect: bool, options: tuple[Any, ...]) -> tuple[FollowerStore, list[str]]:
            try:
                return on_open(file, suspect, options)
            finally:
                files.log_is_synced()

        def on_end(error: BaseException | None) -> None:
            locked = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
            if error is not None and code_of(error) == Exit.BUG and not locked:
                self.world.on_trouble({"exception": error})
            end(error)

        follower.on_open = opened  # type: ignore[method-assign]
        follower.checkpoint = checkpointed  # type: ignore[method-assign]
        follower.end = on_end  # type: ignore[method-assign]

    def _on_end(self, process: SimProcess, files: Files, code: int) -> None:
        follower = self.running.pop(process, None)
        self.world.trace(process.name, "ended", code)
        store = None if follower is None else follower.store
        on_disk = code == Exit.DISK
        self.ends += on_disk
        if code:
            forgets = on_disk and self.rng.random() < FORGOTTEN
            files.let_go(None if store is None else store.db, forgets=forgets)

    def _on_retire(self, shard: int) -> None:
        if buckets_held := self.world.auditor.held.get(shard):
            raise Violation(
                f"shard {shard} goes, and its journal does not say that buckets {sorted(buckets_held)} have left"
            )
        for process, follower in self.running.items():
            kind, _, number = process.name.partition("-")
            store = follower.store
            if int(number) != shard or store is None:
                continue
            head = self.world.auditor.head(f"shard-{shard}")
            if store.durable < head:
                raise Violation(f"shard {shard} goes at batch {head}, its {kind} is proved up to {store.durable}")
            if isinstance(store, Store) and (owed := _owed_in(store)):
                raise Violation(f"shard {shard} goes, and its notices have {owed} to tell or to hand over")

    def _on_power(self) -> None:
        for files in self.files.values():
            files.let_go(None, forgets=True, power=True)

    def close(self) -> None:
        """Leaves nothing behind."""
        shutil.rmtree(self.home, ignore_errors=True)


def _owed_in(store: Store) -> int:
    """How many notices a file owes, also while the process that had it open is about to end in order."""
    try:
        return store.owed()
    except sqlite3.ProgrammingError:  # it has closed the file
        with closing(sqlite3.connect(f"file:{store.path}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM owed").fetchone()[0])


class Strikes:
    """What happens to followers beside the run's other faults."""

    def __init__(self, followers: Followers, rng: random.Random, is_over: Callable[[], bool]) -> None:
        self.followers = followers
        self.rng = rng
        self.until = is_over
        self.fired: dict[str, int] = {}

    async def run(self) -> None:
        """One after the other, until the run's own faults are over."""
        while not self.until():
            await asyncio.sleep(0.02 + 0.3 * self.rng.random())
            running = sorted(self.followers.running, key=lambda process: process.pid)
            if running:
                self.strike(self.rng.choice(running))

    def strike(self, process: SimProcess) -> None:
        """One thing that goes wrong, or a proof asked for."""
        followers = self.followers
        follower, files, world = followers.running[process], followers.files[process.name], followers.world
        (kind,) = self.rng.choices(list(STRIKES), list(STRIKES.values()))
        if kind == "kill":
            process.kill()
        elif kind == "hang":
            if process.loop.hung_until_ns > world.kernel.now_ns:
                return  # what waits there would wait for another instant than what comes, and change its order
            process.loop.hung_until_ns = world.kernel.now_ns + self.rng.randrange(2 * 10**9)
        elif kind == "lose":
            files.fail()
        elif follower.store is None:
            return
        elif kind == "tear":
            if not self._tear(follower, files):
                return
        else:
            files.fails_aloud = files.fails_aloud or kind == "aloud"
            process.loop.call_soon(follower.later, "prove", 0, follower.checkpoint)
        self.fired[kind] = self.fired.get(kind, 0) + 1
        world.trace("strike", kind, process.name)

    def _tear(self, follower: Follower, files: Files) -> bool:
        """The power goes in the middle of a checkpoint; False where there was none."""
        assert follower.store is not None
        if follower.is_ending:
            return False
        try:
            follower.flush()
            if not files.tear_checkpoint(follower.store):
                return False
        except Exception as error:
            follower.end(error)
            return False
        self.followers.world.machine.lose_power()
        return True
