"""Options that may stand anywhere on the command line, and parsers of typed values. Of other packages it imports only
click.

**No option is ever dropped.** A group accepts the options of its commands without parsing their values, and passes
them on to the command that follows: `billing buckets --address A move 5 2`, `billing --address A buckets move 5 2` and
`billing buckets move 5 2 --address A` mean the same. A command that does not have an option refuses it, wherever it
stood. If an option is given twice, the last one counts.

A group with a `default` runs that command, with the same options, if no other is named.

Help shows the options of the connection and of the output apart from those of the command itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import click
from click.core import ParameterSource

from billing.cli.finding import RULE
from billing.cli.output import put
from billing.cli.places import FILE
from billing.ledger.money import INT64_MAX

CONNECTION: Final = "Connection"
OUTPUT: Final = "Output"
OWN: Final = "Options"

HELP_WIDTH: Final = 120
SETTINGS: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}

_DURATIONS_NS: Final = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3_600 * 10**9,
    "d": 86_400 * 10**9,
}
_OF_THE_SERVICE: Final = {  # words that other programs have as commands -> what does that here
    "reload": "the daemon reloads at SIGHUP to its main process, as a service of systemd by `systemctl reload billing`",
    "restart": "as a service of systemd by `systemctl restart billing`",
    "start": "`billing serve` runs it in the foreground, `systemctl start billing` as a service of systemd",
    "status": "`billing shards` says how the daemon is, `systemctl status billing` how its service is",
    "stop": "the daemon stops at SIGTERM, as a service of systemd by `systemctl stop billing`",
}
_UNBROKEN: Final = "\u2011"  # a hyphen at which no line is broken
_NEGATIVE = re.compile(r"-[0-9][0-9.]*")
_COINS = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,9})?")


class Option(click.Option):
    """An option with the title (`section`) under which help shows it."""

    def __init__(self, *arguments: Any, section: str = OWN, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.section = section


class Help(click.HelpFormatter):
    """Formats help so that lines break only at spaces, not at the hyphens of `docs/load-testing.md` or `--dry-run`."""

    def write(self, string: str) -> None:
        """Writes text that is already broken into lines."""
        super().write(string.replace(_UNBROKEN, "-"))

    def write_text(self, text: str) -> None:
        """Writes paragraphs."""
        super().write_text(text.replace("-", _UNBROKEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Writes a list of words, each with its meaning."""
        unbroken = [(first, second.replace("-", _UNBROKEN)) for first, second in rows]
        super().write_dl(unbroken, col_max, col_spacing)


class Context(click.Context):
    """The context of a command, whose help is formatted by `Help`."""

    formatter_class = Help


