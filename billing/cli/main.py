"""The command line. `billing --help` is there at once, because no command is imported before it is called.

Commands that need little stand here and import what they need when they run. All others stand in modules of their own,
which export `COMMANDS: dict[str, click.Command]`, and are named in `ELSEWHERE` with their one line of help; a test
holds the two equal.

Exit codes: 0 done, 78 configuration, 65 damaged data, 74 disk failure, 70 a bug, 2 a call that makes no sense, 1 a
command that says no.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click

from billing import __version__

EXIT_BUG = 70


# Module -> its commands, each with its one line of help.
ELSEWHERE: dict[str, dict[str, str]] = {
    "billing.cli.account_commands": {
        "top-up": "Adds AMOUNT coins to USER; opens the account if it is new.",
        "set-rate": "Sets how fast USER's money is being spent: RATE coins a second.",
        "change-rate": "Adds DELTA coins a second to a rate of USER; below zero it is refused.",
        "debit": "Takes AMOUNT coins from USER once.",
        "account": "Shows everything about USER now.",
        "accounts": "Lists accounts in order of their user ids.",
        "history": "Lists what happened to USER, newest first.",
        "credit-limit": "Sets how far below zero USER may go: AMOUNT coins.",
        "hold": "Reserves AMOUNT coins of USER; the reply names the hold.",
        "capture": "Takes AMOUNT coins of a hold of USER and frees the rest.",
        "release": "Gives a hold of USER back.",
        "adjust": "Corrects USER's balance by AMOUNT coins, with a REASON.",
        "thresholds": "Sets when notices about USER's low balance are sent; without options, never.",
        "close": "Closes USER's account and pays out the rest.",
    },
    "billing.cli.statement_command": {
        "statement": "Shows what USER's account opened with, its entries, what it closed with, and that it adds up.",
    },
    "billing.cli.operator_commands": {
        "shards": "Lists the shards: process, buckets, accounts, load, and what is wrong.",
        "buckets": "Lists the buckets and their owners, or moves and pins them.",
        "rebalance": "Moves buckets until the load is even.",
        "explain": "Shows why USER stands where it stands: bucket and owner, timer, cutoffs and attempts.",
        "explain-move": "Shows what a move of BUCKET (to SHARD) waits for, and whose that is.",
        "cutoffs": "Lists the cutoffs that are owed, or tries and releases them.",
        "forecast": "Tells how many cutoffs are coming, by the second or minute, and the worst second.",
        "expirationd": "What users of Tarantool's expirationd look for.",
        "methods": "Lists the procedures of the daemon, and what they take.",
        "ping": "Asks whether the daemon answers.",
        "info": "Shows the daemon's version and limits.",
    },
    "billing.admin.monitoring": {
        "monitoring": "Prints alert rules, the Grafana dashboard, and what each alert means."
    },
    "billing.service.unit": {"install-unit": "Prints the systemd unit for a configuration."},
    "billing.cli.console.session": {
        "console": "A prompt for all procedures, with history, completion and a live view; nothing is evaluated.",
    },
    "billing.backup.command": {
        "backup": "Copies all data as of one instant to the new DIRECTORY, while the daemon serves.",
        "restore": "Makes the configured data directory, which must be empty, from the backup in DIRECTORY.",
    },
    "billing.trial.demo": {"demo": "Starts a daemon of its own and shows what it does, with three users."},
    "billing.trial.loadtest.options": {
        "loadtest": "Offers a load to a daemon, measures what callers see, and judges every nano and every cutoff.",
    },
    "billing.trial.receiver_command": {
        "receiver": "Takes cutoff calls for trying and measuring, and says how late they came.",
    },
    "billing.cli.journal_dump": {"journal": "Looks into the files of a journal."},
    "billing.cli.cluster_commands": {"cluster": "Looks at the servers of a replicated log, and makes its streams."},
    "billing.doctor.command": {"doctor": "Proves from the files alone that a stopped daemon's data are right."},
}
MODULE_OF = {name: module for module, commands in ELSEWHERE.items() for name in commands}

# How `--help` groups them; all others stand under the last title.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Accounts": (*ELSEWHERE["billing.cli.account_commands"], "statement"),
    "Operation": (
        *("serve", "config", "console", "install-unit", "monitoring", "backup", "restore", "journal", "cluster"),
        "doctor",
        *ELSEWHERE["billing.cli.operator_commands"],
    ),
    "Trying and measuring": ("demo", "receiver", "loadtest"),
}

# An exception that ends a command -> exit code and what is said before its text. Named, so that nothing is imported:
# what was never imported cannot have been raised.
ENDINGS: tuple[tuple[str, str, int, str], ...] = (
    ("billing.config.load", "ConfigError", 78, "the configuration cannot be run:\n"),
    ("shards.journal", "Corrupt", 65, "the data are damaged: "),
    ("shards.journal", "Gap", 65, "the data are damaged: "),
    ("shards.journal", "Torn", 65, "the data are damaged: "),
    ("shards.journal", "Unfit", 78, ""),
    ("shards.journal", "Lost", 75, ""),
    ("shards.journal", "Unavailable", 3, ""),
    ("shards.journal", "JournalError", 74, ""),
)


class Group(click.Group):
    """A group that also has the commands in `ELSEWHERE`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *MODULE_OF})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULE_OF:
            return super().get_command(ctx, cmd_name)
        command = import_module(MODULE_OF[cmd_name]).COMMANDS[cmd_name]
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        texts = {name: text for commands in ELSEWHERE.values() for name, text in commands.items()}
        texts |= {name: found.get_short_help_str(90) for name, found in self.commands.items() if not found.hidden}
        for title, names in SECTIONS.items():
            if title == list(SECTIONS)[-1]:
                names = (*names, *sorted(texts))
            with formatter.section(title):
                formatter.write_dl([(name, texts.pop(name)) for name in dict.fromkeys(names) if name in texts])


