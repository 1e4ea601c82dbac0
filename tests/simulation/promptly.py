"""One user never holds up another (I25), looked at throughout a run and not only in its last act.

In some runs the endpoint fails from the start for half of the users, each in a way of its own. Every `LOOK_NS` of each
run it is looked who is owed a first call that would succeed. The call has to come within `BOUND_S` of its cause, of the
end of the user's call before, or of the moment at which the world last became calm, whichever is latest: whatever was
answered for others, and for this user's earlier cutoffs, whatever was killed, moved or resized before. Not calm is a
world in which a shard is not served, a bucket moves, a process hangs, the disk is slow or full, or the endpoint fails
for everybody alike: then the delay has another cause.

The bound is the outbox's own (`billing.expirationd.outbox`): S * (2 + 3 * F / C), with S = 0.5 s, F of at most
8 users and C = 8 calls at once, and a second for what is recorded and connected before.
"""

from __future__ import annotations

import random

from tests.simulation.auditor import Violation
from tests.simulation.loop import SECOND_NS
from tests.simulation.outside import SICK
from tests.simulation.world import World

SHARE = 0.5  # of the runs have sick users throughout
LOOK_NS = SECOND_NS // 10
BOUND_S = 3.5


class PromptnessWatch:
    """Looks at one world until it is told to stop."""

    def __init__(self, world: World) -> None:
        self.waited = 0  # looks at which somebody was owed a first call in a calm world
        self.worst_ns = 0  # the longest wait that was seen
        self._world = world
        self._ill: set[bytes] = set()
        self._calm_since_ns = -1
        self._stopped = False
        world.outside.call_in(LOOK_NS, self._look)

    def stop(self) -> None:
        """Looks no more."""
        self._stopped = True

    def _look(self) -> None:
        if self._stopped:
            return
        if self._is_calm():
            if self._calm_since_ns < 0:
                self._calm_since_ns = self._world.auditor.billing_ns(self._world.kernel.boot_ns())
            self._check()
        else:
            self._calm_since_ns = -1
        self._world.outside.call_in(LOOK_NS, self._look)

    def _is_calm(self) -> bool:
        world, machine = self._world, self._world.machine
        supervisor = world.supervisor
        if supervisor is None or not world.is_ready() or machine.slow_disk or world.endpoint_faults.wrong:
            return False
        if machine.medium.capacity_bytes is not None or supervisor.mover.running or supervisor.mover.rebalancing:
            return False
        return all(process.loop.hung_until_ns <= world.kernel.now_ns for process in machine.processes.values())

    def _check(self) -> None:
        auditor, now_ns = self._world.auditor, self._world.auditor.billing_ns(self._world.kernel.boot_ns())
        self._ill.update(self._world.endpoint_faults.sick)
        for user, seq, since_ns in auditor.uncalled():
            if user in self._ill:  # or was: its last call may still hang
                continue
            waits_ns = now_ns - max(since_ns, self._calm_since_ns)
            self.waited += 1
            self.worst_ns = max(self.worst_ns, waits_ns)
            if waits_ns > BOUND_S * SECOND_NS:
                late_s = waits_ns / SECOND_NS
                sick = self._world.endpoint_faults.sick
                raise Violation(f"cutoff {seq} of {user!r} is not called after {late_s:.1f} s, beside {sick} (I25)")


def make_sick(seed: int, world: World, users: list[bytes]) -> None:
    """Lets the endpoint fail for half of the users, in some runs."""
    rng = random.Random(seed ^ 0x51C6)
    if rng.random() < SHARE:
        world.endpoint_faults.sick = {user: rng.choice(SICK) for user in rng.sample(users, len(users) // 2)}
