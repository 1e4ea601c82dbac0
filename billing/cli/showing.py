"""Prints replies of the daemon: for people as lines and tables, with `--json` unchanged, with `--csv` as rows.

`tell` prints the reply of a change. If the output cannot be written, it still reports on standard error that the change
was made.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from billing.cli.calling import Target
from billing.cli.csv_lines import csv_line
from billing.cli.output import OutputFailed, as_json, put, say
from billing.cli.sentences import explained, standing
from billing.cli.tables import COINS, NUMBER, TEXT, WHOLE, Column, draw, fold
from billing.cli.values import (
    HOUR,
    Look,
    coins,
    csv_name,
    csv_value,
    instant,
    is_instant,
    label_of,
    lease_lines,
    printable,
    rate_lines,
    span,
    value_of,
)

__all__ = ["coins", "instant", "look_of", "put_table", "show", "span", "tell", "value_of"]

# Method -> the columns of its rows that a narrow terminal keeps longest, the most important first.
ESSENTIAL: Final[dict[str, tuple[str, ...]]] = {
    "history": (
        *("at_ns", "operation", "amount_nanos", "balance_after_nanos", "accrued_nanos", "resource"),
        *("line_rate_nanos_per_hour", "rate_nanos_per_hour", "value_nanos", "message", "entry_id"),
    ),
    "accounts": ("user_id", "state", "balance_nanos", "exhausts_at_ns", "rate_nanos_per_hour", "available_nanos"),
    "shards_info": ("shard_id", "state", "worker_pid", "buckets", "accounts", "pending_cutoffs"),
    "buckets_info": ("bucket_id", "shard_id", "state", "accounts"),
    "pending_cutoffs": ("user_id", "exhausted_at_ns", "held", "attempts", "last_error"),
    "methods": ("name", "params", "options", "doc"),
}

_HIDDEN: Final = {"rate_nanos_per_second"}  # the hourly rate has the same value without rounding
_WHERE_TRUE: Final = {"replayed", "up_to_now"}  # shown only if true
NAME_CHARACTERS_MAX: Final = 40  # longer ones are folded as other texts are
_OFTEN_EMPTY: Final = {
    *("message", "request_id", "resource", "actor", "value_nanos", "thresholds"),
    "line_rate_nanos_per_hour",
}
_NAMES: Final = {"state", "operation", "user_id", "name", "method", "resource"}
MAP_IN_LINE_MAX: Final = 3  # a larger one within a reply has a line for each field
_RED, _GREEN, _DIM = "\x1b[31m", "\x1b[32m", "\x1b[2m"


def show(
    target: Target, reply: Any, essential: Sequence[str] = (), per: str = HOUR, columns: Sequence[str] = ()
) -> bool:
    """Prints any reply: a map as lines, an array of maps as a table, anything else as it is. `essential`: the columns
    that a narrow terminal keeps longest, the most important first. `per`: the unit in which rates are shown first.
    `columns`: the columns of a CSV without rows. Returns False if the reader has closed the pipe. Raises OutputFailed.
    """
    rows = isinstance(reply, list) and bool(reply) and all(isinstance(row, Mapping) for row in reply)
    if target.as_json:
        return put(as_json(reply))
    if target.as_csv:
        rows_of_it = reply if isinstance(reply, list) else [reply]
        return put(_as_csv(rows_of_it, csv_zone_of(target), columns), newline=False)
    if isinstance(reply, Mapping):
        return put("\n".join(_lines_of(reply, look_of(target, exact=True)._replace(per=per))))
    if rows:
        return put_table(target, _columns_of(reply, look_of(target, exact=target.wide), essential))
    if isinstance(reply, list):
        return put("\n".join(str(row) for row in reply) if reply else "nothing")
    return put(str(reply))


def tell(target: Target, method: str, reply: Any, per: str = HOUR) -> None:
    """Prints the reply of a change. If it cannot be written, reports on standard error that the change was made, and
    ends the command with 0.
    """
    try:
        why = "" if show(target, reply, per=per) else "nobody reads it"
    except OutputFailed as error:
        why = error.message
    if why:
        came = ""
        if isinstance(reply, Mapping) and "entry_id" in reply:
            came = f" (entry {reply['entry_id']}, balance {coins(reply['balance_nanos'])})"
        say(f"billing: {method} was carried out{came}; only its reply could not be written: {why}")
        sys.exit(0)


def show_explained(target: Target, reply: Any) -> None:
    """Prints a reply of `explain` as sentences; with `--wide` the reply's fields, too."""
    if target.as_json or target.as_csv or "state" not in reply:
        show(target, reply)
        return
    width = width_of(target)
    for sentence in explained(reply, look_of(target, exact=True)):
        put("\n".join(fold(sentence, width) if width else [sentence]))
    if target.wide:
        put("")
        show(target, reply)


def look_of(target: Target, *, exact: bool) -> Look:
    """The zone (`--zone`, else the machine's own, which TZ sets) and the exactness with which the command shows values.
    `exact`: with every nanosecond, as also with `--wide`.
    """
    zone: tzinfo | None = ZoneInfo(target.zone) if target.zone is not None else None
    return Look(zone, exact or target.wide)


