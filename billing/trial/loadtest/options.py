"""The command line of `billing loadtest`: its options and subcommands."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from billing.cli.finding import RULE
from billing.cli.options import Listing
from billing.cli.output import put
from billing.cli.places import DIRECTORY, FILE, NEW_FILE, ExistingFile
from billing.trial.faults import parse_fault


def _mix(_: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int, int, int]:
    try:
        weights = [int(part) for part in text.split("/")]
    except ValueError:
        weights = []
    if len(weights) != 4 or min(weights) < 0 or not sum(weights):
        raise click.BadParameter(f"expected four weights such as 40/40/20/0, got {text!r}", param=parameter)
    return weights[0], weights[1], weights[2], weights[3]


def _skew(_: click.Context, parameter: click.Parameter, text: str) -> float:
    name, __, value = text.partition(":")
    try:
        skew = 0.0 if name == "uniform" and not value else float(value or 1) if name == "zipf" else -1.0
    except ValueError:
        skew = -1.0
    if not 0 <= skew <= 5:
        raise click.BadParameter(f"expected uniform, zipf or zipf:S with S up to 5, got {text!r}", param=parameter)
    return skew


def _faults(_: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        try:
            parse_fault("status=503" if name == "5xx" else name)
        except ValueError as error:
            raise click.BadParameter(str(error), param=parameter) from None
    return tuple("status=503" if name == "5xx" else name for name in names)


def _share(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Checks that the text is a number from 0 to 1. Returns the text, so that the number stays exact."""
    try:
        share = Fraction(value)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise click.BadParameter(f"expected a number from 0 to 1, got {value!r}", param=parameter)
    return value


SECONDS = click.FloatRange(0, 86_400)
PEM = FILE


@click.group(cls=Listing, invoke_without_command=True)
@click.option(
    "--rate",
    default=2000.0,
    type=click.FloatRange(0, 10**6),
    show_default=True,
    help="Commands a second offered; 0: none but cutoffs. Where --sweep begins.",
)
@click.option(
    "--duration",
    "seconds",
    default=10.0,
    type=click.FloatRange(0.5, 86_400),
    show_default=True,
    help="Seconds measured in each run.",
)
@click.option(
    "--warmup", default=2.0, type=SECONDS, show_default=True, help="Seconds before that, which are not in the figures."
)
@click.option(
    "--runs", default=3, type=click.IntRange(1, 100), show_default=True, help="How many; their spread is told."
)
@click.option(
    "--arrivals",
    default="poisson",
    type=click.Choice(["poisson", "constant"]),
    show_default=True,
    help="How commands follow each other.",
)
@click.option(
    "--closed",
    is_flag=True,
    help="A closed loop instead: --depth commands are kept open; says what the daemon can do, not what callers see.",
)
@click.option(
    "--mix", default="40/40/20/0", callback=_mix, show_default=True, help="Weights of top-ups, rates, debits and reads."
)
@click.option(
    "--skew", default="uniform", callback=_skew, show_default=True, help="Which accounts: uniform, or zipf:S."
)
@click.option(
    "--accounts",
    default=50_000,
    type=click.IntRange(0, 20_000_000),
    show_default=True,
    help="Accounts of the mix, created beforehand.",
)
@click.option(
    "--connections", default=4, type=click.IntRange(1, 10_000), show_default=True, help="Of all processes together."
)
@click.option(
    "--depth",
    default=4096,
    type=click.IntRange(1, 1_000_000),
    show_default=True,
    help="Open commands a connection, at most.",
)
@click.option(
    "--processes",
    default=1,
    type=click.IntRange(1, 64),
    show_default=True,
    help="Generators; one sends some 100,000 a second.",
)
@click.option(
    "--exhaust-per-second", default=0.0, type=click.FloatRange(0, 10**5), help="So many balances run out a second."
)
@click.option("--storm", default=0, type=click.IntRange(0, 10**6), help="So many balances run out at one instant.")
@click.option(
    "--trace",
    type=ExistingFile(Path),
    help="Real machines instead of a mix; a CSV, see docs/load-testing.md.",
)
@click.option(
    "--speed", default=3600, type=click.IntRange(1, 10**6), show_default=True, help="Of a trace: how many times faster."
)
@click.option("--users", default=0, type=click.IntRange(0), help="Of a trace: so many users, drawn from all.  [all]")
@click.option(
    "--exhaust-share", default="0.3", callback=_share, show_default=True, help="Of a trace: users that run dry."
)
@click.option("--sweep", is_flag=True, help="Raises the rate from --rate until the daemon does not keep up.")
@click.option(
    "--p99-ms",
    default=50.0,
    type=click.FloatRange(0.01, 60_000),
    show_default=True,
    help="The latency up to which a rate counts as sustained.",
)
@click.option("--seed", default=1, show_default=True, help="Decides everything that is drawn.")
@click.option(
    "--kill-worker-every", default=0.0, type=SECONDS, metavar="S", help="kill -9 of a worker every S seconds."
)
@click.option("--move-buckets", default=0.0, type=SECONDS, metavar="S", help="Moves a bucket every S seconds.")
@click.option(
    "--snapshot-every", default=0.0, type=SECONDS, metavar="S", help="Lets all workers write snapshots every S seconds."
)
@click.option(
    "--receiver-faults",
    default="",
    callback=_faults,
    metavar="LIST",
    help="The endpoint misbehaves: of slow=MS, 5xx, refuse, hang, flap=S, …",
)
@click.option(
    "--fault-every",
    default=2.0,
    type=click.FloatRange(0.2, 3600),
    show_default=True,
    metavar="S",
    help="Every so many seconds one of them in turn, for half of that.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The daemon's configuration. {RULE}",
)
@click.option("--workers", default=0, type=click.IntRange(0, 64), help="Of a daemon of our own.  [as configured]")
@click.option(
    "--sync",
    type=click.Choice(["always", "interval", "never"]),
    help="journal.sync of a daemon of our own.  [as configured]",
)
@click.option(
    "--directory",
    type=DIRECTORY,
    metavar="DIRECTORY",
    help="Where the data of a daemon of our own go: the disk to measure.",
)
@click.option("--address", metavar="ADDRESS", help="host:port or unix:/path of a daemon that runs already.")
@click.option("--token-file", type=click.File(), help="A file that holds the token to sign in with.")
@click.option("--tls", is_flag=True, help="Speaks TLS, and believes the system's authorities.")
@click.option(
    "--tls-ca",
    metavar="FILE",
    envvar="BILLING_TLS_CA",
    type=PEM,
    help="Speaks TLS, and believes a daemon that this authority (PEM) signed; also BILLING_TLS_CA.",
)
@click.option(
    "--tls-cert",
    metavar="FILE",
    envvar="BILLING_TLS_CERT",
    type=PEM,
    help="Certificate and key (PEM, one file) by which the daemon knows us; also BILLING_TLS_CERT.",
)
@click.option(
    "--receiver", metavar="HOST:PORT", help="The receiver that gets a running daemon's cutoffs.  [cutoff.url]"
)
@click.option(
    "--json", "json_file", type=NEW_FILE, metavar="FILE", help="Writes everything measured; what compare reads."
)
@click.option("--csv", "csv_file", type=NEW_FILE, metavar="FILE", help="Writes a row a run.")
@click.option(
    "--hgrm",
    "hgrm_file",
    type=NEW_FILE,
    metavar="FILE",
    help="Writes the latencies as HdrHistogram's plotters read them.",
)
@click.option(
    "--html", "html_file", type=NEW_FILE, metavar="FILE", help="Writes a report with plots, whole in one file."
)
@click.option("--quiet", is_flag=True, help="Shows no progress.")
@click.pass_context
def loadtest(context: click.Context, /, **values: Any) -> None:
    """Offers a load to a daemon, measures what callers see, and judges every nano and every cutoff."""
    if context.invoked_subcommand is not None:
        for param in context.command.params:
            if context.get_parameter_source(str(param.name)) == ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{context.invoked_subcommand} takes no {param.opts[0]}")
        return
    _check(values)
    values["seconds_given"] = context.get_parameter_source("seconds") != ParameterSource.DEFAULT
    from billing.trial.loadtest.command import carry_out, options_of

    sys.exit(carry_out(options_of(values)))


