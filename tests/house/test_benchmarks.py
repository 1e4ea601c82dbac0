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
from benchmarks.figures import medians, quantiles_ms
from benchmarks.floor import DOORS, null_server
from benchmarks.pauses import SNAPSHOTS, greatest, total
from benchmarks.rpc_floor import CALLS, load
from benchmarks.session_get import PARTS
from tests.house.source import REPOSITORY

OPTION = re.compile(r'add_argument\(\s*"(--[a-z-]+)"')
TYPED = re.compile(r"(?:`|python -m )(?:benchmarks\.)?([a-z_]+)((?: [\w/.,=+:-]+)*)")


def test_every_benchmark_can_be_imported() -> None:
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
        assert importlib.import_module(module.name).__doc__


def programs() -> dict[str, str]:
    """name -> text, of what can be started."""
    texts = {path.stem: path.read_text() for path in (REPOSITORY / "benchmarks").glob("*.py")}
    return {name: text for name, text in texts.items() if "__main__" in text}


def test_the_readme_lists_every_benchmark() -> None:
    readme = (REPOSITORY / "benchmarks" / "README.md").read_text()
    assert {name for name in programs() if f"benchmarks.{name}" not in readme} == set()


def test_what_is_said_to_be_typed_has_only_options_that_there_are() -> None:
    sources = programs()
    common = set(OPTION.findall((REPOSITORY / "benchmarks" / "figures.py").read_text()))
    written = [(REPOSITORY / "benchmarks" / name).read_text() for name in ("README.md", "RESULTS.md")]
    typed = [match for text in (*written, *sources.values()) for match in TYPED.findall(text) if match[0] in sources]
    assert len(typed) > 80
    for name, rest in typed:
        options = set(OPTION.findall(sources[name])) | (common if "add_arguments(" in sources[name] else set())
        assert not set(re.findall(r"--[a-z][a-z-]*", rest)) - options, (name, rest)


def test_a_figure_that_the_daemon_does_not_have_is_an_error_and_not_zero() -> None:
    samples = [(SNAPSHOTS, 'shard="1"', 3.0), (SNAPSHOTS, 'shard="2"', 4.0)]
    assert (total(samples, SNAPSHOTS), greatest(samples, SNAPSHOTS)) == (7.0, 4.0)
    for read in (total, greatest):
        with pytest.raises(ValueError, match=r"no metric|empty"):
            read(samples, "billing_no_such_figure")


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


def test_nothing_measured_is_an_error_and_not_zero() -> None:
    for read in (quantiles_ms, medians):
        with pytest.raises((ValueError, LookupError)):
            read([])