def put_table(target: Target, columns: Sequence[Column]) -> bool:
    """Prints a table that fits the terminal's width; into a pipe, or with `--wide`, at its full width. Returns False if
    the reader has closed the pipe.
    """
    width = width_of(target)
    drawn = draw(columns, width)
    is_read = put("\n".join(drawn.lines))
    if drawn.left_out and width:
        say("\n".join(fold(f"left out: {', '.join(drawn.left_out)}; --wide shows everything", width)))
    return is_read


def width_of(target: Target) -> int | None:
    """The number of cells that a line may have; None for any number."""
    return shutil.get_terminal_size().columns if not target.wide and is_terminal() else None


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def _fields(reply: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    return (
        (str(name), value)
        for name, value in reply.items()
        if name not in _HIDDEN and not (name in _WHERE_TRUE and value is False)
    )


def _lines_of(reply: Mapping[Any, Any], look: Look) -> list[str]:
    """A line for each field of a reply; several lines for a field that has several values or is folded."""
    standing_texts = standing(reply, look)
    texts: list[tuple[str, list[str], str]] = []
    for name, value in _fields(reply):
        label, text = standing_texts.get(name, (label_of(name), ""))
        if name == "rates" and isinstance(value, Mapping):
            shown = rate_lines(value) or ["-"]
        elif name == "leases" and isinstance(value, Mapping):
            shown = lease_lines(value, look)
        elif isinstance(value, Mapping) and len(value) > MAP_IN_LINE_MAX:
            shown = [f"{label_of(str(key))} {value_of(str(key), item, look)}" for key, item in value.items()]
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            shown = [value_of(name, item, look) for item in value]
        else:
            shown = [text or value_of(name, value, look)]
        if label:
            texts.append((label, shown, _style_of(name, value)))
    labels = max(len(label) for label, _, _ in texts)
    width = max(24, shutil.get_terminal_size().columns - labels - 2) if is_terminal() else None
    lines = []
    for label, shown, style in texts:
        for index, line in enumerate(part for text in shown for part in (fold(text, width) if width else [text])):
            head = label if index == 0 else ""
            lines.append(f"{_styled(head, _DIM)}{' ' * (labels - len(head))}  {_styled(line, style)}")
    return lines


def _columns_of(rows: Sequence[Mapping[Any, Any]], look: Look, essential: Sequence[str]) -> list[Column]:
    names = list(dict.fromkeys(name for row in rows for name, _ in _fields(row)))
    rank = {name: index for index, name in enumerate(essential)}
    columns = []
    for index, name in enumerate(names):
        values = [row.get(name) for row in rows]
        cells = ["" if value is None and name in _OFTEN_EMPTY else value_of(name, value, look) for value in values]
        heading = label_of(name)
        if not look.exact and not any(value not in (None, "") for value in values):
            continue  # the column is empty
        if name.endswith("_nanos_per_hour"):
            heading = f"{heading} per hour"
            cells = [text.removesuffix(" per hour") for text in cells]
        if is_instant(name):
            heading, cells = with_zone(heading, cells)
        columns.append(
            Column(
                heading,
                _kind_of(name, values),
                cells,
                rank.get(name, len(rank) + index),
                [_style_of(name, value) if _is_coloured() else "" for value in values],
            )
        )
    return columns


def with_zone(heading: str, moments: Sequence[str]) -> tuple[str, list[str]]:
    """Moves the zone of a column's instants into the heading, if all have the same; `-` and "" have none."""
    zones = {text.rpartition(" ")[2] for text in moments if " " in text}
    if len(zones) != 1:
        return heading, list(moments)
    zone = zones.pop()
    return f"{heading}, {zone}", [text.removesuffix(f" {zone}") for text in moments]


def _kind_of(name: str, values: Sequence[Any]) -> str:
    if not all(isinstance(value, int | None) and not isinstance(value, bool) for value in values):
        is_whole = name in _NAMES and all(len(str(value)) <= NAME_CHARACTERS_MAX for value in values)
        return WHOLE if is_whole else TEXT
    if is_instant(name):
        return WHOLE
    return COINS if "_nanos" in name else NUMBER


def _style_of(name: str, value: Any) -> str:
    if name == "state":
        return {"active": _GREEN, "exhausted": _RED}.get(str(value), "")
    return _RED if name.endswith("_nanos") and isinstance(value, int) and value < 0 else ""


def _styled(text: str, style: str) -> str:
    return f"{style}{text}\x1b[0m" if style and text and _is_coloured() else text


def _is_coloured() -> bool:
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def csv_zone_of(target: Target) -> tzinfo:
    """The zone of instants in a CSV: `--zone`, else UTC."""
    return UTC if target.zone is None else ZoneInfo(target.zone)


def _as_csv(rows: Sequence[Any], zone: tzinfo, columns: Sequence[str]) -> str:
    """A CSV with a line of names. A row that is no map has the single column `value`. `columns`: used without rows."""
    maps = [row if isinstance(row, Mapping) else {"value": row} for row in rows]
    names = list(dict.fromkeys(str(name) for row in maps for name in row)) or columns
    lines = [csv_line(map(csv_name, names))] if names else []
    for row in maps:
        cells = (csv_value(name, row.get(name), zone) for name in names)
        lines.append(csv_line(map(printable, cells) if is_terminal() else cells))
    return "".join(lines)
