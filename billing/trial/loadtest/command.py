"""`billing loadtest`: offers a load to a daemon, measures what callers would see, and judges every nano and cutoff.

Without `--address` it starts a daemon of its own in a temporary directory, with a receiver for its cutoffs, and removes
both afterwards. The exit code is 1 on any difference in money or cutoffs, whatever the speed, and on an INVALID
measurement, which tells nothing about the daemon.
"""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import aiohttp
import click

from billing.cli.calling import Target as Whom
from billing.cli.calling import refused
from billing.cli.output import put, say
from billing.client.client import TOKEN
from billing.client.errors import BillingError
from billing.trial.arrivals import ReceiverError
from billing.trial.child_processes import ChildError, run_until_signalled
from billing.trial.loadtest.chaos import Chaos
from billing.trial.loadtest.conclusion import unusable
from billing.trial.loadtest.generator import Order
from billing.trial.loadtest.generators import GeneratorError, Generators
from billing.trial.loadtest.load_driver import INTERVAL_NS
from billing.trial.loadtest.progress import Display
from billing.trial.loadtest.result import Result, environment
from billing.trial.loadtest.session import Plan, Session
from billing.trial.loadtest.signing_in import SignIn
from billing.trial.loadtest.summary import summary, verdict_line
from billing.trial.loadtest.sweep import sweep
from billing.trial.loadtest.target import Target, own_target, running_target
from billing.trial.loadtest.trace import TraceError, read_trace
from billing.trial.loadtest.trace_plan import Tracing
from billing.trial.loadtest.watch import Watch
from billing.trial.loadtest.workload import Workload, aimed_count
from billing.trial.loadtest.writing import FORMATS, write
from shards.counting import counted
from shards.exits import Exit
from shards.system.clock import MACHINE_CLOCKS

NICENESS: Final = 10
AROUND_S: Final = 6  # seconds of a run beside its load: preloading, the lead, reading every balance, the last cutoffs
NO_ACCOUNT: Final = "there is no account to put under load"
INTERVALS: Final = 1000  # about the greatest number of intervals of the curve over time


class Options(NamedTuple):
    """The options of the command line."""

    workload: Workload
    tracing: Tracing | None
    chaos: Chaos
    rate: float
    runs: int
    sweeping: bool
    p99_ms: float
    processes: int
    connections: int
    depth: int
    config: Path | None
    workers: int
    sync: str | None
    directory: Path | None
    address: str | None
    sign_in: SignIn
    receiver: str | None
    quiet: bool
    outputs: dict[str, Path]


