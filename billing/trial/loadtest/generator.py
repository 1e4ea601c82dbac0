"""A generator: one process that sends its share of the load and judges its own accounts.

The coordinator sends it one step after the other over the socket that it inherits, and it replies when a step is done:

    coordinator → generator                    generator → coordinator
    (number, "open", order)                    (number, "progress", answered)
    (number, "preload", run)                   (number, "done", result as JSON)
    (number, "aim", run, instant)              (number, "failed", text)
    (number, "drive", run, start, rate)
    (number, "read", run)
    (number, "settle", instant)

`open` connects. `preload` tops up the accounts and arms those that are to be aimed. `aim` makes each armed account run
out at its instant, which counts from a billing instant. `drive` sends the load from a boot instant on; only this step
is measured. `read` asks for every account, and runs the model over all answers of the run. `settle` lets time pass in
the model, and returns the cutoffs that had to come.

During `drive` the process does nothing else: answers are kept in columns, and the garbage collector is off. If it may,
the process raises its own priority, because it sleeps most of the time, and its own lateness would spoil the
measurement. When the wire closes, the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop

from billing.client.batch import Batch
from billing.client.errors import BillingError
from billing.trial.loadtest import workload as work
from billing.trial.loadtest.assess import Assessment
from billing.trial.loadtest.columns import NEVER, READ, Columns
from billing.trial.loadtest.load_driver import INTERVAL_NS, ClosedLoop, LoadDriver, MeasuredSpan, OpenLoop
from billing.trial.loadtest.plan import Plan
from billing.trial.loadtest.signing_in import SignIn
from billing.trial.loadtest.trace_plan import Tracing, plan_of
from billing.trial.loadtest.workload import Mixer, Share, Workload
from shards.system.clock import MACHINE_CLOCKS
from shards.system.links import Wire

MORE_AT_ONCE = 4096  # commands made at a time in a closed loop
PRIORITY = -10  # niceness
PHASE_DEPTH = 512  # open commands a connection in phases that are not measured


class Order(msgspec.Struct, frozen=True):
    """The order of a generator: the daemon, the load, and its share of it."""

    address: str
    workload: Workload
    share: Share = Share()
    sign_in: SignIn = SignIn()
    connections: int = 1  # of this process
    depth: int = 4096  # open commands a connection
    suffix: str = ""  # of user ids
    tracing: Tracing | None = None
    interval_ns: int = INTERVAL_NS


class Generator:
    """The steps, in the order of the module's docstring."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._batches: list[Batch] = []
        self._driver: LoadDriver | None = None
        self._columns: Columns | None = None
        self._assessment = Assessment()
        self._plan: Plan | None = None
        self._armed: dict[int, int] = {}  # user -> coming instant
        self._users: list[str] = []
        self._mixed = 0

    async def open(self, _: Callable[[int], None]) -> dict[str, Any]:
        """Connects. Returns the number of users and, for a trace, the figures of its plan."""
        order = self._order
        if order.tracing is not None:
            self._plan = plan_of(order.tracing, order.workload.seed, order.suffix)
            self._users = self._plan.users[order.share.number :: order.share.of]
        else:
            self._users = work.names(order.workload, order.share, order.suffix)
            self._mixed = order.share.count(order.workload.accounts)
        client = order.sign_in.client(order.address)
        for _number in range(order.connections):
            batch = client.batch(self._on_answer, self._on_read)
            await batch.connect()
            self._batches.append(batch)
        plan = self._plan
        return {
            "users": len(self._users),
            "plan": None if plan is None else [len(plan.steps), plan.machines, plan.dry, plan.end_ns],
        }

    async def preload(self, on_progress: Callable[[int], None], run: int) -> dict[str, Any]:
        """Tops up the accounts of a run, and arms the aimed ones."""
        columns = self._columns = Columns(run, self._users)
        if self._plan is None:
            work.preload(columns, run == 0, self._mixed)
            self._mixer = Mixer(self._order.workload, self._order.share, run)
        driver = await self._phase(columns, 0, on_progress)
        if self._plan is None:
            for row, user in enumerate(columns.user):
                if user >= self._mixed and columns.exhausts[row] != NEVER:
                    self._armed[user] = columns.exhausts[row]
        return _came_of(driver)

    async def aim(self, on_progress: Callable[[int], None], run: int, start_ns: int) -> dict[str, Any]:
        """Makes each armed account run out at its instant, which counts from the billing instant `start_ns`."""
        columns = self._columns_of(run)
        offsets = work.aims(self._order.workload, self._order.share, run)
        wanted_ns = {user: start_ns + offset for user, offset in zip(sorted(self._armed), offsets, strict=True)}
        first = len(columns)
        work.aim(columns, self._armed, wanted_ns)
        self._armed = {}
        driver = await self._phase(columns, first, on_progress)
        missed = sum(columns.exhausts[row] == NEVER for row in range(first, len(columns)))
        return {**_came_of(driver), "missed": missed}

    async def drive(self, on_progress: Callable[[int], None], run: int, start_ns: int, rate: float) -> dict[str, Any]:
        """Sends the load from the boot instant `start_ns` on. `rate`: commands a second of all processes together."""
        columns, order = self._columns_of(run), self._order
        load = order.workload
        first = len(columns)
        end_ns = int((load.warmup_s + load.seconds) * work.SECOND_NS)
        if self._plan is not None:
            work.traced(columns, self._plan, order.share)
        elif not load.closed:
            self._mixer.until(columns, end_ns, rate)
        began_ns = max(start_ns, MACHINE_CLOCKS.boot_ns())
        loop: OpenLoop | ClosedLoop = OpenLoop(order.depth)
        if load.closed and self._plan is None:
            loop = ClosedLoop(order.depth, lambda: self._mixer.more(columns, MORE_AT_ONCE), began_ns + end_ns)
        warm_ns = 0 if self._plan is not None else int(load.warmup_s * work.SECOND_NS)
        measured = MeasuredSpan(began_ns, warm_ns, order.interval_ns)
        driver = self._driver = LoadDriver(columns, self._batches, loop, first=first, measured=measured)
        columns.seal()
        gc.collect()
        gc.freeze()
        gc.disable()
        before = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.sleep(max(0, start_ns - MACHINE_CLOCKS.boot_ns() - 10**6) / 1e9)
        busy_ns = MACHINE_CLOCKS.boot_ns()
        await driver.run(on_progress)
        after = resource.getrusage(resource.RUSAGE_SELF)
        gc.enable()
        gc.unfreeze()
        return {
            **_came_of(driver),
            "late_start_ns": max(0, busy_ns - start_ns),
            "planned": len(columns) - first,
            "kinds": [columns.kind[first:].count(kind) for kind in range(READ + 1)],
            "took_ns": driver.ended_ns - driver.started_ns,
            "latency": driver.latency.sparse(),
            "service": driver.service.sparse(),
            "lateness": driver.lateness.sparse(),
            "intervals": [each.sparse() for each in driver.intervals],
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        }

    async def read(self, on_progress: Callable[[int], None], run: int) -> dict[str, Any]:
        """Sends `get_account` for every account, and compares all answers of the run with the model's."""
        columns = self._columns_of(run)
        first = len(columns)
        for user in range(len(columns.users)):
            columns.add(0, user, READ, 0)
        driver = await self._phase(columns, first, on_progress)
        assessment = self._assessment
        assessment.apply(columns)
        self._columns = None
        return {
            **_came_of(driver),
            "wrong_replies": assessment.wrong_replies,
            "wrong_balances": assessment.wrong_balances,
            "wrong_refusals": assessment.wrong_refusals,
            "told": [*assessment.told, *driver.told],
        }

    async def settle(self, _: Callable[[int], None], at_ns: int) -> dict[str, Any]:
        """Lets time pass in the model to an instant. Returns the claims, and the next coming exhaustion."""
        self._assessment.settle(at_ns)
        return {
            "claims": [
                (
                    each.user_id,
                    [(cutoff.seq, cutoff.at_ns) for cutoff in each.cutoffs],
                    each.superseded,
                    sorted(each.overtaken),
                )
                for each in self._assessment.claims()
            ],
            "coming": self._assessment.soonest_ns(),
            "seq_base": self._assessment.seq_base,
        }

    def close(self) -> None:
        """Closes the connections."""
        for batch in self._batches:
            batch.close()

    async def _phase(self, columns: Columns, first: int, on_progress: Callable[[int], None]) -> LoadDriver:
        """Sends the rows from `first` on in a closed loop, as fast as they are answered."""
        driver = self._driver = LoadDriver(columns, self._batches, ClosedLoop(PHASE_DEPTH), first=first)
        await driver.run(on_progress)
        return driver

    def _columns_of(self, run: int) -> Columns:
        assert self._columns is not None
        assert self._columns.run == run
        return self._columns

    def _on_answer(self, row: int, error: BillingError | None, reply: Any) -> None:
        assert self._driver is not None
        self._driver.on_answer(row, error, reply)

    def _on_read(self) -> None:
        if self._driver is not None:
            self._driver.on_read()


