"""What goes wrong in a run, and what an operator does meanwhile: drawn from the seed, counted when it has happened."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from typing import Any

from shards.journal import JournalError
from shards.journal.file.recovery import is_segment
from tests.simulation import draining, together
from tests.simulation.auditor import Violation
from tests.simulation.clients import Client
from tests.simulation.course import DATA
from tests.simulation.decode import BATCH_HEADER_BYTES, batches_of, segment_of
from tests.simulation.loop import SECOND_NS
from tests.simulation.machine import SimProcess
from tests.simulation.world import World

TRIES, TRY_S = 400, 0.02
CALLS = ("create", "write", "fdatasync", "fsync", "fsync_dir", "rename", "unlink", "allocate")
ENDPOINT = ("refused", "slow", "5xx", "4xx", "lost")


class FaultInjector:
    """The faults of one run, one after the other, at random moments."""

    def __init__(self, world: World, clients: list[Client], operator: Client, rng: random.Random) -> None:
        self.world = world
        self.clients = clients
        self.operator = operator
        self.rng = rng
        self.fired: dict[str, int] = {}
        self.done = False
        self._kinds = KINDS if world.followers is None else KINDS | FOLLOWED
        weights = [weight for weight, _ in self._kinds.values()]
        self.chosen = rng.choices(list(self._kinds), weights, k=rng.choice((1, 2, 3, 4, 5)))
        if world.workers == 1 and world.rng.random() < 0.5:
            self.chosen.insert(0, "workers")
        world.machine.net.slow = rng.random() < 0.3
        world.machine.slow_disk = rng.random() < 0.4
        world.machine.slow_share = rng.choice((0.05, 0.5))
        self.chosen.sort(key=lambda kind: kind == "owing")  # no later start takes up what was left lying
        self._mover: asyncio.Task[Any] | None = None

    def hit(self, kind: str) -> None:
        """It has happened."""
        self.fired[kind] = self.fired.get(kind, 0) + 1
        self.world.trace("fault", kind)

    async def run(self) -> None:
        """Lets all chosen ones happen."""
        rng = self.rng
        for kind in self.chosen:
            await asyncio.sleep(rng.choice((0.05, 0.3, 1.0)) * rng.random())
            tries = 0
            while tries < TRIES:
                tries += not self._is_awaited()
                if self._held():  # the operator looks, and starts it again
                    await self._start_again()
                if await self._kinds[kind][1](self):
                    self.hit(kind)
                    break
                await asyncio.sleep(TRY_S)
            else:
                raise Violation(f"the fault {kind} never happened; {self.world.state()}")
        await asyncio.sleep(0.2)
        self.done = True

    def _is_awaited(self) -> bool:
        """Whether a worker that hangs has a lock for which a start waits (`together.left_over`)."""
        long_ns = self.world.kernel.now_ns + 2 * SECOND_NS
        return any(process.loop.hung_until_ns > long_ns for process in self.world.machine.processes.values())

    # -- processes --------------------------------------------------------------------------------------------------

    def _workers(self) -> list[SimProcess]:
        processes = self.world.machine.processes.values()
        return [process for process in processes if process.name.startswith("worker-")]

    async def _wait(self, is_over: Callable[[], bool], seconds: float = 1.0) -> bool:
        for _ in range(int(seconds / 0.01)):
            if is_over():
                return True
            await asyncio.sleep(0.01)
        return False

    async def kill_worker(self) -> bool:
        workers = self._workers()
        if workers:
            self.rng.choice(workers).kill()
        return bool(workers)

    async def kill_supervisor(self) -> bool:
        process = self.world.supervising
        if self.world.supervisor is None or process is None:
            return False
        process.kill()
        return True

    async def kill_all(self) -> bool:
        if self.world.supervisor is None:
            return False
        for process in list(self.world.machine.processes.values()):
            process.kill()
        return True

    async def power(self) -> bool:
        if self.world.supervisor is None:
            return False
        self.world.machine.lose_power()
        return True

    async def power_at_call(self) -> bool:
        return await self._at_call("power")

    async def kill_at_call(self) -> bool:
        return await self._at_call("kill")

    async def _at_call(self, error: int | str) -> bool:
        """At one of the coming calls of some process's disk."""
        followers = self.world.followers  # whose disk is another one
        running = [
            process
            for process in self.world.machine.processes.values()
            if followers is None or process not in followers.running
        ]
        if not running:
            return False
        process = self.rng.choice(running)
        if self.rng.random() < 0.5:
            process.disk.fail(error, calls_ahead=self.rng.choice((1, 1, 2, 2, 3, 5, 8, 20)))
        else:
            process.disk.fail(error, calls_ahead=self.rng.choice((1, 1, 2, 3)), only=self.rng.choice(CALLS))
        await self._wait(lambda: process.disk.fired > 0 or process.exit_code is not None)
        process.disk.spare()
        return process.disk.fired > 0

    async def recovery_cut(self) -> bool:
        """A worker ends in the middle of its recovery."""
        machine = self.world.machine
        workers = self._workers()
        if not workers:
            return False
        victim = self.rng.choice(workers)
        machine.next_fault[victim.name] = (self.rng.randrange(1, 30), self.rng.choice(("kill", "power")))
        machine.next_fired = 0
        victim.kill()
        fired = await self._wait(lambda: machine.next_fired > 0)
        machine.next_fault.clear()
        return fired

    async def restart(self) -> bool:
        if not self.world.is_ready():
            return False
        await self.world.restart()
        return await self._wait(self.world.is_ready, 20)

    async def workers(self) -> bool:
        """Another number of workers: shards are added, or drained and gone."""
        world = self.world
        if not world.is_ready():
            return False
        await world.restart(self.rng.choice([count for count in (1, 2, 3) if count != world.workers]))
        return True

    # -- the disk ---------------------------------------------------------------------------------------------------

    async def io_error(self) -> bool:
        """A call fails; the shard is held until somebody starts the daemon again, on the same machine or another."""
        if not await self._at_call(errno.EIO):
            return False
        await asyncio.sleep(self.rng.random())
        return await self._start_again()

    async def _start_again(self) -> bool:
        world = self.world
        if self.rng.random() < 0.3:
            world.machine.lose_power()
        elif world.supervisor is not None:
            await world.restart()
        return await self._wait(lambda: world.supervisor is not None, 20)

    async def no_room(self) -> bool:
        medium = self.world.machine.medium
        refusals = medium.refusals
        medium.capacity_bytes = medium.used_bytes() + self.rng.choice((0, 5_000, 30_000))
        is_met = await self._wait(lambda: medium.refusals > refusals, 3.0)
        if is_met:
            await asyncio.sleep(self.rng.random())
        medium.capacity_bytes = None
        return is_met

    async def short_write(self) -> bool:
        return await self._at_call("short")

    async def rot(self) -> bool:
        """A bit of what was durable turns over while the daemon is down. It may be refused, then the disk is mended;
        or else nothing may come of it.
        """
        world, rng = self.world, self.rng
        if not world.is_ready():
            return False
        world.restart_wanted = False
        await (self.power() if rng.random() < 0.5 else self.kill_all())
        medium = world.machine.medium
        paths = [
            f"{path}/{name}"
            for path, directory in medium.directories.items()
            for name in directory.names
            if path.startswith(DATA) and name != "lock" and len(medium.node(f"{path}/{name}").content)
        ]
        aimed = self._aim(paths) if rng.random() < 0.6 else None
        if aimed is None:
            path = rng.choice(sorted(paths))
            bit = rng.randrange(8 * self._provable(path))
        else:
            path, bit = aimed
        world.rotten = True
        node = medium.node(path)
        whole = medium.directories[path.rpartition("/")[0]].image()
        medium.flip(path, bit)
        world.trace("rot", path, bit)
        world.restart_wanted = True
        world.start()
        refused = len(world.refused)
        await self._wait(lambda: world.is_ready() or len(world.refused) > refused or self._held(), 5.0)
        was_refused = self._held() or len(world.refused) > refused
        if was_refused:
            self.fired["rot refused"] = self.fired.get("rot refused", 0) + 1
        else:
            self._compare_journals(aimed is not None)
        await asyncio.sleep(rng.random() * 0.2)
        world.restart_wanted = False
        await self.kill_all()
        if was_refused:
            # What refuses may have cut off a tail before it knew: damage of the last batch looks like a torn write.
            medium.directories[path.rpartition("/")[0]].put_back(whole)
        else:
            for directory in medium.directories.values():
                if node in directory.names.values():
                    for data in (node.content, node.stable):
                        if len(data) > bit >> 3:
                            data[bit >> 3] ^= 1 << (bit & 7)
        world.restart_wanted = True
        world.start()
        return True

    def _provable(self, path: str) -> int:
        """How many bytes of a file can be told from torn ones: all that there are, of a segment not its last batch, for
        whose durability nothing stands yet.
        """
        content = bytes(self.world.machine.medium.node(path).content)
        segment = segment_of(content) if is_segment(path.rpartition("/")[2]) else None
        if segment is None:
            return max(len(content.rstrip(b"\0")), 1)
        starts = [4096, *(offset for _, _, offset, *_ in batches_of(content, segment, 4096, segment.chain))]
        return starts[-2] if len(starts) > 1 else 4096

    def _aim(self, paths: list[str]) -> tuple[str, int] | None:
        """(path, bit) in a batch of some newest segment, behind which another one proves that it was durable."""
        newest = {path.rpartition("/")[0]: path for path in sorted(paths) if is_segment(path.rpartition("/")[2])}
        path = self.rng.choice(list(newest.values()))
        content = bytes(self.world.machine.medium.node(path).content)
        segment = segment_of(content)
        if segment is None:
            return None
        starts = [4096, *(offset for _, _, offset, *_ in batches_of(content, segment, 4096, segment.chain))][:-1]
        if len(starts) < 2:
            return None
        number = self.rng.randrange(len(starts) - 1)
        length = BATCH_HEADER_BYTES if self.rng.random() < 0.6 else starts[number + 1] - starts[number]
        return path, 8 * starts[number] + self.rng.randrange(8 * length)

    def _compare_journals(self, aimed: bool) -> None:
        """Damage that was not refused: what the journals read must be what was durable, or be refused when it is read
        at last: a start reads nothing that stands before its snapshot (I11).
        """
        for shard, process in self.world.processes.items():
            worker = process.worker
            if worker is None or worker._loop.is_closed():
                continue
            journal = worker.journal
            if aimed and journal.head < self.world.auditor.head(f"shard-{shard}"):
                raise Violation(f"shard {shard} goes on from {journal.head}, more was durable and is damaged (I11)")
            try:
                for position, payload in journal.replay(journal.first):
                    if self.world.auditor.durable(f"shard-{shard}", position) not in (None, payload):
                        raise Violation(f"shard {shard} reads batch {position} otherwise than it was written (I11)")
            except JournalError:
                self.fired["rot refused later"] = self.fired.get("rot refused later", 0) + 1

    def _held(self) -> bool:
        supervisor = self.world.supervisor
        return supervisor is not None and any(worker.state == "held" for worker in supervisor.workers.values())

    async def snapshot(self) -> bool:
        workers = [process.worker for process in self.world.processes.values() if process.worker is not None]
        live = [worker for worker in workers if not worker._loop.is_closed() and not worker.snapshotter.running]
        if not live:
            return False
        worker = self.rng.choice(live)
        count = worker.snapshotter.count
        worker.snapshotter.begin()
        worker.wake()
        return await self._wait(lambda: worker.snapshotter.count > count)

    # -- wires, clocks, the endpoint --------------------------------------------------------------------------------

    async def cut_link(self) -> bool:
        """A wire between two workers."""
        if not await self._two_shards():
            return False
        streams = [peer for peer in self.world.machine.net.peers if not any(end.is_closing() for end in peer.ends)]
        if streams:
            self.rng.choice(streams).cut()
        return bool(streams)

    async def cut_client(self) -> bool:
        streams = [client.stream for client in self.clients if client.stream is not None]
        streams = [stream for stream in streams if not any(end.is_closing() for end in stream.ends)]
        if streams:
            self.rng.choice(streams).cut()
        return bool(streams)

    async def clock_step(self) -> bool:
        self.world.kernel.wall_offset_ns += self.rng.choice((-1, 1)) * self.rng.choice((10**8, 10**9, 3600 * 10**9))
        return True

    async def bad_endpoint(self) -> bool:
        endpoint_faults, rng = self.world.endpoint_faults, self.rng
        faults_met = sum(endpoint_faults.met.values())
        for name in rng.sample(ENDPOINT, 2):
            endpoint_faults.wrong[name] = rng.choice((0.3, 0.5, 0.9))
        endpoint_faults.wrong["dropped"] = 0.1
        return await self._wait(lambda: sum(endpoint_faults.met.values()) > faults_met)

    # -- moves ------------------------------------------------------------------------------------------------------

    async def move(self) -> bool:
        """One bucket, by hand."""
        world, rng = self.world, self.rng
        if not await self._two_shards() or world.supervisor is None or not world.supervisor.workers:
            return False
        bucket, shard = rng.randrange(1, world.buckets + 1), rng.choice(sorted(world.supervisor.workers))
        _, result = await self.operator.ask("move_bucket", bucket, shard)
        if result is None:
            return False
        if world.auditor.owner[bucket][1] < result["generation"]:
            raise Violation(f"bucket {bucket} is said to be moved: {result}, but is {world.auditor.owner[bucket]}")
        return True

    async def moves(self) -> bool:
        """Several, while the next faults come."""
        if not await self._two_shards():
            return False

        async def move_some() -> None:
            for _ in range(12):
                await self.move()
                await asyncio.sleep(self.rng.random() * 0.05)

        if self._mover is None or self._mover.done():
            self._mover = self.world.task(move_some())
        return True

    async def _two_shards(self) -> bool:
        """Whether there are; where there is one, the daemon is started with more."""
        world = self.world
        if world.workers > 1:
            return True
        if world.is_ready():
            await world.restart(self.rng.choice((2, 3)))
        return False

    async def rebalance(self) -> bool:
        supervisor, process = self.world.supervisor, self.world.supervising
        if supervisor is None or process is None or not await self._two_shards():
            return False
        process.loop.call_soon(supervisor.mover.begin_rebalance)
        return True


