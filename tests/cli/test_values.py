"""What stands in a cell: how a field is shown follows from its name, and a CSV keeps the zone that was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import pytest

from billing.api.http.writing import rendering_of
from billing.api.methods import METHODS
from billing.api.shapes import Field, Shape
from billing.cli.output import as_json
from billing.cli.values import csv_name, csv_value, instant, is_instant, value_of


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


@pytest.mark.parametrize("raw", [b"\xfe\x30", b"\xff", b"\x00\x80"])
def test_a_request_id_of_bytes_stands_everywhere_as_over_http_and_is_not_that_of_any_text(raw: bytes) -> None:
    over_http = rendering_of(METHODS["history"])([{"request_id": raw}], 2)["history"][0]["request_id"]
    assert json.loads(as_json({"request_id": raw}))["request_id"] == over_http
    assert csv_value("request_id", raw) == value_of("request_id", raw) == over_http
    assert over_http not in (raw.hex(), csv_value("request_id", raw.hex()))


def test_rates_and_leases_by_resource_stand_in_a_csv_in_its_units() -> None:
    rates, leases = {"vm-ü": 360_000_000, "": 1}, {"vm-ü": 1_782_907_200_000_000_005}
    assert csv_name("rates") == "rates_coins_per_hour"
    assert csv_value("rates", rates) == '{"vm-ü": "0.36", "": "0.000000001"}'
    assert csv_value("leases", leases) == '{"vm-ü": "2026-07-01T12:00:00.000000005Z"}'
    assert csv_value("holds", [{"amount_nanos": 5}]) == '[{"amount_nanos": 5}]'


def test_a_csv_has_utc_or_the_zone_that_was_asked_for() -> None:
    at_ns = 1_782_907_200_000_000_005
    assert csv_value("at_ns", at_ns) == instant(at_ns) == "2026-07-01T12:00:00.000000005Z"
    shown = [csv_value("whole_from_ns", at_ns, ZoneInfo(zone)) for zone in ("UTC", "Europe/Moscow", "America/St_Johns")]
    assert shown == [
        "2026-07-01T12:00:00.000000005Z",
        "2026-07-01T15:00:00.000000005+03:00",
        "2026-07-01T09:30:00.000000005-02:30",
    ]
