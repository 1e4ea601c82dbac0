"""The runs of a load test on one daemon. Each run has four steps:

    1 preload    tops up the accounts; arms the accounts that are to run dry, then aims them at their instants
    2 drive      sends the load, warm-up first; meanwhile watches processes and metrics, and makes trouble if asked to
    3 read       asks for every account; the model compares every answer with its own
    4 judge      compares the cutoffs received with those expected, until none is missing or no more come

No step is measured while another one judges, and a run goes on from the state of the model after the run before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import aiohttp

from billing.trial.arrivals import Arrival, ArrivalReader
from billing.trial.loadtest.chaos import Chaos, Trouble
from billing.trial.loadtest.cost import Costs, cost_of
from billing.trial.loadtest.generators import GeneratorError, Generators, merged, merged_intervals, skew_of, total
from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.result import Cutoffs, Interval, Money, Run
from billing.trial.loadtest.skew import Skew
from billing.trial.loadtest.target import Target
from billing.trial.loadtest.validity import faults
from billing.trial.loadtest.verdict import Verdict, judge
from billing.trial.loadtest.watch import Watch, as_rows
from billing.trial.loadtest.workload import SECOND_NS, Workload, aimed_count
from shards.counting import counted
from shards.system.clock import MACHINE_CLOCKS

START_LEAD_NS: Final = SECOND_NS  # time in which all generators learn of the start, however busy the cores are
PLANNED_A_SECOND: Final = 200_000  # assumed speed of making commands, for the time that is left for it
AIM_LEAD_NS: Final = 2 * SECOND_NS  # further lead if accounts are aimed, since aiming too late ends the test
AIMED_A_SECOND: Final = 5_000  # assumed speed of aiming, for the time that is left for it
ARRIVALS_WAIT_S: Final = 15.0
TROUBLED_WAIT_S: Final = 75.0  # longer than the longest pause between attempts, which is 30 s and its jitter
ARRIVALS_POLL_S: Final = 0.25
FALSE_WAIT_S: Final = 0.5
TOLD_MAX: Final = 10
MEMORY_ACCOUNTS_MIN: Final = 20_000  # fewer accounts take less memory than the noise of a process

OnProgress = Callable[[str, int, int], None]  # (what, done, of): see `Display.at`


class Plan(NamedTuple):
    """The plan that all runs of a session share. `trace_steps`, `trace_ns`: number of commands and length of a trace;
    else 0.
    """

    workload: Workload
    chaos: Chaos
    trace_steps: int = 0
    trace_ns: int = 0


class Session:
    """See the module. The caller hands in open parts and closes them."""

    def __init__(
        self,
        plan: Plan,
        target: Target,
        generators: Generators,
        watch: Watch,
        http: aiohttp.ClientSession,
        users: int,
        interval_ns: int,
        on_progress: OnProgress,
    ) -> None:
        self.memory_bytes_per_account: float | None = None
        self.memory_accounts = 0
        self._plan = plan
        self._target = target
        self._generators = generators
        self._watch = watch
        self._reader = ArrivalReader(http, target.receiver, target.cutoff_url)
        self._arrivals: list[Arrival] = []
        self._skew = Skew()
        self._users = users
        self._interval_s = interval_ns / SECOND_NS
        self.trouble: Trouble | None = None  # of the run under way
        self._on_progress = on_progress
        self._runs = 0

    async def begin(self) -> None:
        """Skips the calls that the receiver got before."""
        await self._reader.skip()

    async def run(self, rate: float) -> Run:
        """Does one run. `rate`: the offered commands a second."""
        number, self._runs = self._runs, self._runs + 1
        await self._preload(number)
        start_ns = MACHINE_CLOCKS.boot_ns() + START_LEAD_NS
        start_ns += self._planned(rate) * SECOND_NS // PLANNED_A_SECOND
        aimed = 0 if self._plan.trace_steps else aimed_count(self._plan.workload)
        if aimed:
            start_ns += AIM_LEAD_NS + aimed * SECOND_NS // AIMED_A_SECOND
            await self._aim(number, start_ns)
        driven, costs = await self._drive(number, rate, start_ns)
        await self._target.ready()
        money = await self._read(number, driven)
        verdict = await self._judge(start_ns)
        return self._run_of(number, rate, start_ns, driven, costs, money, verdict)

    # -- the steps --------------------------------------------------------------------------------------------------

    async def _preload(self, number: int) -> None:
        before = self._watch.workers_rss_bytes()
        accounts = self._users
        count = 0 if self._plan.trace_steps else accounts
        preload = partial(self._generators.step, "preload", number)
        parts = await preload(on_progress=lambda done: self._tell("preload", done, count))
        _none_failed(parts, "preload")
        skew_of(parts, self._skew)
        if number == 0 and count >= MEMORY_ACCOUNTS_MIN and before:
            await asyncio.sleep(0.3)
            self.memory_bytes_per_account = max(0.0, (self._watch.workers_rss_bytes() - before) / accounts)
            self.memory_accounts = accounts

    async def _aim(self, number: int, start_ns: int) -> None:
        """Aims the armed accounts. Their instants count from the estimated billing time of the start. Raises
        GeneratorError.
        """
        boot_ns, wall_ns = MACHINE_CLOCKS.paired()
        billing_ns = wall_ns + start_ns - boot_ns + self._skew.shift_ns
        parts = await self._generators.step("aim", number, billing_ns)
        _none_failed(parts, "aiming")
        if MACHINE_CLOCKS.boot_ns() > start_ns or total(parts, "missed"):
            raise GeneratorError("aiming took longer than was left for it: fewer accounts are to run dry, or try again")

    async def _drive(self, number: int, rate: float, start_ns: int) -> tuple[list[dict[str, Any]], Costs]:
        load = self._plan.workload
        warm_ns, span_ns = int(load.warmup_s * SECOND_NS), int(load.seconds * SECOND_NS)
        if self._plan.trace_steps:
            warm_ns, span_ns = 0, self._plan.trace_ns
        end_ns = start_ns + warm_ns + span_ns
        expected = self._planned(rate)
        costs = Costs(self._watch, start_ns, start_ns + warm_ns, end_ns)
        driving = asyncio.ensure_future(
            self._generators.step(
                "drive", number, start_ns, rate, on_progress=lambda done: self._tell("load", done, expected)
            )
        )

        watching = asyncio.create_task(costs.run())
        self.trouble = self._trouble()
        over = asyncio.sleep(max(0, end_ns - MACHINE_CLOCKS.boot_ns()) / 1e9)
        try:
            if self.trouble is not None:
                await self.trouble.run(over)
            else:
                await over
            parts = await driving
            await watching
        finally:
            driving.cancel()
            watching.cancel()
        skew_of(parts, self._skew)
        return parts, costs

    def _planned(self, rate: float) -> int:
        """The approximate number of commands of a run."""
        load = self._plan.workload
        return self._plan.trace_steps or int(rate * (load.warmup_s + load.seconds))

    def _trouble(self) -> Trouble | None:
        chaos, target = self._plan.chaos, self._target
        if not chaos.any:
            return None
        return Trouble(
            chaos,
            self._plan.workload.seed + self._runs,
            pid=target.pid if target.own_daemon is not None else None,
            address=target.address,
            sign_in=target.sign_in,
            receiver=target.receiver,
            watch=self._watch,
        )

    async def _read(self, number: int, driven: list[dict[str, Any]]) -> Money:
        """Asks for every account. Returns the model's verdict on all answers until now."""
        parts = await self._generators.step(
            "read", number, on_progress=lambda done: self._tell("balances", done, self._users)
        )
        return Money(
            accounts=self._users,
            answered=total(driven, "answered") + total(parts, "answered"),
            wrong_replies=total(parts, "wrong_replies"),
            wrong_balances=total(parts, "wrong_balances"),
            wrong_refusals=total(parts, "wrong_refusals"),
            unanswered=total(driven, "failed") + total(parts, "failed"),
            told=[line for part in (*driven, *parts) for line in part["told"]][:TOLD_MAX],
        )

    async def _judge(self, start_ns: int) -> Verdict:
        """Waits for all expected cutoffs, and a little longer for unexpected ones. Returns the verdict."""
        is_sick = self._plan.chaos.sickness()
        quiet_s, wait_s = 0.0, TROUBLED_WAIT_S if self._plan.chaos.disturbs_cutoffs else ARRIVALS_WAIT_S
        boot_ns, wall_ns = MACHINE_CLOCKS.paired()
        since_ns = wall_ns + start_ns - boot_ns + self._skew.shift_ns
        claims, _ = await self._generators.claims(self._billing_now_ns())
        while True:
            came = await self._take_arrivals()
            quiet_s = 0.0 if came else quiet_s + ARRIVALS_POLL_S
            verdict = judge(claims, self._arrivals, since_ns, is_sick, self._generators.seq_base)
            self._tell("cutoffs", verdict.received, verdict.expected)
            if not verdict.missing or quiet_s > wait_s:
                break
            await asyncio.sleep(ARRIVALS_POLL_S)
        await asyncio.sleep(FALSE_WAIT_S)
        claims, _ = await self._generators.claims(self._billing_now_ns())  # of accounts that ran dry meanwhile, too
        await asyncio.sleep(FALSE_WAIT_S)
        await self._take_arrivals()
        return judge(claims, self._arrivals, since_ns, is_sick, self._generators.seq_base)

    async def _take_arrivals(self) -> int:
        shift_ns = self._skew.shift_ns
        fresh = await self._reader.fresh()
        self._arrivals += [arrival._replace(arrived_ns=arrival.arrived_ns + shift_ns) for arrival in fresh]
        return len(fresh)

    def _billing_now_ns(self) -> int:
        return MACHINE_CLOCKS.paired()[1] + self._skew.shift_ns

    def _tell(self, what: str, done: int, of: int) -> None:
        self._on_progress(what, done, of)

    # -- the figures ------------------------------------------------------------------------------------------------

    def _run_of(
        self,
        number: int,
        rate: float,
        start_ns: int,
        parts: list[dict[str, Any]],
        costs: Costs,
        money: Money,
        verdict: Verdict,
    ) -> Run:
        plan, load = self._plan, self._plan.workload
        seconds = max(part["took_ns"] for part in parts) / SECOND_NS if plan.trace_steps else load.seconds
        latency, lateness = merged(parts, "latency"), merged(parts, "lateness")
        span_s = load.warmup_s + load.seconds
        cores = [part["cpu_s"] / max(part["took_ns"] / SECOND_NS, span_s) for part in parts]
        because = faults(
            open_loop=not load.closed,
            planned=total(parts, "planned"),
            sent=total(parts, "planned") if not money.unanswered else total(parts, "answered"),
            latency=latency,
            lateness=lateness,
            cores=max(cores),
        )
        cutoffs = self._cutoffs(verdict, start_ns)
        cost = cost_of(costs, latency.total, len(verdict.lateness_ns), load, cutoffs.last_after_s)
        return Run(
            number=number,
            offered_per_s=0.0 if load.closed or plan.trace_steps else rate,
            seconds=seconds,
            planned=total(parts, "planned"),
            answered=latency.total,
            per_s=latency.total / seconds,
            refused=total(parts, "refused"),
            retries=total(parts, "retries"),
            held=total(parts, "held"),
            latency=latency.sparse(),
            service=merged(parts, "service").sparse(),
            lateness=lateness.sparse(),
            intervals=_intervals(merged_intervals(parts), self._interval_s),
            valid=not because,
            invalid_because=because,
            money=money,
            cutoffs=cutoffs,
            cpu_us_per_command=cost.us_per_command,
            cpu_us_per_cutoff=cost.us_per_cutoff,
            cpu_note=cost.note,
            generator_cpu=sum(cores),
            cpu_by_role=costs.cores_by_role(),
            samples=as_rows(self._watch.samples, start_ns),
            events=[
                {"at_s": round((event.boot_ns - start_ns) / 1e9, 3), "kind": event.kind, "text": event.text}
                for event in self._watch.events
                if event.boot_ns >= start_ns
            ],
            storm_at_s=load.warmup_s + max(load.seconds - 0.5, 0) / 2 if load.storm else None,
            warmup_s=0.0 if plan.trace_steps else load.warmup_s,
            chaos_did=self.trouble.counts if self.trouble is not None else {},
        )

    def _cutoffs(self, verdict: Verdict, start_ns: int) -> Cutoffs:
        lateness, healthy = Histogram(), Histogram()
        for histogram, found_ns in ((lateness, verdict.lateness_ns), (healthy, verdict.healthy_ns)):
            for late_ns in found_ns:
                histogram.record(max(0, late_ns))
        lines = [f"missing: {each}" for each in verdict.missing[:TOLD_MAX]]
        lines += [f"early: {each}" for each in verdict.early[:TOLD_MAX]]
        lines += [f"false: {each}" for each in verdict.false[:TOLD_MAX]]
        return Cutoffs(
            expected=verdict.expected,
            received=verdict.received,
            missing=len(verdict.missing),
            early=len(verdict.early),
            false=len(verdict.false),
            doubled=verdict.doubled,
            doubled_is_wrong=not self._plan.chaos.disturbs_cutoffs,
            superseded=verdict.superseded,
            lateness=lateness.sparse(),
            healthy_lateness=healthy.sparse(),
            last_after_s=verdict.lateness_ns[-1] / 1e9 if self._plan.workload.storm and verdict.lateness_ns else None,
            told=lines,
        )


def _none_failed(parts: list[dict[str, Any]], what: str) -> None:
    if total(parts, "failed"):
        first = next(line for part in parts for line in part["told"])
        raise GeneratorError(
            f"{counted(total(parts, 'failed'), 'command')} failed while {what} was under way; the first: {first}"
        )


def _intervals(histograms: list[Histogram], interval_s: float) -> list[Interval]:
    return [
        Interval(
            round(number * interval_s, 3),
            histogram.total,
            histogram.percentile("50"),
            histogram.percentile("99"),
            histogram.greatest,
        )
        for number, histogram in enumerate(histograms)
    ]
