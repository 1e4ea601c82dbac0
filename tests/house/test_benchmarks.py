"""Benchmarks follow the daemon: what they import and the figures that they read by name are there."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import re
from pathlib import Path

import aiohttp
import pytest

import benchmarks
from benchmarks.floor import DOORS, null_server
from benchmarks.pauses import SNAPSHOTS, greatest, total
from benchmarks.rpc_floor import CALLS, load
from benchmarks.session_get import PARTS


def test_every_benchmark_can_be_imported() -> None:
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
        assert importlib.import_module(module.name).__doc__


def test_a_figure_that_the_daemon_does_not_have_is_an_error_and_not_zero() -> None:
    found = [(SNAPSHOTS, 'shard="1"', 3.0), (SNAPSHOTS, 'shard="2"', 4.0)]
    assert (total(found, SNAPSHOTS), greatest(found, SNAPSHOTS)) == (7.0, 4.0)
    for read in (total, greatest):
        with pytest.raises(ValueError, match=r"no metric|empty"):
            read(found, "billing_no_such_figure")


@pytest.mark.parametrize("door", DOORS)
def test_the_null_server_answers_at_each_door_byte_by_byte(door: str) -> None:
    with null_server(door) as server:
        for method, options in CALLS:
            operations, _ = asyncio.run(load(door, server.rpc_port, method, options, pipeline=4, seconds=0.001))
            assert operations >= 4
        assert server.cpu_seconds() > 0


def test_the_parts_that_a_get_is_divided_into_are_those_of_the_aiohttp_that_is_here() -> None:
    packages = Path(aiohttp.__file__).parents[1]
    for places in PARTS.values():
        for end, functions in places:
            defined = set(re.findall(r"def (\w+)", (packages / end).read_text()))
            assert not {*functions} - defined, end
