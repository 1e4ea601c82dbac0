"""What the daemon said, for people: amounts in coins, instants in UTC to the nanosecond, spans in days and hours.

How a value is shown follows from its name, since names carry units: `…_nanos` is an amount, `…at_ns` an instant, any
other `…_ns` a span. With `--json` nothing is turned into anything: the reply is printed as it came.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from billing.cli.calling import Target
from billing.ledger.money import format_coins

SECOND_NS = 10**9
WIDTH_OF_A_PIPE = 240
LIST_SHOWN_MAX = 64  # a longer one within a map is only counted; --json has it all

_HIDDEN = {"rate_nanos_per_second"}  # the hourly rate says it without rounding
_NEVER = {"exhausts_at_ns": "never", "runway_ns": "without end"}
_LABELS = {
    "user_id": "user",
    "request_id": "request",
    "entry_id": "entry",
    "exhaustion_seq": "exhaustions",
    "holds_nanos": "held",
}


def instant(at_ns: int) -> str:
    """`2026-03-01T12:00:00.000000001Z`."""
    seconds, rest_ns = divmod(at_ns, SECOND_NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09}Z"


def span(duration_ns: int) -> str:
    """`1d 02:03:04.5`; the fraction as long as it has to be."""
    sign = "-" if duration_ns < 0 else ""
    seconds, rest_ns = divmod(abs(duration_ns), SECOND_NS)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    fraction = f".{rest_ns:09}".rstrip("0") if rest_ns else ""
    return f"{sign}{f'{days}d ' if days else ''}{hour:02}:{minute:02}:{second:02}{fraction}"


def label_of(name: str) -> str:
    """A field's name as a heading, its unit being in the value."""
    if name in _LABELS:
        return _LABELS[name]
    for unit in ("_nanos_per_hour", "_nanos", "_ns", "_id"):
        if name.endswith(unit):
            name = name.removesuffix(unit)
            break
    return name.replace("_", " ") or "value"


def value_of(name: str, value: Any) -> str:
    """A field's value as text."""
    if value is None:
        return _NEVER.get(name, "-")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _number_of(name, value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping) and name == "rates":  # per rate line, by resource
        lines = (
            f"{_printable(resource) or '(default)'} {format_coins(rate)} per hour" for resource, rate in value.items()
        )
        return "; ".join(lines) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{label_of(str(key))} {value_of(str(key), item)}" for key, item in value.items())
    if isinstance(value, list):
        if len(value) > LIST_SHOWN_MAX:
            return f"{len(value)} values"
        return "; ".join(value_of(name, item) for item in value) or "-"
    return _printable(str(value))


def _printable(text: str) -> str:
    """What clients called things must not steer the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _number_of(name: str, value: int) -> str:
    if name.endswith("_nanos_per_hour"):
        return f"{format_coins(value)} per hour"
    if name.endswith("_nanos_per_second"):
        return f"{format_coins(value)} per second"
    if name.endswith("_nanos"):
        return format_coins(value)
    if name.endswith("at_ns") or name == "now_ns":
        return instant(value)
    if name.endswith("_ns"):
        return span(value)
    return str(value)


def show(target: Target, reply: Any) -> None:
    """Prints any reply: a map as lines, an array of maps as a table, anything else as it is."""
    if target.as_json:
        click.echo(json.dumps(reply, ensure_ascii=False, default=bytes.hex))
    elif isinstance(reply, Mapping):
        print_table(_lines_of(reply))
    elif isinstance(reply, list) and reply and all(isinstance(row, Mapping) for row in reply):
        print_table(_table_of(reply))
    elif isinstance(reply, list):
        click.echo("\n".join(str(row) for row in reply) if reply else "nothing")
    else:
        click.echo(str(reply))


def _fields(reply: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    return ((str(name), value) for name, value in reply.items() if name not in _HIDDEN)


def _lines_of(reply: Mapping[Any, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _fields(reply):
        table.add_row(label_of(name), Text(value_of(name, value), style=_style_of(name, value)))
    return table


def _table_of(rows: Sequence[Mapping[Any, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for row in rows for name, _ in _fields(row)))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        numbers = all(isinstance(row.get(name), int | None) for row in rows) and not name.endswith("at_ns")
        table.add_column(label_of(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(value_of(name, row.get(name)), style=_style_of(name, row.get(name))) for name in names))
    return table


def _style_of(name: str, value: Any) -> str:
    if name == "state":
        return {"active": "green", "exhausted": "red"}.get(str(value), "")
    return "red" if name.endswith("_nanos") and isinstance(value, int) and value < 0 else ""


def print_table(table: Any) -> None:
    """Prints a table of rich, as wide as the terminal; into a pipe, as wide as it is."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    console = Console(width=WIDTH_OF_A_PIPE, highlight=False)
    with console.capture() as printed:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))