class Command(click.Command):
    """A command whose help lists its own options first, then the options of the output and of the connection."""

    context_class = Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the words; a negative number is a value, not an option."""
        if any(_NEGATIVE.fullmatch(arg) for arg in args):
            ctx.ignore_unknown_options = True
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options in sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if not isinstance(param, click.Option):
                continue  # the usage line shows arguments
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", OWN), []).append(record)
        for title in (OWN, OUTPUT, CONNECTION):
            if title in sections:
                with formatter.section(title):
                    formatter.write_dl(sections[title])


class Listing(click.Group):
    """A group whose help shows the whole first sentence of each command's help."""

    command_class = Command
    context_class = Context

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(200))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class Group(Listing):
    """A group that passes its options on to the command that follows."""

    def __init__(self, *arguments: Any, default: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.default = default
        self.callback = None  # a group without a default does nothing by itself
        if default is not None:
            self.invoke_without_command = True
            self.no_args_is_help = False
            self.callback = self._run_default

    def hands_on(self, options: Iterable[click.Parameter]) -> None:
        """Lets these options of the group's commands stand before the command, too."""
        known_options = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        for option in options:
            if (
                isinstance(option, click.Option)
                and known_options.isdisjoint(option.opts)
                and "--help" not in option.opts
            ):
                known_options.update(option.opts)
                self.params.append(_unread(option))

    def _run_default(self, **_: Any) -> Any:
        """Runs the default command if no command is named."""
        context = click.get_current_context()
        if context.invoked_subcommand is not None:
            return None
        assert self.default is not None
        name, command, command_args = self.resolve_command(context, [self.default])
        assert command is not None
        with command.make_context(name, command_args, parent=context) as inner:
            return command.invoke(inner)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The name, the command, and its words, preceded by the options that were given to the group. `help` prints the
        help of the group, or of the command whose name follows. Fails for an unknown command, with a guess.
        """
        if args[:1] == ["help"] and self.get_command(ctx, "help") is None:
            if len(args) == 1:
                put(ctx.get_help())
                ctx.exit()
            args = [*args[1:], "--help"]
        if args and self.get_command(ctx, args[0]) is None:
            if ctx.parent is None and args[0] in _OF_THE_SERVICE:
                ctx.fail(f"there is no command {args[0]}; {_OF_THE_SERVICE[args[0]]}")
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 3, 0.6)
            ctx.fail(f"there is no command {args[0]}" + (f"; do you mean {' or '.join(near)}?" if near else ""))
        name, command, command_args = super().resolve_command(ctx, args)
        return name, command, [*self._given_args(ctx), *command_args]

    def _given_args(self, context: click.Context) -> list[str]:
        args: list[str] = []
        for param in self.params:
            if not isinstance(param, _Unread) or param.name is None:
                continue
            if context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
                value = context.params[param.name]
                name = max(param.opts, key=len)
                if param.is_flag:
                    args.append(name)
                else:
                    args += [f"{name}={item}" for item in (value if param.multiple else (value,))]
        return args


class _Unread(click.Option):
    """An option of a group, which keeps the option's words for the command that has it."""


def _unread(option: click.Option) -> _Unread:
    if option.is_flag:
        return _Unread([*option.opts, str(option.name)], is_flag=True, hidden=True)
    return _Unread([*option.opts, str(option.name)], type=click.UNPROCESSED, multiple=option.multiple, hidden=True)


def option(*names: str, section: str = OWN, **attributes: Any) -> Callable[[Any], Any]:
    """As `click.option`, with the title (`section`) under which help shows the option."""
    return click.option(*names, cls=Option, section=section, **attributes)


def applied(decorators: Sequence[Callable[[Any], Any]], function: Any) -> Any:
    """Applies decorators of options to a function; help shows the options in this order."""
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


# -- typed values ----------------------------------------------------------------------------------------------------


def span_ns(text: str) -> int:
    """Parses `90s`, `1.5h` or `250ms` to nanoseconds; a number alone is seconds. Raises ValueError, which says what is
    expected.
    """
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :] or "s"
    integer, _, fraction = number.partition(".")
    digits = integer + fraction
    if unit not in _DURATIONS_NS or not digits.isascii() or not digits.isdigit() or not integer or len(digits) > 40:
        raise ValueError(f"expected a span of time such as 90s, 5m, 2h or 1d, got {text!r}")
    scale: int = 10 ** len(fraction)
    total, rest = divmod(int(digits) * _DURATIONS_NS[unit], scale)
    if rest:
        raise ValueError(f"expected whole nanoseconds, got {text!r}")
    return total


