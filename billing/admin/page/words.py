"""Numbers in words for people who read at a glance: spans, amounts, sizes. Pure."""

from __future__ import annotations

from billing.ledger.money import format_coins

SECOND_NS = 10**9


def span(ns: int) -> str:
    """`3.1 ms`, `42 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if ns < 0:
        return f"−{span(-ns)}"
    if ns < SECOND_NS:
        return f"{ns / 1e6:.3g} ms" if ns < 999_500_000 else "1 s"
    seconds = ns / SECOND_NS
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for large, unit, small, less in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {unit}" + (f" {rest} {less}" if rest else "")
    return f"{whole} s"


def ago(ns: int) -> str:
    """`now`, `3 s ago`."""
    seconds = ns // SECOND_NS
    return "now" if not seconds else f"{seconds} s ago" if seconds < 10 else f"{span(ns)} ago"


def coins(nanos: int) -> str:
    """Coins to the cent, and to the nano below a cent."""
    if 0 < abs(nanos) < 10_000_000:
        return format_coins(nanos)
    sign, cents = "−" if nanos < 0 else "", abs(nanos) // 10_000_000
    return f"{sign}{cents // 100:,}.{cents % 100:02}"


def size(count: int) -> str:
    """`64 MiB`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"


def number(value: float) -> str:
    """`12,345`; one digit after the point below ten."""
    return f"{value:,.1f}" if 0 < value < 10 and value != int(value) else f"{value:,.0f}"
