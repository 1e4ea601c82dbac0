"""Numbers in words for people who read at a glance: spans, amounts, sizes."""

from __future__ import annotations

from datetime import UTC, datetime

from billing.ledger.money import format_coins
from shards.worker.histogram import LATENESS_NS

SECOND_NS = 10**9
HALF_DAY_NS = 12 * 3600 * SECOND_NS


def span(ns: int) -> str:
    """A span of time as `3.1 ms`, `42 s`, `3 min 20 s`, `2 h 5 min` or `3 d 4 h`."""
    if ns < 0:
        return f"−{span(-ns)}"
    if ns < SECOND_NS:
        return f"{ns / 1e6:.3g} ms" if ns < 999_500_000 else "1 s"
    seconds = ns / SECOND_NS
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole_seconds = int(seconds)
    for large, unit, small, less in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole_seconds >= large:
            rest = whole_seconds % large // small
            return f"{whole_seconds // large} {unit}" + (f" {rest} {less}" if rest else "")
    return f"{whole_seconds} s"


def at_least(ns: int) -> str:
    """A span in its largest unit alone, rounded down, for narrow places: `42 s`, `1 min`, `3 h`."""
    for unit_ns in (86_400 * SECOND_NS, 3600 * SECOND_NS, 60 * SECOND_NS):
        if ns >= unit_ns:
            return span(ns - ns % unit_ns)
    return span(ns)


def late(ns: int) -> str:
    """A span from the histogram of lateness. At or above the histogram's last bound it is shown as `>` that bound."""
    return f"> {span(LATENESS_NS[-1])}" if ns >= LATENESS_NS[-1] else span(ns)


def clock(wall_ns: int, now_ns: int) -> str:
    """An instant as `13:29:23 UTC`; with the date, and without seconds, if it is more than twelve hours ago."""
    moment = datetime.fromtimestamp(wall_ns // SECOND_NS, UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC" if now_ns - wall_ns > HALF_DAY_NS else f"{moment:%H:%M:%S} UTC"


def part_of(answering: int, shards: int) -> str:
    """How many of the shards a figure covers, in words; empty if all shards answer."""
    if answering == shards:
        return ""
    if not answering:
        return "no shard answers"
    silent = shards - answering
    return f"at {answering} of {shards} shards; {silent} {'does' if silent == 1 else 'do'} not answer"


def ago(ns: int) -> str:
    """An age as `now` or `3 s ago`."""
    seconds = ns // SECOND_NS
    return "now" if not seconds else f"{seconds} s ago" if seconds < 10 else f"{span(ns)} ago"


def coins(nanos: int) -> str:
    """Coins to the cent, and to the nano below a cent."""
    if 0 < abs(nanos) < 10_000_000:
        return format_coins(nanos)
    sign, cents = "−" if nanos < 0 else "", abs(nanos) // 10_000_000
    return f"{sign}{cents // 100:,}.{cents % 100:02}"


def coins_short(nanos: int) -> str:
    """Coins in few characters: whole coins from 100,000 on; millions, billions or trillions from ten million on."""
    whole_coins = abs(nanos) // 10**9
    if whole_coins < 100_000:
        return coins(nanos) if nanos else "0"
    sign = "−" if nanos < 0 else ""
    if whole_coins < 10_000_000:
        return f"{sign}{whole_coins:,}"
    for unit, name in ((10**12, "tn"), (10**9, "bn"), (10**6, "M")):
        if whole_coins >= unit:
            return f"{sign}{whole_coins / unit:,.1f}".removesuffix(".0") + f" {name}"
    raise AssertionError(whole_coins)


def size(count: int) -> str:
    """A number of bytes as `64 MiB`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"


def number(value: float) -> str:
    """A number as `12,345`; below ten with one digit after the point, unless it is whole."""
    return f"{value:,.1f}" if 0 < value < 10 and value != int(value) else f"{value:,.0f}"
