"""The garbage collector of a worker: no pause that grows with what the worker holds.

A full collection walks every object that could be part of a cycle, and all objects referred to from there: with a
million accounts 0.1 s, although their rows and indexes hold no cycle. So what stands after recovery is *frozen*: it is
freed when nobody refers to it, like everything, but never walked. A recovery is not interrupted by collections at all.

What comes later is walked as ever; where a full collection takes longer than `full_ns_max`, what survived it is frozen,
too, so the next one is short. The price: a cycle that is broken off after it was frozen stays for the life of the
process. Long full collections are rare, so that is little.

It measures its own pauses (`pause_max_ns`) and never collects of its own accord.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from shards.worker.histogram import LAG_NS, Histogram

FULL_NS_MAX = 5_000_000


class GcPolicy:
    """Controls the garbage collector of this process, from `hold_off` to `close`. A process has one."""

    def __init__(self, boot_ns: Callable[[], int], full_ns_max: int = FULL_NS_MAX) -> None:
        """`boot_ns`: the boot clock."""
        self._boot_ns = boot_ns
        self.pause_max_ns = 0
        self.pauses = 0
        self.took = Histogram(LAG_NS)
        self._full_ns_max = full_ns_max
        self._since_ns = 0

    def hold_off(self) -> None:
        """Disables collections until `settle`: a recovery makes no cycles."""
        gc.disable()

    def settle(self) -> None:
        """Freezes what exists now: it is never collected."""
        gc.freeze()
        if self._on_collection not in gc.callbacks:
            gc.callbacks.append(self._on_collection)
        gc.enable()

    def _on_collection(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._since_ns = self._boot_ns()
            return
        took_ns = self._boot_ns() - self._since_ns
        self.pauses += 1
        self.took.add(took_ns)
        self.pause_max_ns = max(self.pause_max_ns, took_ns)
        if info["generation"] == 2 and took_ns > self._full_ns_max:
            gc.freeze()

    def figures(self) -> dict[str, Any]:
        """Counters as plain data."""
        return {"gc_pauses": self.pauses, "gc_pause_max_ns": self.pause_max_ns, "gc_ns": self.took.plain()}

    def close(self) -> None:
        """Enables the collector's own schedule again."""
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)
        gc.enable()
        gc.unfreeze()