def span_word(ns: int) -> str:
    """A span as one types it, as a whole number of the largest possible unit: `90s`, `7d`."""
    unit = next(unit for unit in reversed(_DURATIONS_NS) if ns % _DURATIONS_NS[unit] == 0)
    return f"{ns // _DURATIONS_NS[unit]}{unit}"


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A span of time such as `90s`, `5m`, `2h`, `1d` or `250ms`, in nanoseconds, from `low_ns` to `high_ns`; a number
    alone is seconds.
    """

    name = "duration"

    def __init__(self, low_ns: int = 0, high_ns: int = INT64_MAX) -> None:
        self._low_ns, self._high_ns = low_ns, high_ns

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The span in whole nanoseconds."""
        if isinstance(value, int):  # a default
            return int(value)
        try:
            duration_ns = span_ns(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not self._low_ns <= duration_ns <= self._high_ns:
            least = f"expected {span_word(self._low_ns)} at least"
            most = f" and {span_word(self._high_ns)} at most" if self._high_ns < INT64_MAX else ""
            self.fail(f"{least}{most}, got {value}", param, ctx)
        return duration_ns


class Coins(click.ParamType):  # type: ignore[type-arg]
    """An amount of coins such as `12.5`, as text all the way to the daemon: nothing here computes money."""

    name = "coins"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, unchanged, if it is a number of coins."""
        text = str(value)
        if not _COINS.fullmatch(text):
            self.fail(f"expected coins such as 12.5, at most 9 digits after the point, got {text!r}", param, ctx)
        return text


TIMEOUT_MIN_NS: Final = 10**6  # with a shorter timeout every call would fail as if no daemon answered
DURATION = Duration()
COINS = Coins()


# -- options of commands that call a daemon ----------------------------------------------------------------------------

FINDING: Final = f"The configuration of the daemon to call: a command calls where it listens. {RULE}"
CONFIG_RULE: Final = f"The configuration file. {RULE}"

CONNECTION_OPTIONS: Final = (
    option(
        "--address",
        metavar="ADDRESS",
        envvar="BILLING_ADDRESS",
        section=CONNECTION,
        help="host:port or unix:/path of the daemon; also BILLING_ADDRESS. Without it, as --config says.",
    ),
    option("--config", "config_file", metavar="FILE", type=click.Path(), section=CONNECTION, help=FINDING),
    option(
        "--token-file",
        metavar="FILE",
        envvar="BILLING_TOKEN_FILE",
        type=click.Path(allow_dash=True),
        section=CONNECTION,
        help="A file that holds the token to sign in with, - for standard input; also BILLING_TOKEN_FILE. "
        "BILLING_TOKEN holds a token itself.",
    ),
    option("--tls", is_flag=True, section=CONNECTION, help="Speaks TLS, and believes the system's authorities."),
    option(
        "--tls-ca",
        metavar="FILE",
        envvar="BILLING_TLS_CA",
        type=FILE,
        section=CONNECTION,
        help="Speaks TLS, and believes a daemon that this authority (PEM) signed; also BILLING_TLS_CA.",
    ),
    option(
        "--tls-cert",
        metavar="FILE",
        envvar="BILLING_TLS_CERT",
        type=FILE,
        section=CONNECTION,
        help="Certificate and key (PEM, one file) by which the daemon knows us; also BILLING_TLS_CERT.",
    ),
    option(
        "--timeout",
        metavar="DURATION",
        type=Duration(TIMEOUT_MIN_NS),
        default=10 * 10**9,
        section=CONNECTION,
        help="How long to wait for an answer; where nobody listens, that is said at once.  [10s]",
    ),
)
OUTPUT_OPTIONS: Final = (
    option(
        "--json",
        "as_json",
        is_flag=True,
        section=OUTPUT,
        help="Prints the reply as it came: exact integers of nanos (…_nanos) and nanoseconds (…_ns).",
    ),
    option(
        "--csv",
        "as_csv",
        is_flag=True,
        section=OUTPUT,
        help="Prints rows as CSV under a line of names: coins as decimals, instants as ISO 8601 in UTC or the zone of "
        "--zone, spans in seconds.",
    ),
    option("--wide", is_flag=True, section=OUTPUT, help="Prints every column and nanosecond, however wide that is."),
    option(
        *("--zone", "--tz", "zone"),
        metavar="ZONE",
        section=OUTPUT,
        help="The zone of the times that are shown and given, as Europe/Moscow or UTC.  [that of this machine]",
    ),
)
YES: Final = option("--yes", is_flag=True, help="Does not ask: what cannot be undone is meant.")


def config_option(function: Any) -> Any:
    """`--config` of a command that works on the configuration itself."""
    return option("--config", "config_file", metavar="FILE", type=click.Path(), help=CONFIG_RULE)(function)


def shared_options() -> list[click.Parameter]:
    """The options that may stand before any command."""

    @click.command()
    def bearer() -> None:
        """A command that is never run: it only collects the options."""

    return list(applied((*CONNECTION_OPTIONS, *OUTPUT_OPTIONS), bearer).params)
