"""What stands in a cell: how a field is shown follows from its name, and a CSV keeps the zone that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from zoneinfo import ZoneInfo

from billing.api.methods import METHODS
from billing.api.shapes import Field, Shape
from billing.cli.values import csv_value, instant, is_instant


def fields_of(shape: Shape | None) -> Iterator[Field]:
    for field in () if shape is None else shape.fields:
        yield field
        yield from fields_of(field.shape)


def test_the_name_of_a_field_tells_an_instant_from_a_span() -> None:
    fields = [field for row in METHODS.values() for field in fields_of(row.reply.shape)]
    assert {field.name for field in fields if field.kind == "instant"} >= {"whole_from_ns", "at_ns"}
    for field in fields:
        if field.name.endswith("_ns"):
            assert is_instant(field.name) == (field.kind == "instant"), field.name


def test_a_csv_holds_no_nul() -> None:
    assert csv_value("user_id", "a\0b") == "a\N{REPLACEMENT CHARACTER}b"


def test_a_csv_has_utc_or_the_zone_that_was_asked_for() -> None:
    at_ns = 1_782_907_200_000_000_005
    assert csv_value("at_ns", at_ns) == instant(at_ns) == "2026-07-01T12:00:00.000000005Z"
    shown = [csv_value("whole_from_ns", at_ns, ZoneInfo(zone)) for zone in ("UTC", "Europe/Moscow", "America/St_Johns")]
    assert shown == [
        "2026-07-01T12:00:00.000000005Z",
        "2026-07-01T15:00:00.000000005+03:00",
        "2026-07-01T09:30:00.000000005-02:30",
    ]
