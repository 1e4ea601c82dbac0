"""Builds commands from rows of the table of methods. The row alone determines the command's arguments and options.

    required field    an argument in the row's order, named after the field: USER, AMOUNT, REASON
    option            `--name` with dashes, and without the unit that its type implies: `rate_seq`, `ttl_ns` become
                      `--rate-seq`, `--ttl`
    type              amount, rate: coins · span: a duration · instant: a date or time · enum: one of its words ·
                      integer · all others: text
    help              the field's own text, and the default of an enum

The methods of these rows change an account, so each command also has `--dry-run`. `_NAMES` and `_HELP` replace names
and texts of the row for which people know better ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

import click

from billing.api.methods import METHODS, Field
from billing.api.values import Enum, Span
from billing.cli.calling import Target, ask, rehearse, target_options
from billing.cli.listing import HELP
from billing.cli.options import COINS, Command, Duration, applied, option
from billing.cli.output import put, say
from billing.cli.periods import is_relative, parse_period
from billing.cli.sentences import lease_told
from billing.cli.showing import show, tell
from billing.cli.values import HOUR

_NAMES: Final = {"user_id": "user", "hold_id": "hold", "class": "name", "expires_at_ns": "expires"}
_HELP: Final = {
    "expires_at_ns": "What is left of it then is gone: 2026-12-31T12:00, 2027-01-01.",
    "request_id": "Makes the call safe to repeat: it takes effect once.",
    "message": "Stands in the history.",
}
_METAVARS: Final = {"request_id": "ID", "message": "TEXT", "instant": "WHEN", "text": "NAME"}
_TYPES: Final[dict[str, click.ParamType]] = {  # type: ignore[type-arg]
    "amount": COINS,
    "rate": COINS,
    "integer": click.INT,
}
DRY_RUN: Final = option("--dry-run", is_flag=True, help="Shows what it would answer now; nothing changes.")


def name_of(field: Field) -> str:
    """A field's name on the command line, with `_` between words."""
    plain = field.name.removesuffix("_ns") if field.type.kind in ("span", "instant") else field.name
    return _NAMES.get(field.name, plain)


def taken_by(field: Field) -> click.ParamType | None:  # type: ignore[type-arg]
    """The click type of a field's value on the command line; None for text."""
    kind = field.type
    if isinstance(kind, Span):
        return Duration(kind.low, kind.high)
    return click.Choice(list(kind.choices)) if isinstance(kind, Enum) else _TYPES.get(kind.kind)


def argument_of(field: Field) -> Any:
    """The argument for a required field."""
    return click.argument(field.name, metavar=name_of(field).upper(), type=taken_by(field))


def option_of(field: Field) -> Any:
    """The option for an optional field."""
    kind = field.type
    help_text = _HELP.get(field.name) or f"{field.doc[:1].upper()}{field.doc[1:]}."
    value_type = taken_by(field)
    if isinstance(kind, Enum):
        help_text += f"  [{kind.default}]"
    metavar = None if value_type is not None else _METAVARS.get(field.name) or _METAVARS.get(kind.kind)
    return option(f"--{name_of(field).replace('_', '-')}", field.name, type=value_type, metavar=metavar, help=help_text)


def change(target: Target, dry_run: bool, method: str, *params: Any, **options: Any) -> None:
    """Makes a call that changes an account, and prints the reply. With `dry_run`, prints the reply that the call would
    have, and changes nothing.
    """
    per = unit_of(method, options)
    if dry_run:
        show(target, rehearse(target, method, *params, **options), per=per)
        say("Nothing was changed: that is what it would answer now.")
    else:
        reply = ask(target, method, *params, **options)
        tell(target, method, reply, per)
        lease_text = lease_told(reply, options.get("ttl_ns")) if method == "set_rate" else ""
        if lease_text and not (target.as_json or target.as_csv):
            put(lease_text)


def unit_of(method: str, options: Mapping[str, Any]) -> str:
    """The unit of the rate in a call, so that its reply can be shown in the same unit; the hour if there is none."""
    fields = METHODS[method].options if method in METHODS else ()
    units = next((field.type for field in fields if field.name == "per"), None)
    return str(options.get("per") or units.default) if isinstance(units, Enum) else HOUR


def command_of(name: str, method: str) -> click.Command:
    """Builds the command `name`, which calls the method `method`."""
    row = METHODS[method]
    instants = [field for field in row.options if field.type.kind == "instant"]

    def run(target: Target, dry_run: bool, **values: Any) -> None:
        params = [values.pop(field.name) for field in row.required]
        for field in instants:
            if values[field.name] is not None:
                values[field.name] = _instant(target, values[field.name], f"--{name_of(field)}")
        change(target, dry_run, method, *params, **values)

    parts = [*map(argument_of, row.required), *map(option_of, row.options), DRY_RUN]
    return click.command(name, cls=Command, help=HELP[name])(applied(parts, target_options(run)))


def _instant(target: Target, text: str, where: str) -> int:
    """Parses an instant typed as a date or a time, in the zone of `target`. Raises BadParameter."""
    zone = ZoneInfo(target.zone) if target.zone is not None else None
    try:
        if not is_relative(text):  # what those words name has begun already
            return parse_period(text, zone, 0).from_ns
    except ValueError:
        pass
    message = f"expected a date or an instant, as 2027-01-01 or 2026-12-31T12:00, got {text!r}"
    raise click.BadParameter(message, param_hint=where)