def _check(values: dict[str, Any]) -> None:
    """Raises UsageError if options contradict each other."""
    running = values["address"] is not None
    for option in ("kill_worker_every", "snapshot_every", "workers", "sync", "directory"):
        if running and values[option]:
            name = option.replace("_", "-")
            raise click.UsageError(f"--{name} is for a daemon of our own; with --address there is none")
    if not running and (values["receiver"] or values["token_file"] or values["tls"]):
        raise click.UsageError(
            "--receiver, --token-file and --tls belong to --address; a daemon of our own needs none of them"
        )
    if values["sweep"] and (values["closed"] or values["trace"] or values["storm"]):
        raise click.UsageError(
            "--sweep raises the rate of an open loop; it goes with none of --closed, --trace, --storm"
        )
    if values["sweep"] and not values["rate"]:
        raise click.UsageError("--sweep begins at --rate, which must be above 0")
    if values["closed"] and values["trace"]:
        raise click.UsageError("a trace has its own moments; it is no closed loop")
    if values["connections"] < values["processes"]:
        raise click.UsageError("each process needs a connection")


@loadtest.command()
@click.argument("before", type=ExistingFile(Path))
@click.argument("after", type=ExistingFile(Path))
def compare(before: Path, after: Path) -> None:
    """Says what changed between two results (--json) beyond the noise of their runs."""
    from billing.trial.loadtest.compare import compare as compared
    from billing.trial.loadtest.writing import read

    try:
        for line in compared(read(before), read(after)):
            put(line)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


@loadtest.command()
@click.argument("result", type=ExistingFile(Path))
@click.argument("html", type=NEW_FILE, required=False)
@click.option("--html", "html_file", type=NEW_FILE, metavar="FILE", help="The file to write, as `HTML` names it.")
def report(result: Path, html: Path | None, html_file: Path | None) -> None:
    """Makes the report with plots of a result (--json)."""
    into = html or html_file
    if into is None or (html is not None and html_file is not None):
        raise click.UsageError("expected one file for the report: HTML or --html FILE")
    from billing.trial.loadtest.writing import read, write

    try:
        write(read(result), {"html": into})
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


COMMANDS: dict[str, click.Command] = {"loadtest": loadtest}