async def loadtest(options: Options) -> int:
    """Runs the whole load test. Returns the exit code."""
    _look_ahead(options)
    async with contextlib.AsyncExitStack() as stack:
        display = stack.enter_context(Display(options.quiet))
        target = await _target(options, stack, display)
        suffix = f"@{MACHINE_CLOCKS.wall_ns() // 10**6:x}"
        span_s = options.workload.warmup_s + options.workload.seconds
        order = Order(
            address=target.address,
            workload=options.workload,
            sign_in=target.sign_in,
            connections=max(1, options.connections // options.processes),
            depth=options.depth,
            suffix=suffix,
            tracing=options.tracing,
            interval_ns=max(INTERVAL_NS, int(span_s * 1e9) // INTERVALS),
        )
        watch = await stack.enter_async_context(Watch(target.pid, target.admin))
        generators = await stack.enter_async_context(Generators(order, options.processes))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)  # the other processes are started; this one only watches now
        opened = await generators.open()
        users, of_trace = sum(part["users"] for part in opened), opened[0]["plan"]
        if not users:
            raise click.UsageError(NO_ACCOUNT)
        if of_trace:
            display.say(
                f"{counted(users, 'user')} with {counted(of_trace[1], 'machine')}, {of_trace[2]:,} of them to run dry; "
                f"{counted(of_trace[0], 'command')} "
                f"in {of_trace[3] / 1e9:.0f} s"
            )
        plan = Plan(options.workload, options.chaos, of_trace[0] if of_trace else 0, of_trace[3] if of_trace else 0)
        session = Session(plan, target, generators, watch, http, users, order.interval_ns, display.at)
        await session.begin()
        result = _blank(options, target)
        await _runs(options, session, result, display)
        result.memory_bytes_per_account = session.memory_bytes_per_account
        result.memory_accounts = session.memory_accounts
    for line in summary(result):
        put(line)
    write(result, options.outputs)
    for kind, path in options.outputs.items():
        put(f"{kind}: {path}")
    if not result.valid:
        say(f"billing: {unusable(result)}")
    return 0 if result.clean and result.valid else Exit.REFUSED


def _look_ahead(options: Options) -> None:
    """Checks what can be checked before any process is started. Raises UsageError, TraceError."""
    if options.tracing is not None:
        next(read_trace(Path(options.tracing.file)), None)
    elif not options.workload.accounts and not aimed_count(options.workload):
        raise click.UsageError(NO_ACCOUNT)


async def _runs(options: Options, session: Session, result: Result, display: Display) -> None:
    display.say(how_long(options.workload, 0 if options.sweeping or options.tracing else options.runs))
    if options.sweeping:
        await sweep(session, options.rate, options.p99_ms, result, display.say)
        return
    for _ in range(options.runs):
        run = await session.run(options.rate)
        result.runs.append(run)
        display.say(f"run {run.number + 1}: {'VALID' if run.valid else 'INVALID'}, {verdict_line(run)}")


def how_long(workload: Workload, runs: int) -> str:
    """An estimate, in words, of how long the load test takes. `runs`: 0 if their number is not known."""
    each_s = workload.warmup_s + workload.seconds
    if not runs:
        return f"each step takes {each_s:g} s and what is needed to prepare and judge it, some {AROUND_S:g} s"
    whole_s = runs * (each_s + AROUND_S)
    total_text = f"{whole_s:.0f} s" if whole_s < 120 else f"{whole_s / 60:.0f} min"
    return f"{counted(runs, 'run')} of {each_s:g} s, with preparing and judging about {total_text} in all"


async def _target(options: Options, stack: contextlib.AsyncExitStack, display: Display) -> Target:
    if options.address is not None:
        target = await running_target(stack, options.address, options.sign_in, options.receiver, options.config)
        display.say(f"the daemon at {target.address}, its cutoffs as received at {target.receiver}")
        return target
    target, notes = await own_target(stack, options.config, options.workers, options.sync or "", options.directory)
    for note in notes:
        display.say(note)
    display.say(f"a daemon of our own listens at {target.address}, with {counted(target.facts['workers'], 'worker')}")
    return target


def _blank(options: Options, target: Target) -> Result:
    kind = (
        "trace" if options.tracing else "sweep" if options.sweeping else "closed" if options.workload.closed else "load"
    )
    return Result(
        command="billing " + " ".join(sys.argv[1:]),
        began_at=datetime.fromtimestamp(MACHINE_CLOCKS.wall_ns() / 1e9, UTC).isoformat(timespec="seconds"),
        kind=kind,
        workload=options.workload,
        tracing=options.tracing,
        chaos=options.chaos,
        processes=options.processes,
        connections=options.connections,
        depth=options.depth,
        daemon={**target.facts, "own": target.own_daemon is not None},
        configuration=target.configuration,
        environment=environment(),
        p99_limit_ms=options.p99_ms,
        memory_bytes_per_account=None,
        memory_accounts=0,
        runs=[],
    )


def options_of(values: dict[str, Any]) -> Options:
    """Builds `Options`. `values`: the values of the command line's options, by name. Raises BadParameter."""
    tracing = None
    if values["trace"] is not None:
        seconds = values["seconds"] if values["seconds_given"] else 0.0
        tracing = Tracing(
            str(values["trace"].resolve()), values["speed"], values["users"], values["exhaust_share"], seconds
        )
    token_file: IO[str] | None = values["token_file"]
    token = token_file.read().strip() if token_file is not None else os.environ.get(TOKEN)
    sign_in = SignIn(token, values["tls"], values["tls_ca"], values["tls_cert"])
    try:
        sign_in.context()
    except OSError as error:
        raise click.BadParameter(f"expected PEM files: {error}", param_hint="--tls-ca, --tls-cert") from None
    outputs = {kind: values[f"{kind}_file"] for kind in FORMATS if values[f"{kind}_file"] is not None}
    return Options(
        workload=Workload(
            accounts=values["accounts"],
            seconds=values["seconds"],
            warmup_s=values["warmup"],
            mix=values["mix"],
            skew=values["skew"],
            arrivals=values["arrivals"],
            exhaust_per_second=values["exhaust_per_second"],
            storm=values["storm"],
            closed=values["closed"],
            seed=values["seed"],
        ),
        tracing=tracing,
        chaos=Chaos(
            values["kill_worker_every"],
            values["move_buckets"],
            values["snapshot_every"],
            values["receiver_faults"],
            values["fault_every"],
        ),
        rate=values["rate"],
        runs=1 if tracing is not None else values["runs"],
        sweeping=values["sweep"],
        p99_ms=values["p99_ms"],
        processes=values["processes"],
        connections=values["connections"],
        depth=values["depth"],
        config=values["config"],
        workers=values["workers"],
        sync=values["sync"],
        directory=values["directory"],
        address=values["address"],
        sign_in=sign_in,
        receiver=values["receiver"],
        quiet=values["quiet"],
        outputs=outputs,
    )


FAILURES = (
    *(TraceError, ChildError, GeneratorError, ReceiverError),
    *(aiohttp.ClientError, TimeoutError, ValueError),
)


def carry_out(options: Options) -> int:
    """Runs the load test until it is over or a signal ends it. Returns the exit code. Raises ClickException."""
    try:
        return run_until_signalled(loadtest(options))
    except BillingError as error:
        whom = Whom(
            options.address or "its own",
            "",
            options.sign_in.token,
            f"--token-file or {TOKEN}",
            tls=options.sign_in.context(),
        )
        raise refused(error, whom, changes=False) from error
    except FAILURES as error:
        raise click.ClickException(str(error) or type(error).__name__) from error
