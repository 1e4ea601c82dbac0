"""Formats values of replies as text, for people and for CSV. The name of a field determines its format, since names
carry units: `…_nanos` is an amount, `…at_ns` an instant, any other `…_ns` a span.

For people, coins have thousands separators, and instants name their zone. CSV has coins as decimals, instants in ISO
8601 (UTC unless a zone was asked for), and spans in seconds, with the unit in the name of the column; lists and maps
are JSON, in which the names of fields have the unit. Both formats are exact, except that without `Look.exact` instants
lack the fraction of a second. Control characters in texts of clients are replaced before a person sees them, since a
terminal would obey them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, NamedTuple

from billing.ledger.entry import plain_text
from billing.ledger.money import format_coins

SECOND_NS: Final = 10**9
CLOCK_CHARACTERS: Final = len("2026-03-01T12:00:00")
HOUR: Final = "hour"
IN_AN_HOUR: Final = {"second": 3600, "minute": 60, HOUR: 1}
RATE_COLUMNS: Final = {f"rate_per_{per}": per for per in IN_AN_HOUR}  # column of a CSV that is read -> unit
EXACT_BALANCE: Final = "exact_balance"  # in the ledger's unit, as text
LIST_SHOWN_MAX: Final = 64  # a longer one within a map is only counted; --json has it all

_INSTANTS: Final = {"now_ns", "from_ns", "to_ns", "whole_from_ns"}
_LABELS: Final = {
    "user_id": "user",
    "request_id": "request",
    "entry_id": "entry",
    "exhausts_at_ns": "runs out at",
    "exhausted_at_ns": "ran out at",
    "runway_ns": "lasts for",
    "exhaustion_seq": "newest cutoff's seq",
    "holds_nanos": "held",
    "replayed": "answered before",
    "restored": "out of exhaustion",
    "overrun_nanos": "used without money, in all",
}


class Look(NamedTuple):
    """How values are shown: the zone of instants (None: the machine's own), whether instants have every nanosecond, and
    the unit of rates.
    """

    zone: tzinfo | None = UTC
    exact: bool = True
    per: str = HOUR  # in which rates are shown first


def instant(at_ns: int, zone: tzinfo = UTC) -> str:
    """An instant as `2026-03-01T12:00:00.000000001Z`, or with its zone's offset instead of Z, such as `+03:00`."""
    seconds, rest_ns = divmod(at_ns, SECOND_NS)
    at = datetime.fromtimestamp(seconds, zone)
    clock, offset = at.isoformat()[:CLOCK_CHARACTERS], at.isoformat()[CLOCK_CHARACTERS:]
    return f"{clock}.{rest_ns:09}{offset if at.utcoffset() else 'Z'}"


def moment(at_ns: int, look: Look) -> str:
    """An instant as `2026-03-01 13:00:00.000000001 CET`; without the fraction unless `look.exact`."""
    seconds, rest_ns = divmod(at_ns, SECOND_NS)
    at = datetime.fromtimestamp(seconds, UTC).astimezone(look.zone)
    return f"{at:%Y-%m-%d %H:%M:%S}{f'.{rest_ns:09}' if look.exact else ''} {at.tzname()}"


def span(duration_ns: int) -> str:
    """A span as `1d 02:03:04.5`, with as many digits in the fraction as needed."""
    sign = "-" if duration_ns < 0 else ""
    seconds, rest_ns = divmod(abs(duration_ns), SECOND_NS)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    fraction = f".{rest_ns:09}".rstrip("0") if rest_ns else ""
    return f"{sign}{f'{days:,}d ' if days else ''}{hour:02}:{minute:02}:{second:02}{fraction}"


def coins(nanos: int) -> str:
    """An amount as `12,378.77836746`: every digit, with thousands separators."""
    integer, point, fraction = format_coins(abs(nanos)).partition(".")
    return f"{'-' if nanos < 0 else ''}{int(integer):,}{point}{fraction}"


def rate_text(nanos_per_hour: int, per: str = HOUR) -> str:
    """A rate as `0.41 per hour`; in another unit as `1 per second (3,600 per hour)`, if it is whole nanos there."""
    hourly = f"{coins(nanos_per_hour)} per hour"
    in_unit, rest = divmod(nanos_per_hour, IN_AN_HOUR[per])
    return hourly if per == HOUR or rest else f"{coins(in_unit)} per {per} ({hourly})"


def is_instant(name: str) -> bool:
    """Whether a field of this name is an instant."""
    return name.endswith("at_ns") or name in _INSTANTS


def label_of(name: str) -> str:
    """The heading for a field: its name without the unit, which the value shows."""
    if name in _LABELS:
        return _LABELS[name]
    for unit in ("_nanos_per_hour", "_nanos", "_ns", "_id"):
        if name.endswith(unit):
            name = name.removesuffix(unit)
            break
    return name.replace("_", " ")


def value_of(name: str, value: Any, look: Look = Look()) -> str:  # noqa: B008  immutable
    """A field's value as text for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _number_of(name, value, look)
    if isinstance(value, bytes):
        return plain_text(value)
    if isinstance(value, Mapping) and name == "rates":  # per rate line, by resource
        return "; ".join(rate_lines(value)) or "-"
    if isinstance(value, Mapping) and name == "leases":
        return "; ".join(lease_lines(value, look)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{label_of(str(key))} {value_of(str(key), item, look)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        if len(value) > LIST_SHOWN_MAX:
            return f"{len(value):,} values"
        return "; ".join(value_of(name, item, look) for item in value) or "-"
    if name == EXACT_BALANCE:
        return f"{int(value):,} (a nano is 3,600,000,000,000)"
    return printable(str(value))


def rate_lines(rates: Mapping[Any, int]) -> list[str]:
    """A line for each rate line: `0.41 per hour on vm-web-1`."""
    return [
        f"{coins(rate)} per hour" + (f" on {printable(str(resource))}" if resource else "")
        for resource, rate in rates.items()
    ]


def lease_lines(leases: Mapping[Any, int], look: Look) -> list[str]:
    """A line for each lease: `vm-web-1 ends at 2026-11-28 12:00:00 UTC`."""
    return [
        f"{printable(str(resource)) or 'the unnamed line'} ends at {moment(ends_ns, look)}"
        for resource, ends_ns in leases.items()
    ]


def printable(text: str) -> str:
    """A text of a client, with each unprintable character replaced, since a terminal would obey control characters."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _number_of(name: str, value: int, look: Look) -> str:
    if name.endswith("_nanos_per_hour"):
        return rate_text(value, look.per)
    if name.endswith("_nanos_per_second"):
        return f"{coins(value)} per second"
    if name.endswith("_nanos"):
        return coins(value)
    if is_instant(name):
        return moment(value, look)
    if name.endswith("_ns"):
        return span(value)
    return str(value) if name.endswith(("_id", "_pid", "pid")) else f"{value:,}"


# -- CSV -------------------------------------------------------------------------------------------------------------


def csv_name(name: str) -> str:
    """The name of a CSV's column for a field, with the unit that the cells have."""
    if name == "rates":
        return "rates_coins_per_hour"
    if is_instant(name):
        return name.removesuffix("_ns")
    if name.endswith("_ns"):
        return name.removesuffix("_ns") + "_s"
    return name.replace("_nanos", "_coins")


def csv_value(name: str, value: Any, zone: tzinfo = UTC) -> str:
    """The exact value as a CSV's cell: `12.5`, `2026-03-01T12:00:00.000000001Z`; "" for None. A NUL, which an id may
    contain, becomes the replacement character, because readers of CSV stop at it; `--json` has the exact text.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if is_instant(name):
            return instant(value, zone)
        return format_coins(value) if "_nanos" in name or name.endswith("_ns") else str(value)
    if isinstance(value, bytes):
        return plain_text(value)
    if isinstance(value, Mapping) and name == "rates":  # by resource: the unit is that of the column
        value = {resource: format_coins(rate) for resource, rate in value.items()}
    elif isinstance(value, Mapping) and name == "leases":
        value = {resource: instant(ends_ns, zone) for resource, ends_ns in value.items()}
    if isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False, default=plain_text)
    return str(value).replace("\0", "\N{REPLACEMENT CHARACTER}")
