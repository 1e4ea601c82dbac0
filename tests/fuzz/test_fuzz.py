"""A bounded number of broken inputs for each decoder, the same each time; `make torture` goes on for hours."""

from __future__ import annotations

import json
import subprocess
import sys

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.system.links import FrameDecoder, FrameError
from tests.api.test_any_bytes import good, values
from tests.conftest import REPOSITORY
from tests.fuzz.run import StepCounter, bases_of, run
from tests.fuzz.targets import TARGETS, corpus, take_frames, take_request, take_segment, take_wire

# Half a second each at most, on one core of 2026; counted, so that every run is the same.
COUNTS = {
    "frames": 400,
    "requests": 3_000,
    "json": 1_000,
    "iproto": 500,
    "wires": 3_000,
    "journal": 400,
    "snapshot": 750,
    "config": 120,
}

edits = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255) | st.binary(max_size=8)), min_size=1, max_size=4)


def edited(data: bytes, changes: list[tuple[int, int | bytes]]) -> bytes:
    changed = bytearray(data)
    for at, change in changes:
        at %= len(changed) + 1
        if isinstance(change, bytes):
            changed[at:at] = change
        elif at < len(changed):
            changed[at] = change
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_broken_input_is_taken_or_refused_as_declared_within_its_bounds(name: str) -> None:
    assert run(name, 1, 0, lambda count: count < COUNTS[name]) == COUNTS[name]


@settings(max_examples=150)
@given(good.filter(bool), edits)
def test_frames_that_were_sound_before_an_edit(frames: list[object], changes: list[tuple[int, int | bytes]]) -> None:
    take_frames(edited(b"".join(map(msgpack.packb, frames)), changes))


@settings(max_examples=150)
@given(st.sampled_from(bases_of("requests")), values, edits)
def test_calls_and_wires_that_were_sound_before_an_edit(
    call: bytes, value: object, changes: list[tuple[int, int | bytes]]
) -> None:
    take_request(edited(call + msgpack.packb(value), changes))
    body = edited(msgpack.packb(value), changes)
    take_wire(len(body).to_bytes(4, "little") + body)


def test_what_broke_once_is_refused() -> None:
    (map_as_key,) = corpus("wires")
    with pytest.raises(FrameError):
        list(FrameDecoder().feed(map_as_key))
    (durable_ahead,) = corpus("journal")
    take_segment(durable_ahead)


def test_an_input_is_made_again_from_its_number() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "wires", "--seconds", "0", "--seed", "7", "--first", "120"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=REPOSITORY)
    *_, where, figures = result.stdout.splitlines()
    assert where == "goes on with --seed 7 --first 120"
    assert json.loads(figures) == {"inputs": 0}


def test_work_is_counted() -> None:
    with StepCounter() as few:
        sorted([2, 1])
    with StepCounter() as many:
        for _ in range(100):
            sorted([2, 1])
    assert many.count >= few.count + 100


def test_a_campaign_collects_its_garbage() -> None:
    """Connections are cycles: without the collector, an hour of them takes all memory of a machine."""
    code = "import gc, tests.fuzz.__main__, tests.torture.__main__; print(gc.isenabled())"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.stdout == "True\n", ended.stderr