Fault = Callable[[FaultInjector], Awaitable[bool]]
KINDS: dict[str, tuple[int, Fault]] = {
    "kill_worker": (4, FaultInjector.kill_worker),
    "kill_supervisor": (2, FaultInjector.kill_supervisor),
    "kill_all": (2, FaultInjector.kill_all),
    "power": (5, FaultInjector.power),
    "power_at_call": (6, FaultInjector.power_at_call),
    "kill_at_call": (3, FaultInjector.kill_at_call),
    "recovery_cut": (3, FaultInjector.recovery_cut),
    "restart": (2, FaultInjector.restart),
    "workers": (3, FaultInjector.workers),
    "io_error": (4, FaultInjector.io_error),
    "no_room": (2, FaultInjector.no_room),
    "short_write": (1, FaultInjector.short_write),
    "rot": (5, FaultInjector.rot),
    "snapshot": (5, FaultInjector.snapshot),
    "cut_link": (3, FaultInjector.cut_link),
    "cut_client": (2, FaultInjector.cut_client),
    "clock_step": (2, FaultInjector.clock_step),
    "bad_endpoint": (4, FaultInjector.bad_endpoint),
    "move": (5, FaultInjector.move),
    "moves": (5, FaultInjector.moves),
    "rebalance": (2, FaultInjector.rebalance),
    "set_back": (3, together.set_back),
    "left_over": (4, together.left_over),
    "busy_end": (5, together.busy_end),
    "owing": (7, together.owing),
}
FOLLOWED: dict[str, tuple[int, Fault]] = {"draining": (30, draining.draining)}  # in worlds with followers
