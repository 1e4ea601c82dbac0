"""Buckets against HdrHistogram's own, and what may be told of them."""

from __future__ import annotations

import random

import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from billing.trial.loadtest.latency import BEYOND_MIN, SIZE, VALUE_MAX, Histogram, greatest_of, hgrm, index_of


@given(st.integers(0, VALUE_MAX))
def test_a_bucket_holds_what_is_put_into_it(value: int) -> None:
    index = index_of(value)
    assert 0 <= index < SIZE
    assert value <= greatest_of(index) <= value + value // 128 + 1
    assert index_of(greatest_of(index)) == index
    assert index == 0 or greatest_of(index - 1) < value


def recorded(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_percentiles_are_those_of_hdrhistogram(seed: int, spread: float) -> None:
    rng = random.Random(seed)
    values = [1 + int(rng.lognormvariate(14, spread)) for _ in range(50_000)]
    oracle = HdrHistogram(1, 2**50, 3)
    for value in values:
        assert oracle.record_value(value)
    histogram = recorded(values)
    assert histogram.total == oracle.get_total_count()
    for percent, value in histogram.percentiles().items():
        expected = oracle.get_max_value() if percent == "max" else oracle.get_value_at_percentile(float(percent))
        assert value == pytest.approx(expected, rel=1 / 100)
    assert histogram.mean() == pytest.approx(oracle.get_mean_value(), rel=1 / 100)


def test_a_percentile_is_told_only_where_enough_lies_beyond() -> None:
    assert recorded([5] * (100 * BEYOND_MIN - 1)).percentile("99") is None
    assert recorded([5] * (100 * BEYOND_MIN)).percentile("99") == 5
    assert recorded([5] * 199).percentiles() == {"max": 5}
    assert recorded([7] * 200).percentiles() == {"50": 7, "max": 7}
    assert Histogram().percentiles() == {"max": 0}


def test_histograms_add_up() -> None:
    merged, second, both = recorded([1, 10**6]), recorded([10**6, 10**9]), recorded([1, 10**6, 10**6, 10**9])
    merged.merge(second)
    assert merged.sparse() == both.sparse()
    again = Histogram()
    again.add(both.sparse())
    assert again.counts == both.counts


def test_the_text_form_is_what_plotters_read() -> None:
    lines = hgrm(recorded([1_000_000] * 3 + [9_000_000])).splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    rows = [[float(field) for field in line.split()] for line in lines[2:] if not line.startswith("#")]
    assert [(share, count) for _, share, count, *_ in rows] == [(0.75, 3), (1, 4)]
    assert rows[0][0] == pytest.approx(1, rel=0.01)
    assert rows[1][0] == pytest.approx(9, rel=0.01)
    assert rows[0][3] == 4
    assert [line.split("=")[0].strip() for line in lines if line.startswith("#")] == ["#[Mean", "#[Max", "#[Buckets"]
