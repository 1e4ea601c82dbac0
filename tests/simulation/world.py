"""One run: a daemon of real code on a simulated machine, its clients, its endpoint, what goes wrong, and the auditor.

`World` starts and restarts the daemon as an init system would, and knows how to be at rest: nothing wrong any more, all
clients answered, nothing owed. `Run` (in `tests.simulation.run`) plays a seed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec.structs import replace

from billing.config.schema import Config, Cutoff, Ledger, Notify, class_of
from billing.expirationd.coming import coming_in
from billing.ledger.money import INT64_MAX
from billing.worker.application import Billing
from billing.worker.dependencies import WorkerDependencies
from shards.control import Begin, WorkerSettings
from shards.exits import Exit
from shards.supervisor.settings import SupervisorSettings
from shards.supervisor.supervisor import Supervisor
from shards.worker.process import Process
from tests.simulation.again import check_recovery
from tests.simulation.auditor import Auditor, Violation
from tests.simulation.calls import GRACES_S
from tests.simulation.course import CALLS_AT_ONCE, DATA, REST_S, SimulatedRun, supervisor_in
from tests.simulation.followers import Followers
from tests.simulation.loop import SECOND_NS
from tests.simulation.machine import Machine, SimProcess
from tests.simulation.outside import Archive, EndpointFaults, SimEndpoint, SimHistory
from tests.simulation.wires import NetLoop, SimSocket

LIFE_NS = 3600 * SECOND_NS  # of one run, in virtual time
STARTS_MAX = 300  # behind ends of the main process: where each start ends so, a run would last long and fill the memory


class World(SimulatedRun):
    """The machine, the daemon on it, and everybody around it."""

    def __init__(
        self,
        seed: int,
        *,
        workers: int = 2,
        buckets: int = 8,
        accrues: bool = False,
        restores: bool = True,
        leases: bool = True,
        follows: bool = False,
    ) -> None:
        """`leases`: a rate that is reported without a lease may get one of two seconds. `follows`: with the followers
        of history and notices as processes.
        """
        super().__init__()
        self.rng = random.Random(seed)
        self.machine = Machine(self.rng, self._on_sync)
        self.auditor = Auditor(self.machine.medium, accrues)
        self.endpoint_faults = EndpointFaults(random.Random(self.rng.getrandbits(64)))
        self.archive = Archive()
        self.kernel = self.machine.kernel
        self.outside = NetLoop(self.kernel, "outside", self.machine.net)  # type: ignore[abstract]
        self.outside.on_trouble = self.on_trouble
        self.door: SimSocket = self.machine.net.listen()
        self.workers = workers
        self.buckets = buckets
        self.snapshot_bytes = 64 * 1024
        self.supervisor: Supervisor | None = None
        self.supervising: SimProcess | None = None
        self.restart_wanted = True
        self.starts = 0  # behind an end that nobody asked for
        self.exits: list[tuple[str, int]] = []
        self.refused: list[str] = []  # why the daemon did not start, or a shard was held
        self.applications: dict[int, Billing] = {}
        self.processes: dict[int, Process] = {}  # shard -> its newest process
        cutoff = Cutoff(
            url="http://sim/cutoff",
            restore_url="http://sim/restore" if restores else "",
            after_exhaustion="accrue" if accrues else "clamp",
            concurrency=CALLS_AT_ONCE,
        )
        classes = {name: class_of(cutoff, grace_s=grace_s) for name, grace_s in GRACES_S.items()}
        self.config = Config(
            cutoff=replace(cutoff, classes=classes),
            notify=Notify(url="http://sim/notify" if follows else ""),
            ledger=Ledger(rate_lease_s=self.rng.choice((0, 0, 0, 2)) * leases),
        )
        self.machine.start_worker = self._start_worker
        self.machine.on_alarm = self._on_alarm
        self.auditor.late = self._late
        self._bodies: dict[int, Process] = {}  # by pid
        self.rotten = False  # bytes that were durable have changed
        self.batch_records = 8192  # see `shards.shard`
        self._chaos_rng = random.Random(self.rng.getrandbits(64))
        self.followers = Followers(self, random.Random(seed ^ 0xF011)) if follows else None

    def _on_sync(self, path: str, node: Any) -> None:
        try:
            self.auditor.on_sync(path, node)
            self._look_at_frozen()
        except Violation as error:
            self.trouble = self.trouble or error
            raise

    # -- the daemon -------------------------------------------------------------------------------------------------

    def settings(self) -> SupervisorSettings:
        return SupervisorSettings(
            data_dir=DATA,
            weights=dict.fromkeys(range(1, self.workers + 1), 1),
            bucket_count=self.buckets,
            slew_ppm_max=500,
            journal={
                "kind": "file",
                "directory": DATA,
                "sync": "always",
                "segment_bytes": 16 * 1024,
                "sync_interval_ns": 10**8,
            },
            worker=WorkerSettings(0.05, self.snapshot_bytes),
            direct_host="",
        )

    def start(self) -> None:
        """Starts the main process."""
        process = self.supervising = self.machine.start("supervisor")
        supervisor = self.supervisor = supervisor_in(process, self.settings(), self.door)
        process.on_end.append(self._on_supervisor_end)
        self.trace("start", process.pid)

        process.loop.on_trouble = self._on_process_trouble("supervisor")
        process.run(supervisor.run())

    def _on_supervisor_end(self, code: int) -> None:
        self.trace("supervisor ended", code)
        self.exits.append(("supervisor", code))
        self.supervisor = None
        failures, self.machine.failures = self.machine.failures, []
        for name, error in failures:
            self.refused.append(f"{name}: {type(error).__name__}: {error}")
        if self.restart_wanted:
            self.outside.call_in(self._chaos_rng.randrange(300_000_000), self._start_again)

    def _start_again(self) -> None:
        if self.supervisor is None and self.restart_wanted:
            self.starts += 1
            if self.starts > STARTS_MAX:
                self.trouble = self.trouble or Violation(
                    f"the daemon was started {self.starts} times: {self.exits[-3:]}"
                )
                return
            self.start()

    def _on_process_trouble(self, name: str) -> Callable[[dict[str, Any]], None]:
        def trouble(context: dict[str, Any]) -> None:
            error = context.get("exception")
            self.trace(name, "trouble", repr(error), context.get("message"))
            if isinstance(error, Violation):
                self.trouble = self.trouble or error
            elif "ends on a bug" in str(context.get("message")) or not isinstance(error, OSError):
                self.trouble = self.trouble or error or Violation(f"{name}: {context}")

        return trouble

    def _start_worker(self, process: SimProcess, control: SimSocket) -> Any:
        followers = self.followers
        if followers is not None and not process.name.startswith("worker"):
            return followers.start(process, control)

        def build(begin: Begin) -> Billing:
            process.name = f"worker-{begin.shard_id}"
            process.loop.name = process.name
            if process.name in self.machine.next_fault:
                call, error = self.machine.next_fault.pop(process.name)
                process.doomed = True
                process.disk.fail(error, calls_ahead=call)
            dependencies = WorkerDependencies(
                clocks=self.machine.clocks,
                disk=process.disk,
                rng=process.rng,
                history=lambda shard, _: SimHistory(self.archive, shard.shard_id, shard.journal),  # type: ignore
                endpoint=lambda origin, _, clocks, __: SimEndpoint(  # type: ignore
                    origin, clocks, self.endpoint_faults, self.auditor, self.trace
                ),
                executor=process.host().executor,
            )
            if followers is not None:
                dependencies = dependencies._replace(
                    history=partial(followers.history, process), notices=partial(followers.notices, process)
                )
            application = self.applications[begin.shard_id] = Billing(self.config, begin, dependencies)
            self.processes[begin.shard_id] = self._bodies[process.pid] = body
            self.trace("worker", begin.shard_id, process.pid)
            process.on_end.append(lambda code: self._on_worker_end(process, begin.shard_id, code))
            return application

        process.loop.on_trouble = self._on_process_trouble("worker")
        body = Process(control, build, process.host())  # type: ignore[arg-type]
        return body.run()

    def _on_worker_end(self, process: SimProcess, shard_id: int, code: int) -> None:
        self.trace("worker ended", shard_id, code)
        self.exits.append((f"worker-{shard_id}", code))
        self._look_at_timers()
        if code == Exit.DISK and not process.disk.fired and not self.machine.medium.refusals:
            self.on_trouble({"message": f"shard {shard_id} ended with {code}, and its disk did nothing wrong"})
        if code == Exit.DAMAGED and not self.rotten:
            self.on_trouble({"message": f"shard {shard_id} ended with {code}, and nothing was damaged"})

    def _on_alarm(self, process: SimProcess, boot_ns: int) -> None:
        self.audit_alarm(self.auditor.armed, self._bodies[process.pid], boot_ns)

    def _late(self) -> set[int]:
        supervisor = self.supervisor
        return (
            set()
            if supervisor is None
            else {worker.shard_id for worker in supervisor.workers.values() if worker.is_late}
        )

    def _look_at_frozen(self) -> None:
        """No time passes in a bucket that is on its way out."""
        for shard_id, application in self.applications.items():
            worker = self.processes[shard_id].worker
            if worker is not None and not worker._loop.is_closed():
                for bucket_id, book in application.machine.ledger.books.items():
                    if book.awake and worker.shard.is_frozen(bucket_id):
                        raise Violation(f"shard {shard_id}: time passes in bucket {bucket_id}, which is frozen (I14)")

    def _look_at_timers(self) -> None:
        """The scrubber of `billing.worker.periodic_checks` would mend timers that are missing; there must be none."""
        for shard_id, application in self.applications.items():
            serving = application.serving
            if serving is not None and serving.calls.checks._scrubber.mismatches:
                self.on_trouble({"message": f"shard {shard_id}: accounts were not filed for what is coming (I18)"})

    def _look_at_books(self) -> None:
        """At rest time passes in every bucket, and every account is filed for what is coming."""
        for process in self.live():
            shard = process.worker.shard  # type: ignore[union-attr]
            ledger = self.applications[shard.shard_id].machine.ledger
            for bucket_id, book in ledger.books.items():
                coming_instants = coming_in(book, ledger.call_at_ns, 0, len(book.users))
                late_slots = [slot for slot, _, due_ns in coming_instants if book.armed_ns[slot] > due_ns <= INT64_MAX]
                if late_slots or book.awake != (bucket_id in shard.held):
                    description = f"awake: {book.awake}, not filed in time: {late_slots}"
                    self.on_trouble(
                        {"message": f"shard {shard.shard_id}, bucket {bucket_id} at rest: {description} (I18)"}
                    )

    def process_of(self, shard_id: int) -> SimProcess | None:
        """The running process of a shard."""
        name = f"worker-{shard_id}"
        return next((process for process in self.machine.processes.values() if process.name == name), None)

    # -- running ----------------------------------------------------------------------------------------------------

    def state(self) -> str:
        """Where everything is, for a message."""
        supervisor = self.supervisor
        reasons = ["no supervisor"] if supervisor is None else supervisor.unserved()
        return f"not ready: {reasons}, refused: {self.refused}, exits: {self.exits[-6:]}, owed: {self.auditor.owed()}"

    def is_ready(self) -> bool:
        """Every bucket is served."""
        supervisor = self.supervisor
        return supervisor is not None and bool(supervisor.workers) and not supervisor.unserved()

    def is_quiet(self) -> bool:
        """Every bucket is served, nothing is owed, nothing moves, nothing waits for the disk."""
        supervisor = self.supervisor
        if supervisor is None or not self.is_ready():
            return False
        if supervisor.mover.running or supervisor.mover.rebalancing:
            return False
        if set(supervisor.map.weights) != set(range(1, self.workers + 1)):
            return False  # some are still being drained
        awake_ns = max(process.loop.hung_until_ns for process in self.machine.processes.values()) + SECOND_NS
        if awake_ns > self.kernel.now_ns:
            return False
        workers = [process.worker for process in self.live()]
        if any(worker is None or worker._writing or worker.shard.has_more() for worker in workers):
            return False
        if any(worker.shard._frozen or worker.shard._arrived for worker in workers if worker is not None):
            return False  # the last word of a move is on its way
        notices_untold = self.followers.notice_auditor.unsent() if self.followers is not None else []
        return not self.auditor.owed() and not notices_untold

    def live(self) -> list[Process]:
        """The processes of all shards, in order."""
        assert self.supervisor is not None
        return [self.processes[shard_id] for shard_id in sorted(self.supervisor.workers)]

    def heal(self) -> None:
        """Nothing goes wrong from here on; a daemon that is down, or has a shard that is held, is started again."""
        self.endpoint_faults.wrong.clear()
        self.endpoint_faults.sick.clear()
        self.machine.slow_disk = self.machine.net.slow = False
        self.machine.medium.capacity_bytes = None
        for process in self.machine.processes.values():
            process.disk.spare()
        if self.supervisor is None:
            self._start_again()
        elif any(worker.state == "held" for worker in self.supervisor.workers.values()):
            self.task(self.restart())

    def rest(self) -> None:
        """Waits until it is quiet, then lets the auditor look."""
        self.run(self.is_quiet, REST_S, "everything at rest")
        self._look_at_timers()
        self._look_at_books()
        self.run(lambda: True, 1, "timers are as they must be")
        self.auditor.finish()
        check_recovery(self)

    def close(self) -> None:
        """Ends everything at once, also what is stuck, so that nothing of this world is left."""
        self.restart_wanted = False
        for process in list(self.machine.processes.values()):
            process.kill()
        self.outside.die()
        if self.followers is not None:
            self.followers.close()

    async def restart(self, workers: int = 0) -> None:
        """An orderly end and a start, with that many workers (0: as before); returns when every bucket is served."""
        self.workers = workers or self.workers
        supervisor_before = self.supervisor
        if supervisor_before is not None:
            supervisor_before.stop()
            while self.supervisor is supervisor_before:
                await asyncio.sleep(0.01)
        if self.supervisor is None:
            self.start()

    def stop(self) -> None:
        """An orderly end."""
        self.restart_wanted = False
        if self.supervisor is not None:
            self.supervisor.stop()
            self.run(lambda: self.supervisor is None and not self.machine.processes, 40, "an orderly end")
        for name, code in self.exits[-1 - self.workers :]:
            if code not in (0, -9, Exit.DAMAGED, Exit.DISK):
                raise Violation(f"{name} ended with {code}")