def _came_of(driver: LoadDriver) -> dict[str, Any]:
    return {
        "answered": driver.answered,
        "refused": driver.refused,
        "stale": driver.stale,
        "retries": driver.retries,
        "held": driver.held,
        "failed": driver.failed,
        "told": driver.told,
        "skew": (driver.skew.low_ns, driver.skew.high_ns),
    }


async def _serve(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    messages: asyncio.Queue[Any] = asyncio.Queue()
    _, wire = await loop.create_connection(
        lambda: Wire(lambda _, message: messages.put_nowait(message), lambda _: messages.put_nowait(None), _nothing),
        sock=connection,
    )
    generator: Generator | None = None
    while (message := await messages.get()) is not None:
        number, step, *arguments = message
        try:
            if step == "open":
                generator = Generator(msgspec.json.decode(arguments.pop(), type=Order))
            assert generator is not None, "nothing is open yet"
            came = await getattr(generator, step)(_progress(wire, number), *arguments)
        except Exception as error:
            wire.send((number, "failed", f"{type(error).__name__}: {error}"))
        else:
            wire.send((number, "done", msgspec.json.encode(came)))
    if generator is not None:
        generator.close()


def _nothing(_: Wire) -> None:
    return None


def _progress(wire: Wire, number: int) -> Callable[[int], None]:
    return lambda answered: wire.send((number, "progress", answered))


def main(arguments: list[str]) -> None:
    """Runs the process until the wire closes. `arguments`: the number of the wire's descriptor. The process ignores
    SIGINT, since ^C in the terminal is meant for its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
