"""One input after the other into a target, each held to its bounds; what breaks is kept."""

from __future__ import annotations

import hashlib
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.fuzz.targets import TARGETS, Target, corpus

CORPUS = REPOSITORY / "tests" / "fuzz" / "corpus"
MEMORY_A_BYTE, STEPS_A_BYTE = 64, 40


class StepCounter:
    """Counts calls of functions, Python's and C's: work that is the same on every machine."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: object, event: str, argument: object) -> None:
        self.count += 1

    def __enter__(self) -> StepCounter:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def cost(target: Target, data: bytes) -> tuple[int, int]:
    """What an input costs: peak of memory, calls made."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with StepCounter() as steps:
        target.take(data)
    return tracemalloc.get_traced_memory()[1] - before, steps.count


def held(target: Target, data: bytes) -> None:
    """Raises where the target breaks, or costs more than an input of this length may. Where it seems to, it is looked
    at again: now and then the interpreter's own tables grow (that of interned texts, by megabytes), whatever the input.
    """
    most_memory, most_steps = target.memory + MEMORY_A_BYTE * len(data), target.steps + STEPS_A_BYTE * len(data)
    memory, steps = cost(target, data)
    if memory > most_memory or steps > most_steps:
        memory, steps = cost(target, data)
    assert memory <= most_memory, f"{memory} bytes for an input of {len(data)}"
    assert steps <= most_steps, f"{steps} steps for an input of {len(data)}"


def bases_of(name: str) -> list[bytes]:
    """Sound inputs, and what is kept."""
    return [*TARGETS[name].sound(), *corpus(name)]


def run(name: str, seed: int, first: int, more: Callable[[int], bool]) -> int:
    """Inputs `first`, `first` + 1, … of this seed, until `more(count)` is false; returns how many. Before them, all
    that is sound or kept. What breaks is kept in the corpus and raised.
    """
    target, bases = TARGETS[name], bases_of(name)
    count = 0
    tracemalloc.start()
    try:
        for data in bases:
            target.take(data)  # what is imported and made once is not the input's
            held(target, data)
        while more(count):
            data = target.make(random.Random(f"{name} {seed} {first + count}"), bases)
            try:
                held(target, data)
            except BaseException as error:
                error.add_note(f"input {first + count} of seed {seed}, kept as {keep(name, data)}")
                raise
            count += 1
    finally:
        tracemalloc.stop()
    return count


def keep(name: str, data: bytes) -> Path:
    """Puts an input into the corpus, where every later run begins with it."""
    file = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file.relative_to(REPOSITORY)
