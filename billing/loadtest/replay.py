"""`billing replay FILE`: real machines start and stop against a running daemon, and every cutoff is judged.

The trace becomes a plan (`plan`: prices, top-ups, who is to run dry), the plan is sent at its moments (`drive`), and
when it is over the model (`verdict`) says from the answers alone which cutoffs there had to be, and when. The trace
runs `--speed` times faster than it happened; rates are multiplied by as much, so that a machine costs what it cost then
and money runs out at the same point of the trace, only sooner.

Which daemon: that of `--address`; else the one that listens at `rpc.listen` of the configuration; else, or with
`--own`, one of its own with its own receiver, which is gone afterwards. Cutoffs of a daemon that was running already
are read from the receiver behind its `cutoff.url` (`billing receiver`, or `make run`); where nobody listens there, one
is started. User ids get a suffix that differs from run to run, so that a daemon can be used again.

Ends with one line, and exit code 0 only if it ends in zeros and every reply and every final balance was the model's:

    N users, N commands, N cutoffs expected, N received, 0 missing, 0 early, 0 false
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import IO, Final, NamedTuple

import aiohttp
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from billing.api.client import Client
from billing.api.errors import BillingError
from billing.config_load import load
from billing.loadtest.plan import Plan, make_plan
from billing.loadtest.run import SECOND_NS, Run
from billing.loadtest.trace import TraceError, read_trace
from billing.loadtest.verdict import Verdict, percentile
from billing.ops.arrivals import ArrivalReader, ReceiverError
from billing.ops.children import Child, ChildError, run_until_signalled
from billing.ops.own_daemon import OwnDaemon, answers, default_config_file, receiver_address
from shards.clock import wall_now_ns

SHOWN_MAX: Final = 20
EXIT_WRONG: Final = 1


class Options(NamedTuple):
    """As on the command line."""

    file: Path
    speed: int
    users: int
    exhaust_share: Fraction
    duration_s: float
    seed: int
    config: Path | None
    address: str | None
    token: str | None
    receiver: str | None
    own: bool | None


def _share(_: click.Context, parameter: click.Parameter, value: str) -> Fraction:
    """A number from 0 to 1, exactly as written."""
    try:
        share = Fraction(value)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise click.BadParameter(f"expected a number from 0 to 1, got {value!r}", param=parameter)
    return share


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--speed", default=3600, type=click.IntRange(1, 10**6), show_default=True, help="How many times faster.")
@click.option("--users", default=0, type=click.IntRange(0), help="So many users, drawn from all of the trace.  [all]")
@click.option("--exhaust-share", default="0.3", callback=_share, show_default=True, help="Of users that run dry.")
@click.option("--duration-s", default=0.0, type=click.FloatRange(0), help="Ends after so many seconds.  [whole trace]")
@click.option("--seed", default=1, show_default=True, help="Decides which users, and who gets how much.")
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Says where the daemon listens and whom it calls; config.toml where there is one.",
)
@click.option("--address", metavar="ADDRESS", envvar="BILLING_ADDRESS", help="host:port or unix:/path of the daemon.")
@click.option("--token-file", type=click.File(), help="A file that holds the token to sign in with.")
@click.option("--receiver", metavar="HOST:PORT", help="The receiver that gets the daemon's cutoffs.  [cutoff.url]")
@click.option("--own/--no-own", default=None, help="A daemon of its own, always or never.  [where none listens]")
def replay(
    file: Path,
    speed: int,
    users: int,
    exhaust_share: Fraction,
    duration_s: float,
    seed: int,
    config: Path | None,
    address: str | None,
    token_file: IO[str] | None,
    receiver: str | None,
    own: bool | None,
) -> None:
    """Drives a daemon with the virtual machines of a trace and checks every cutoff."""
    if own and (address or receiver):
        raise click.UsageError("--own starts a daemon and a receiver; it takes no --address or --receiver")
    token = token_file.read().strip() if token_file is not None else None
    options = Options(file, speed, users, exhaust_share, duration_s, seed, config, address, token, receiver, own)
    try:
        sys.exit(run_until_signalled(_replay(options)))
    except (TraceError, ChildError, BillingError, ReceiverError, aiohttp.ClientError, ValueError) as error:
        raise click.ClickException(str(error) or type(error).__name__) from error


COMMANDS: dict[str, click.Command] = {"replay": replay}


async def _replay(options: Options) -> int:
    plan = _plan(options)
    if not plan.users:
        raise click.UsageError("the trace has no machine in that time")
    print(
        f"{len(plan.users)} users with {plan.machines} machines, {plan.dry} of them to run dry; "
        f"{len(plan.steps)} commands in {plan.end_ns / SECOND_NS:.0f} s",
        flush=True,
    )
    async with contextlib.AsyncExitStack() as stack:
        address, receiver, url = await _target(options, stack)
        client = await stack.enter_async_context(Client(address, token=options.token))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        reader = ArrivalReader(session, receiver, url)
        await reader.skip()
        run = Run(plan, client, reader)
        with Progress(
            TextColumn("{task.description:12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as progress:
            await run.drive(progress)
            verdict = await run.judge(progress)
    return _report(plan, run, verdict)


def _plan(options: Options) -> Plan:
    """Reads the trace."""
    suffix = f"@{wall_now_ns() // 10**6:x}"
    return make_plan(
        read_trace(options.file),
        speed=options.speed,
        users_max=options.users,
        cut_s=int(options.duration_s * options.speed) or None,
        dry_share=options.exhaust_share,
        seed=options.seed,
        suffix=suffix,
    )


async def _target(options: Options, stack: contextlib.AsyncExitStack) -> tuple[str, str, str]:
    """Where the daemon and the receiver are, and the URL of its cutoffs; starts what is missing."""
    file = options.config or default_config_file()
    config = load(file, os.environ).config
    running = options.address is not None or (bool(config.rpc.listen) and answers(config.rpc.listen))
    if options.own or (options.own is None and not running):
        own = await stack.enter_async_context(OwnDaemon(file, os.environ))
        for note in own.notes:
            print(note)
        print(f"no daemon was running: one of our own listens at {own.rpc}", flush=True)
        return own.rpc, own.cutoff, own.config.cutoff.url
    address = options.address or config.rpc.listen
    receiver = options.receiver or receiver_address(config)
    if not answers(receiver):
        command = [sys.executable, "-m", "billing", "receiver", "--quiet", "--listen", receiver]
        child = Child("billing receiver", command, os.environ)
        stack.push_async_callback(child.end)
        await child.start()
        while not answers(receiver):
            if not child.running:
                raise child.complaint(f"ended with exit code {await child.ended()}")
            await asyncio.sleep(0.05)
    print(f"the daemon at {address}, its cutoffs as received at {receiver}", flush=True)
    return address, receiver, config.cutoff.url


def _report(plan: Plan, run: Run, verdict: Verdict) -> int:
    """Prints what came of it, the one line last; the exit code."""
    seconds = run.took_ns / SECOND_NS
    commands, readings, assessment = run.commands, run.readings, run.assessment
    dry = sum(bool(account.cutoffs) for account in assessment.accounts.values())
    print(
        f"{commands.answered} of {len(plan.steps)} commands answered in {seconds:.1f} s, "
        f"{commands.answered / seconds:.0f} a second, sent at most {commands.behind_ns / 1e6:.0f} ms behind the plan; "
        f"{commands.retries} retries"
    )
    print(f"{dry} users ran dry, {plan.dry} were meant to; {verdict.superseded} cutoffs superseded by a top-up in time")
    if run.skew.shift_ns:
        print(f"billing time is {run.skew.shift_ns / 1000:.0f} µs ahead of this host's wall clock; taken into account")
    if late := [late_ns / 1000 for late_ns in verdict.lateness_ns]:
        p50, p99 = (percentile(verdict.lateness_ns, share) / 1000 for share in (0.5, 0.99))
        print(
            f"lateness of cutoffs: p50 {p50:.0f} µs, p99 {p99:.0f} µs, max {late[-1]:.0f} µs; {verdict.doubled} doubled"
        )
    lost = [f"{plan.steps[index]}: {error}" for index, error in commands.failed]
    lost += [f"get_account {plan.users[index]}: {error}" for index, error in readings.failed]
    print(
        f"replies that differ from the model: {assessment.wrong_replies}, "
        f"final balances that differ: {assessment.wrong_balances}, without a usable answer: {len(lost)}"
    )
    for lines in (
        assessment.told,
        lost,
        [f"missing: {cutoff}" for cutoff in verdict.missing],
        [f"early: {arrival}" for arrival in verdict.early],
        [f"false: {arrival}" for arrival in verdict.false],
    ):
        for line in lines[:SHOWN_MAX]:
            print(f"  {line}")
    print(
        f"{len(plan.users)} users, {commands.answered + commands.stale} commands, {verdict.expected} cutoffs expected, "
        f"{verdict.received} received, {len(verdict.missing)} missing, {len(verdict.early)} early, "
        f"{len(verdict.false)} false",
        flush=True,
    )
    wrong = assessment.wrong_replies or assessment.wrong_balances or lost
    return 0 if verdict.clean and not wrong else EXIT_WRONG
