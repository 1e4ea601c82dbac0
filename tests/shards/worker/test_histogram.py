"""Histograms count each value once, below the bound it equals; the pulse and the syncs measure what there was."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shards.system.clock import MACHINE_CLOCKS
from shards.worker.histogram import BEAT_S, EXACT_VALUES, ExactHistogram, Histogram, Pulse, Syncs


@given(st.lists(st.integers(0, 100)), st.sets(st.integers(0, 100), min_size=1))
def test_every_value_is_counted_once_below_the_bound_it_equals(values: list[int], bounds: set[int]) -> None:
    tally = Histogram(tuple(sorted(bounds)))
    for value in values:
        tally.add(value)
    plain = tally.plain()
    assert plain["sum"] == sum(values)
    edges = [-1, *plain["bounds"], 10**9]
    for (low, high), count in zip(pairwise(edges), plain["counts"], strict=True):
        assert count == sum(1 for value in values if low < value <= high)


@given(st.lists(st.integers(0, 30), min_size=1), st.sets(st.integers(0, 20), min_size=1))
def test_a_quantile_is_the_bound_that_so_many_values_do_not_exceed(values: list[int], bounds: set[int]) -> None:
    tally = Histogram(tuple(sorted(bounds)))
    for value in values:
        tally.add(value)
    median = tally.quantile(0.5)
    within = sum(value <= median for value in values)
    assert 2 * within >= len(values) or median == 2 * max(bounds)
    smaller = [bound for bound in bounds if bound < median]
    assert not smaller or 2 * sum(value <= max(smaller) for value in values) < len(values)
    assert Histogram((1, 2)).quantile(0.99) == 0


@given(st.lists(st.integers(0, 100), min_size=1, max_size=2 * EXACT_VALUES), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_of_a_few_values_is_one_of_them(values: list[int], share: float) -> None:
    tally = ExactHistogram((1, 200))
    for value in values:
        tally.add(value)
    assert tally.plain()["latest"] == values[-EXACT_VALUES:]
    quantile = tally.quantile(share)
    if len(values) > EXACT_VALUES:
        assert quantile in tally.bounds
        return
    assert quantile in values
    assert sum(value <= quantile for value in values) >= share * len(values)
    assert sum(value < quantile for value in values) < share * len(values)


def test_a_batch_counts_when_it_is_durable_and_not_before() -> None:
    syncs = Syncs(MACHINE_CLOCKS.boot_ns)
    assert syncs.waiting_ns() == 0
    syncs.begin()
    first_ns = syncs.waiting_ns()
    syncs.begin()  # the disk was full, and it is handed over again
    assert syncs.waiting_ns() >= first_ns > 0
    assert syncs.batches == 0
    syncs.end(7)
    assert (syncs.batches, syncs.records, syncs.waiting_ns()) == (1, 7, 0)
    assert sum(syncs.figures()["sync_ns"]["counts"]) == 1


async def test_a_loop_that_is_held_up_shows_it() -> None:
    pulse = Pulse(MACHINE_CLOCKS.boot_ns)
    await asyncio.sleep(BEAT_S * 1.5)
    time.sleep(BEAT_S * 2)  # somebody blocks the loop
    await asyncio.sleep(BEAT_S)
    figures = pulse.figures()
    pulse.close()
    assert figures["pause_max_ns"] > BEAT_S * 1e9
    assert sum(figures["loop_lag_ns"]["counts"]) >= 2
