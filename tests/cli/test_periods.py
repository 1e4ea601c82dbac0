"""Months, days and instants as people name them, in a zone."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest

from billing.cli.periods import DAY, INSTANT, MONTH, YEAR, Span, is_relative, parse_period

SECOND_NS = 10**9
NOW_NS = 1_782_907_200 * SECOND_NS + 5  # Wednesday, 2026-07-01 12:00 UTC


def utc(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * SECOND_NS  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "at_ns"),
    [
        ("1727000000000000001", 1_727_000_000_000_000_001),
        ("2026-03-01T12:00", utc(2026, 3, 1, 12)),
        ("2026-03-01 12:00:01Z", utc(2026, 3, 1, 12, 0, 1)),
        ("2026-03-01t12:00:00.000000001z", utc(2026, 3, 1, 12) + 1),
        ("2026-03-01T12:00:00.5+03:00", utc(2026, 3, 1, 9) + SECOND_NS // 2),
        ("2026-03-01T12:00-0130", utc(2026, 3, 1, 13, 30)),
        ("now", NOW_NS),
    ],
)
def test_instants_are_read_to_the_nanosecond(text: str, at_ns: int) -> None:
    assert parse_period(text, UTC, NOW_NS) == Span(INSTANT, at_ns, at_ns)


@pytest.mark.parametrize(
    ("text", "kind", "first", "following"),
    [
        ("2025", YEAR, (2025, 1, 1), (2026, 1, 1)),
        ("2026-11", MONTH, (2026, 11, 1), (2026, 12, 1)),
        ("2026-12", MONTH, (2026, 12, 1), (2027, 1, 1)),
        ("july", MONTH, (2026, 7, 1), (2026, 8, 1)),
        ("August", MONTH, (2025, 8, 1), (2025, 9, 1)),
        ("feb", MONTH, (2026, 2, 1), (2026, 3, 1)),
        ("2026-02-28", DAY, (2026, 2, 28), (2026, 3, 1)),
        ("this month", MONTH, (2026, 7, 1), (2026, 8, 1)),
        ("Last-Month", MONTH, (2026, 6, 1), (2026, 7, 1)),
        ("this year", YEAR, (2026, 1, 1), (2027, 1, 1)),
        ("last year", YEAR, (2025, 1, 1), (2026, 1, 1)),
        ("today", DAY, (2026, 7, 1), (2026, 7, 2)),
        ("yesterday", DAY, (2026, 6, 30), (2026, 7, 1)),
        ("wed", DAY, (2026, 7, 1), (2026, 7, 2)),
        ("thursday", DAY, (2026, 6, 25), (2026, 6, 26)),
    ],
)
def test_days_months_and_years_are_spans(
    text: str, kind: str, first: tuple[int, ...], following: tuple[int, ...]
) -> None:
    assert parse_period(text, UTC, NOW_NS) == Span(kind, utc(*first), utc(*following))


@pytest.mark.parametrize(
    ("text", "behind", "first"),
    [
        ("december", (2026, 11, 1), (2026, 12, 1)),
        ("november", (2026, 11, 1), (2027, 11, 1)),
        ("january", (2026, 11, 1), (2027, 1, 1)),
        ("monday", (2026, 7, 3), (2026, 7, 6)),
        ("wed", (2026, 7, 1), (2026, 7, 8)),
        ("2020", (2026, 11, 1), (2020, 1, 1)),
    ],
)
def test_a_name_may_mean_the_first_one_behind_an_instant(
    text: str, behind: tuple[int, ...], first: tuple[int, ...]
) -> None:
    assert parse_period(text, UTC, NOW_NS, utc(*behind)).from_ns == utc(*first)


@pytest.mark.parametrize(
    ("text", "zone", "from_ns", "hours"),
    [
        ("2026-11", "Europe/Moscow", utc(2026, 10, 31, 21), 30 * 24),
        ("2026-03-29", "Europe/Berlin", utc(2026, 3, 28, 23), 23),  # summer time begins
        ("2026-10-25", "Europe/Berlin", utc(2026, 10, 24, 22), 25),  # and ends
        ("2018-11-04", "America/Sao_Paulo", utc(2018, 11, 4, 3), 23),  # midnight was skipped
        ("today", "Pacific/Auckland", utc(2026, 7, 1, 12), 24),  # where it is tomorrow
    ],
)
def test_a_day_is_that_of_its_zone(text: str, zone: str, from_ns: int, hours: int) -> None:
    span = parse_period(text, ZoneInfo(zone), NOW_NS)
    assert (span.from_ns, span.to_ns - span.from_ns) == (from_ns, hours * 3600 * SECOND_NS)


def test_an_instant_that_clocks_skip_is_refused_and_of_two_the_first_is_meant() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    with pytest.raises(ValueError, match="there is no 2026-03-29T02:30 in Europe/Berlin: clocks skip it"):
        parse_period("2026-03-29T02:30", berlin, NOW_NS)
    assert parse_period("2026-03-29T01:59:59", berlin, NOW_NS).from_ns == utc(2026, 3, 29, 0, 59, 59)
    assert parse_period("2026-03-29T03:00", berlin, NOW_NS).from_ns == utc(2026, 3, 29, 1)
    assert parse_period("2026-03-29T02:30Z", berlin, NOW_NS).from_ns == utc(2026, 3, 29, 2, 30)
    assert parse_period("2026-10-25T02:30", berlin, NOW_NS).from_ns == utc(2026, 10, 25, 0, 30)


def test_consecutive_months_join_in_every_zone() -> None:
    zones: list[tzinfo | None] = [UTC, ZoneInfo("Europe/Moscow"), ZoneInfo("America/New_York"), None]
    for zone in zones:
        months = [parse_period(f"2026-{month:02}", zone, NOW_NS) for month in range(1, 13)]
        year = parse_period("2026", zone, NOW_NS)
        assert [span.to_ns for span in months[:-1]] == [span.from_ns for span in months[1:]]
        assert (months[0].from_ns, months[-1].to_ns) == (year.from_ns, year.to_ns)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "soon",
            "2026-13",
            "2026-13-01",
            "2026-02-30",
            "1969-12-31",
            "1969",
            "2300-01-01",
            "-1",
            "1e9",
            "ju",
            "9999",
        ),
        *("2026-1", "20260301", "2026-03-01T25:00", "2026-03-01T12:00+99:00", "２０２６", "99999999999999999999"),
    ],
)
def test_what_names_nothing_is_refused_with_what_would(text: str) -> None:
    if text == "20260301":  # nanoseconds since the epoch
        assert parse_period(text, UTC, NOW_NS).from_ns == 20260301
        return
    with pytest.raises(ValueError, match=r"expected 2026-11, november, last month, 2026-11-30, today, yesterday"):
        parse_period(text, UTC, NOW_NS)


def test_only_words_hang_on_what_is_now() -> None:
    assert [is_relative(text) for text in ("today", "november", "now", "mon", "last month")] == [True] * 5
    fixed = ("2026", "2026-11", "2026-03-01T12:00Z", "1727000000000000001", "2026-03-01T12:00+03:00")
    assert [is_relative(text) for text in fixed] == [False] * 5
