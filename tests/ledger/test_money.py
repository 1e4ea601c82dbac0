"""Amounts and rates, as CONTRACT §2 takes them from the wire."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.ledger.errors import Refused
from billing.ledger.money import (
    INT64_MAX,
    NANO,
    format_coins,
    parse_amount,
    parse_delta,
    parse_limit,
    parse_rate,
    parse_signed_amount,
)


def error_of(parse: Callable[..., object], *args: Any) -> str:
    with pytest.raises(Refused) as caught:
        parse(*args)
    assert caught.value.applied == "no"
    return caught.value.name


@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        (1, 1),
        (INT64_MAX, INT64_MAX),
        ("12.5", 12_500_000_000),
        (b"12.5", 12_500_000_000),
        ("0.000000001", 1),
        ("007", 7_000_000_000),
        ("+3", 3_000_000_000),
        ("9223372036.854775807", INT64_MAX),
        (3.0, 3),
        (float(2**53), 2**53),
    ],
)
def test_an_amount_is_nanos_as_an_integer_or_coins_as_a_decimal_string_or_a_whole_float(
    value: object, nanos: int
) -> None:
    assert parse_amount(value) == nanos


@pytest.mark.parametrize(
    "value",
    [
        0, -1, True, False, None, 0.5, 1e300, float(2**53) * 2, math.nan, math.inf, -math.inf, -2.0, 0.0, INT64_MAX + 1,
        "", "-1", "0", "0.0", "1.", ".5", "1e3", " 1", "1 ", "1\n", "1_000", "0x10", "0.0000000001", "１", "nan", "1,5",
        "--1", "9223372036.854775808", "9" * 31, b"\xff", [], {}, [1], (1,), 1j,
    ],
)  # fmt: skip
def test_any_other_amount_is_invalid_amount(value: object) -> None:
    assert error_of(parse_amount, value) == "INVALID_AMOUNT"


def test_a_signed_amount_is_anything_but_zero() -> None:
    assert parse_signed_amount(-5) == -5
    assert parse_signed_amount("-0.5") == -500_000_000
    assert parse_signed_amount(-float(2**53)) == -(2**53)
    assert parse_signed_amount(-INT64_MAX) == -INT64_MAX
    for value in (0, "0", "-0", 0.0, -INT64_MAX - 1, True, "-"):
        assert error_of(parse_signed_amount, value) == "INVALID_AMOUNT"


def test_a_limit_may_be_zero_but_not_negative() -> None:
    assert (parse_limit(0), parse_limit("0"), parse_limit(7)) == (0, 0, 7)
    for value in (-1, "-0.1", True, 0.5, INT64_MAX + 1):
        assert error_of(parse_limit, value) == "INVALID_AMOUNT"


@pytest.mark.parametrize(("per", "factor"), [("second", 3600), ("minute", 60), ("hour", 1), (b"hour", 1)])
def test_a_rate_is_held_as_nanos_per_hour(per: bytes | str, factor: int) -> None:
    assert parse_rate(7, per) == 7 * factor
    assert parse_rate("0.000000001", per) == factor
    assert parse_delta(-7, per) == -7 * factor


def test_a_rate_is_per_second_by_default_and_may_be_zero() -> None:
    assert (parse_rate(1), parse_rate(0), parse_rate("0"), parse_delta(0)) == (3600, 0, 0, 0)


@pytest.mark.parametrize("value", [-1, "-1", True, 0.5, None, "x", INT64_MAX + 1])
def test_a_negative_rate_and_what_is_no_amount_is_invalid_rate(value: float | str | None) -> None:
    assert error_of(parse_rate, value, "hour") == "INVALID_RATE"


@pytest.mark.parametrize("per", ["day", "", "Hour", None, 1, b"\xff", []])
def test_a_rate_is_per_second_minute_or_hour_and_nothing_else(per: object) -> None:
    assert error_of(parse_rate, 1, per) == "INVALID_RATE"
    assert error_of(parse_delta, 1, per) == "INVALID_RATE"


def test_a_rate_beyond_its_bound_per_hour_is_limit_exceeded() -> None:
    assert parse_rate(INT64_MAX // 3600) <= INT64_MAX
    assert error_of(parse_rate, INT64_MAX // 3600 + 1) == "LIMIT_EXCEEDED"
    assert error_of(parse_delta, INT64_MAX // 3600 + 1) == "LIMIT_EXCEEDED"
    assert parse_delta(-INT64_MAX, "hour") == -INT64_MAX
    assert error_of(parse_delta, -(INT64_MAX // 3600) - 1) == "INVALID_RATE"


@given(st.integers(-INT64_MAX, INT64_MAX).filter(bool))
def test_what_is_formatted_is_read_back(nanos: int) -> None:
    assert parse_signed_amount(format_coins(nanos)) == nanos


@pytest.mark.parametrize(
    ("nanos", "shown"), [(0, "0"), (1, "0.000000001"), (10**9, "1"), (12_500_000_000, "12.5"), (-5 * 10**8, "-0.5")]
)
def test_coins_are_shown_without_needless_zeros(nanos: int, shown: str) -> None:
    assert format_coins(nanos) == shown


def test_the_internal_unit_is_a_nano_per_hour_for_a_nanosecond() -> None:
    assert NANO == 3600 * 10**9


def test_the_largest_rate_there_is() -> None:
    assert parse_rate(INT64_MAX, "hour") == parse_delta(INT64_MAX, "hour") == INT64_MAX
