"""The command line. `billing --help` answers at once, because a command is imported only when it is called.

Small commands are defined here and import their dependencies when they run. All others are in modules of their own,
which export `COMMANDS: dict[str, click.Command]`; `billing.cli.listing` names them with their one line of help.

Exit codes: `shards.exits`. A trace is printed only for a bug.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from billing import __version__
from billing.cli.finding import config_file as found_config
from billing.cli.listing import HELP, MODULE_OF, SECTIONS
from billing.cli.options import SETTINGS, Group, config_option, shared_options
from billing.cli.output import delivered, prepare, put, say
from billing.cli.vocabulary import words_of
from shards.exits import Exit, ending_of, text_of


class Root(Group):
    """The group of all commands, including those in `listing`, under every name that `vocabulary` has for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *MODULE_OF})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULE_OF:
            return super().get_command(ctx, cmd_name)
        command = import_module(MODULE_OF[cmd_name]).COMMANDS[cmd_name]
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Parses the command line; `--help` prints the help here."""
        with delivered(writes_only=True):
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        with delivered():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:2] == ["history", "rebuild"]:  # for a user of that name, type `history -- rebuild`
            args = args[1:]
        if args and args[0] not in MODULE_OF and args[0] not in self.commands:
            words = words_of(args[0])
            if words[0] in MODULE_OF or words[0] in self.commands:
                args = [*words, *args[1:]]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        texts = dict(HELP)
        texts |= {name: command.get_short_help_str(90) for name, command in self.commands.items() if not command.hidden}
        for title, names in SECTIONS.items():
            if title == list(SECTIONS)[-1]:
                names = (*names, *sorted(texts))
            with formatter.section(title):
                formatter.write_dl([(name, texts.pop(name)) for name in dict.fromkeys(names) if name in texts])


EPILOG = """\b
The daemon that a command calls, the first of these that there is:
  --address; rpc.listen of --config FILE; BILLING_ADDRESS; rpc.listen of the
  configuration: BILLING_CONFIG, ./config.toml, /etc/billing/config.toml;
  127.0.0.1:3311.

Options may stand anywhere on the line. Exit codes: 0 done, 1 refused, 2 usage, 3 not reachable, 4 not allowed.
Procedures are commands, too: get_account is account, move_bucket is buckets move."""


@click.group(cls=Root, context_settings=SETTINGS, epilog=EPILOG)
@click.version_option(__version__, message="%(prog)s %(version)s")
def root() -> None:
    """Prepaid billing by the second: balances, the exact instants at which they run out, and the calls that follow."""


root.hands_on(shared_options())


@root.command()
@config_option
def serve(config_file: str | None) -> None:
    """Runs the daemon in the foreground until SIGTERM."""
    from billing.service import serve as daemon

    sys.exit(daemon.serve(found_config(config_file, os.environ)))


@click.group(cls=Group)
def config() -> None:
    """Checks and shows the configuration, or prints the default one."""


@config.command()
@config_option
def check(config_file: str | None) -> None:
    """Reports every fault of the configuration, and exits with 78 if there is one."""
    from billing.config.load import load

    file = found_config(config_file, os.environ)
    config = load(file, os.environ).config
    put(f"{file or 'the default configuration'} can be run")
    if config.journal.is_shared:  # what was fixed when its streams were made stands there alone
        put("whether the log's servers and streams fit it, cluster.shards included, says: billing cluster check")


@config.command("show")
@click.option("--secrets", is_flag=True, help="Also what stands in the queries of URLs.")
@config_option
def show_config(config_file: str | None, secrets: bool) -> None:
    """Prints every key as it takes effect, and where its value comes from, as a file that can be used."""
    from billing.config.load import as_effective, load

    put(as_effective(load(found_config(config_file, os.environ), os.environ), secrets=secrets), newline=False)


@config.command()
def default() -> None:
    """Prints the complete default configuration, a comment to each key: a file to begin with."""
    from billing.config.schema import Config, as_toml

    put(as_toml(Config()), newline=False)


for each in (check, show_config):
    config.hands_on(each.params)
root.add_command(config)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line (by default the process's) and exits with the command's exit code."""
    words = prepare(sys.argv[1:] if arguments is None else arguments)
    try:
        code = root.main(words, prog_name="billing", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.UsageError as error:
        _say_usage(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if type(error).show is click.ClickException.show:
            say(f"billing: {error.format_message()}")
        else:
            error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        say("billing: aborted")
        sys.exit(1)
    except ModuleNotFoundError:
        raise  # `billing.__main__` names the extra that brings the module
    except Exception as error:
        code = ending_of(error).code
        if isinstance(error, OSError) and words[:1] != ["serve"]:
            say(f"billing: {text_of(error)}")
            sys.exit(Exit.REFUSED)
        if code == Exit.BUG:
            say(traceback.format_exc().rstrip())
        say(f"billing: {text_of(error)}")
        sys.exit(code)


def _say_usage(error: click.UsageError) -> None:
    """Prints the fault of the command line and how to get the right form. Prints the help if a command is missing."""
    message = error.format_message()
    if error.ctx is not None and message == error.ctx.get_help():
        say(message)
        return
    say(f"billing: {message}")
    if error.ctx is not None:
        say(f"{error.ctx.get_usage()}\n`{error.ctx.command_path} --help` explains it.")
