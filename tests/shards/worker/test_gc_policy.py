"""What the collector walks: nothing of what stood when the worker settled."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from shards.system.clock import MACHINE_CLOCKS
from shards.worker.gc_policy import GcPolicy


@pytest.fixture
def gc_policy() -> Iterator[GcPolicy]:
    """The collector's rule, which is given up afterwards."""
    rule = GcPolicy(MACHINE_CLOCKS.boot_ns, full_ns_max=-1)
    yield rule
    rule.close()


class Referable:
    """Can be referred to weakly."""


def is_walked(thing: object) -> bool:
    """Whether a full collection looks at it."""
    return any(tracked is thing for tracked in gc.get_objects())


def test_nothing_is_collected_before_it_settles(gc_policy: GcPolicy) -> None:
    gc_policy.hold_off()
    assert not gc.isenabled()
    gc_policy.settle()
    assert gc.isenabled()


def test_what_stands_is_not_walked_and_what_comes_later_is(gc_policy: GcPolicy) -> None:
    held: list[object] = [[] for _ in range(10)]
    gc_policy.settle()
    later: list[object] = []
    assert not is_walked(held)
    assert is_walked(later)


def test_frozen_things_are_freed_when_nobody_refers_to_them(gc_policy: GcPolicy) -> None:
    held = [Referable()]
    gc_policy.settle()
    reference = weakref.ref(held[0])
    assert not is_walked(held[0])
    held.clear()
    assert reference() is None


def test_survivors_of_a_long_full_collection_are_not_walked_again(gc_policy: GcPolicy) -> None:
    gc_policy.settle()
    later: list[object] = []
    gc.collect(1)
    assert is_walked(later)
    gc.collect()
    assert not is_walked(later)
    assert gc_policy.figures()["gc_pauses"] == 2


def test_short_full_collections_freeze_nothing() -> None:
    rule = GcPolicy(MACHINE_CLOCKS.boot_ns, full_ns_max=10**18)
    rule.settle()
    try:
        later: list[object] = []
        gc.collect()
        assert is_walked(later)
    finally:
        rule.close()