config_option = click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration file; without one, the defaults. BILLING_SECTION__KEY overrides either.",
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, message="%(prog)s %(version)s")
def root() -> None:
    """Prepaid billing by the second: balances, the exact instants at which they run out, and the calls that follow."""


@root.command()
@config_option
def serve(file: Path | None) -> None:
    """Runs the daemon in the foreground until SIGTERM."""
    from billing.service import serve as daemon

    sys.exit(daemon.serve(file))


@root.command(hidden=True)
@click.argument("control", type=int)
def worker(control: int) -> None:
    """A worker process, started by the daemon with the descriptor of its control wire."""
    from billing.service import serve as daemon

    sys.exit(daemon.work(control))


@root.group()
def config() -> None:
    """Checks and shows the configuration."""


@config.command()
@config_option
def check(file: Path | None) -> None:
    """Says everything that is wrong with it, and exits with 78; or that nothing is."""
    from billing.config.load import load

    load(file, os.environ)
    click.echo(f"{file or 'the default configuration'} can be run")


@config.command()
@config_option
def show(file: Path | None) -> None:
    """Prints every key as it takes effect, and where its value comes from, as a file that can be used."""
    from billing.config.load import as_effective, load

    click.echo(as_effective(load(file, os.environ)), nl=False)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line (that of the process by default) and exits with its code."""
    try:
        root.main(arguments, prog_name="billing")
    except Exception as error:
        code, text = ending_of(error)
        if code == EXIT_BUG:
            traceback.print_exc()
        print(f"billing: {text}{error}", file=sys.stderr)
        sys.exit(code)
    raise AssertionError("click exits by itself")


def ending_of(error: Exception) -> tuple[int, str]:
    """The exit code of a command that `error` ended, and what is said before its text."""
    for module, name, code, text in ENDINGS:
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return code, text
    return EXIT_BUG, f"this is a bug: {type(error).__name__}: "
