"""Parses instants, days and months as people write them: `2026-11`, `november`, `yesterday`, `2026-03-01T12:00`.

`parse_period(text, zone, now_ns)` returns the period as a span, from its first nanosecond to the one behind its last:

    2026                     a year
    2026-11                  a month
    november, nov            the latest November that has begun
    this month, last month   the current month, and the one before; likewise with year
    2026-11-30               a day
    today, yesterday         the current day, and the one before
    monday, mon              the latest Monday that has begun
    2026-11-30T12:00[:30[.5]]  an instant: in the zone, or with Z or an offset such as +03:00 behind it
    1764547200000000000      nanoseconds since the epoch
    now

A month or weekday that names the end of a period means the first one after the period's begin: with a begin in
November, `december` is the next December, even if that has not begun (`behind_ns`).

A day begins with its first nanosecond in the zone, also on a day whose midnight the clocks skip. In an hour that comes
twice, an instant means the first time; an instant in a skipped hour is refused. Instants are 0 to 2**63-1 ns. Anything
else raises ValueError with the accepted forms.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Final, NamedTuple

from billing.ledger.money import INT64_MAX

SECOND_NS: Final = 10**9
ANY_INSTANT_NS: Final = 10**18  # for `now_ns` if only the form of a text is checked

MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
ABBREVIATED: Final = 3  # characters, at least

YEAR, MONTH, DAY, INSTANT = "year", "month", "day", "instant"

_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.IGNORECASE
)


class Span(NamedTuple):
    """A period: its kind, its first instant, and the instant before which it ends (for an instant, both are equal)."""

    kind: str
    from_ns: int
    to_ns: int


class Skipped(ValueError):
    """A time of day that a zone does not have on that day."""


def parse_period(text: str, zone: tzinfo | None, now_ns: int, behind_ns: int | None = None) -> Span:
    """Parses a text by the table in the module's docstring. `zone`: None for the machine's own. `behind_ns`: a month or
    a weekday means the first one that begins after this instant, not the latest that has begun. Raises ValueError.
    """
    normalized = text.strip().lower()
    if not text.isascii():
        raise ValueError(_expected(text))
    if normalized == "now":
        return Span(INSTANT, now_ns, now_ns)
    if len(normalized) > len("2026") and normalized.isdigit():
        return _instant(int(normalized), text)
    try:
        if match := _INSTANT.fullmatch(normalized):
            return _instant(_moment(match, zone), text)
        first = None if behind_ns is None else _day_of(behind_ns, zone)
        return _dates(normalized, zone, _day_of(now_ns, zone), first, text)
    except Skipped:
        raise
    except (ValueError, OverflowError) as error:
        raise ValueError(str(error) if str(error) == _expected(text) else _expected(text)) from None


def is_relative(text: str) -> bool:
    """Whether the period that a text names depends on the current time."""
    return any(character.isalpha() for character in text.lower().removesuffix("z").replace("t", ""))


def _dates(normalized: str, zone: tzinfo | None, today: date, first: date | None, text: str) -> Span:
    if re.fullmatch(r"\d{4}", normalized):
        year = int(normalized)
        return _between(YEAR, date(year, 1, 1), date(year + 1, 1, 1), zone, text)
    if re.fullmatch(r"\d{4}-\d\d", normalized):
        return _month(int(normalized[:4]), int(normalized[5:]), zone, text)
    if match := re.fullmatch(r"(this|last)[ -](month|year)", normalized):
        is_last = match[1] == "last"
        if match[2] == "year":
            return _dates(f"{today.year - is_last:04}", zone, today, first, text)
        day = today.replace(day=1) - timedelta(days=is_last)
        return _month(day.year, day.month, zone, text)
    if (month := _index(normalized, MONTHS)) is not None:
        if first is not None:
            return _month(first.year if month + 1 > first.month else first.year + 1, month + 1, zone, text)
        return _month(today.year if month < today.month else today.year - 1, month + 1, zone, text)
    if normalized in ("today", "yesterday"):
        day = today - timedelta(days=normalized == "yesterday")
    elif (weekday := _index(normalized, DAYS)) is not None:
        day = today - timedelta(days=(today.weekday() - weekday) % 7)
        if first is not None:
            day = first + timedelta(days=(weekday - first.weekday() - 1) % 7 + 1)
    else:
        day = date.fromisoformat(normalized)
        if normalized != day.isoformat():
            raise ValueError
    return _between(DAY, day, day + timedelta(days=1), zone, text)


def _index(abbreviation: str, names: tuple[str, ...]) -> int | None:
    """The index of the only name that begins with a word of at least `ABBREVIATED` characters; None if there is
    none.
    """
    matches = [
        number
        for number, name in enumerate(names)
        if len(abbreviation) >= ABBREVIATED and name.startswith(abbreviation)
    ]
    return matches[0] if len(matches) == 1 else None


def _month(year: int, month: int, zone: tzinfo | None, text: str) -> Span:
    following = date(year + month // 12, month % 12 + 1, 1)
    return _between(MONTH, date(year, month, 1), following, zone, text)


def _between(kind: str, first: date, following: date, zone: tzinfo | None, text: str) -> Span:
    from_ns, to_ns = (_first_ns(day, zone) for day in (first, following))
    if not 0 <= from_ns <= to_ns <= INT64_MAX:
        raise ValueError(_expected(text))
    return Span(kind, from_ns, to_ns)


def _first_ns(day: date, zone: tzinfo | None) -> int:
    """The first instant of a day in a zone."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return _epoch_ns(midnight.astimezone() if zone is None else midnight)


def _moment(match: re.Match[str], zone: tzinfo | None) -> int:
    day, hour, minute, second, fraction, is_utc, sign, offset_h, offset_m = match.groups()
    parts = date.fromisoformat(day)
    if is_utc:
        zone = UTC
    elif sign:
        offset = timedelta(hours=int(offset_h), minutes=int(offset_m))
        zone = timezone(-offset if sign == "-" else offset)
    at = datetime(parts.year, parts.month, parts.day, int(hour), int(minute), int(second or 0), tzinfo=zone)
    at_ns = _epoch_ns(at.astimezone() if zone is None else at)
    shown = datetime.fromtimestamp(at_ns // SECOND_NS, UTC).astimezone(zone)
    if shown.replace(tzinfo=None) != at.replace(tzinfo=None):
        where = "here" if zone is None else f"in {zone}"
        raise Skipped(f"there is no {match[0].upper()} {where}: clocks skip it")
    return at_ns + int((fraction or "").ljust(9, "0"))


def _epoch_ns(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) * SECOND_NS


def _day_of(at_ns: int, zone: tzinfo | None) -> date:
    return datetime.fromtimestamp(at_ns // SECOND_NS, UTC).astimezone(zone).date()


def _instant(at_ns: int, text: str) -> Span:
    if not 0 <= at_ns <= INT64_MAX:
        raise ValueError(_expected(text))
    return Span(INSTANT, at_ns, at_ns)


def _expected(text: str) -> str:
    return (
        f"expected 2026-11, november, last month, 2026-11-30, today, yesterday, now or 2026-11-30T12:00, got {text!r}"
    )
