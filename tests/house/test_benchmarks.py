"""Benchmarks follow the daemon: what they import and the figures that they read by name are there."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks
from benchmarks.pauses import SNAPSHOTS, greatest, total


def test_every_benchmark_can_be_imported() -> None:
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
        assert importlib.import_module(module.name).__doc__


def test_a_figure_that_the_daemon_does_not_have_is_an_error_and_not_zero() -> None:
    found = [(SNAPSHOTS, 'shard="1"', 3.0), (SNAPSHOTS, 'shard="2"', 4.0)]
    assert (total(found, SNAPSHOTS), greatest(found, SNAPSHOTS)) == (7.0, 4.0)
    for read in (total, greatest):
        with pytest.raises(ValueError, match=r"no metric|empty"):
            read(found, "billing_no_such_figure")
