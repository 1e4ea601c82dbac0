"""What goes wrong in a run: drawn from the seed, counted when it has really happened."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable

from tests.simulation.auditor import Violation
from tests.simulation.clients import Client
from tests.simulation.world import World


class Chaos:
    """The faults of one run, one after the other, at random moments."""

    def __init__(self, world: World, clients: list[Client], rng: random.Random) -> None:
        self.world = world
        self.clients = clients
        self.rng = rng
        self.fired: dict[str, int] = {}
        self.done = False
        kinds = list(KINDS)
        self.chosen = rng.choices(kinds, [KINDS[kind][0] for kind in kinds], k=rng.choice((1, 2, 3, 4)))

    def hit(self, kind: str) -> None:
        """It has happened."""
        self.fired[kind] = self.fired.get(kind, 0) + 1
        self.world.trace("fault", kind)

    async def run(self) -> None:
        """Lets all chosen ones happen."""
        rng = self.rng
        for kind in self.chosen:
            await asyncio.sleep(rng.choice((0.05, 0.3, 1.0)) * rng.random())
            for _ in range(2000):
                if await KINDS[kind][1](self):
                    break
                await asyncio.sleep(0.01)
            else:
                raise Violation(f"the fault {kind} could not be injected in 20 s; {self.world.state()}")
        await asyncio.sleep(0.2)
        self.done = True

    def heal(self) -> None:
        """Nothing goes wrong from here on."""
        self.world.moods.wrong.clear()

    def check_fired(self) -> None:
        """A fault that never happened fails the run."""
        for kind in self.chosen:
            if not self.fired.get(kind):
                raise Violation(f"the fault {kind} never happened")

    # -- processes --------------------------------------------------------------------------------------------------

    def _worker(self) -> int:
        """A shard whose worker runs; 0: none does."""
        names = [process.name for process in self.world.machine.processes.values()]
        running = [name for name in names if name.startswith("worker-")]
        return int(self.rng.choice(running).removeprefix("worker-")) if running else 0

    async def kill_worker(self) -> bool:
        shard = self._worker()
        if not shard:
            return False
        process = self.world.process_of(shard)
        assert process is not None
        self.hit("kill_worker")
        process.kill()
        return True

    async def kill_supervisor(self) -> bool:
        process = self.world.supervising
        if self.world.supervisor is None or process is None:
            return False
        self.hit("kill_supervisor")
        process.kill()
        return True

    async def kill_all(self) -> bool:
        if self.world.supervisor is None:
            return False
        self.hit("kill_all")
        for process in list(self.world.machine.processes.values()):
            process.kill()
        return True

    async def power(self) -> bool:
        if self.world.supervisor is None:
            return False
        self.hit("power")
        self.world.machine.lose_power()
        return True

    async def power_at_call(self) -> bool:
        return await self._at_call("power_at_call", "power")

    async def kill_at_call(self) -> bool:
        return await self._at_call("kill_at_call", "kill")

    async def _at_call(self, kind: str, what: str) -> bool:
        """At one of the coming calls of some process's disk; of its recovery, too, where it is killed first."""
        process = self._some_process()
        if process is None:
            return False
        process.disk.fail(what, calls_ahead=self.rng.choice((1, 2, 3, 5, 8, 20, 40)))
        fired = await self._wait(lambda: process.disk.fired > 0 or process.exit_code is not None)
        if not fired or not process.disk.fired:
            process.disk.spare()
            return False
        self.hit(kind)
        return True

    def _some_process(self) -> object:
        running = list(self.world.machine.processes.values())
        return self.rng.choice(running) if running else None

    async def _wait(self, until: Callable[[], bool]) -> bool:
        for _ in range(100):
            if until():
                return True
            await asyncio.sleep(0.01)
        return False

    # -- the endpoint -----------------------------------------------------------------------------------------------

    async def bad_endpoint(self) -> bool:
        moods, rng = self.world.moods, self.rng
        before = sum(moods.met.values())
        for name in rng.sample(("refused", "slow", "5xx", "4xx", "lost"), 2):
            moods.wrong[name] = rng.choice((0.3, 0.5, 0.9))
        moods.wrong["dropped"] = 0.1
        if not await self._wait(lambda: sum(moods.met.values()) > before):
            return False
        self.hit("bad_endpoint")
        return True


KINDS = {
    "kill_worker": (4, Chaos.kill_worker),
    "kill_supervisor": (2, Chaos.kill_supervisor),
    "kill_all": (2, Chaos.kill_all),
    "power": (6, Chaos.power),
    "power_at_call": (6, Chaos.power_at_call),
    "kill_at_call": (3, Chaos.kill_at_call),
    "bad_endpoint": (4, Chaos.bad_endpoint),
}
assert errno.EIO
