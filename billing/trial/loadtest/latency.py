"""Latencies in buckets: each at most 1/128 of its value wide, over the whole range (as HdrHistogram lays them out).

    index  =  (shift << 7) + (value >> shift)        shift = max(0, bit length of value - 8)

so that each value below 256 ns has its own bucket and any other value is known to 0.8 %. Recording adds one to one
number of a list. A load generator records a hundred thousand values a second, so recording does nothing else: even the
greatest value is known only by its bucket.

A bucket is reported by the greatest value that it may hold, so that no percentile is reported as better than it was. A
percentile is not reported if fewer than `BEYOND_MIN` samples lie beyond it: a p99.9 of a thousand samples is one
sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Self

SUB_BITS: Final = 7
SHIFT_FROM: Final = SUB_BITS + 1  # bits of a value that is not shifted
VALUE_MAX: Final = 2**63 - 1
SIZE: Final = (63 - SHIFT_FROM + 2) << SUB_BITS
BEYOND_MIN: Final = 100

PERCENTILES: Final = ("50", "90", "99", "99.9", "99.99")


def index_of(value: int) -> int:
    """The bucket of a value from 0 to `VALUE_MAX`."""
    shift = value.bit_length() - SHIFT_FROM
    return value if shift <= 0 else (shift << SUB_BITS) + (value >> shift)


def greatest_of(index: int) -> int:
    """The greatest value in a bucket."""
    shift = (index >> SUB_BITS) - 1
    return index if shift <= 0 else ((index - (shift << SUB_BITS) + 1) << shift) - 1


class Histogram:
    """Counts of values in nanoseconds. `counts` may be written to in place, as `record` does."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * SIZE

    def record(self, value: int) -> None:
        """Counts a value from 0 to `VALUE_MAX`."""
        shift = value.bit_length() - 8
        self.counts[(shift << 7) + (value >> shift) if shift > 0 else value] += 1

    def merge(self, other: Self) -> None:
        """Adds the counts of another histogram."""
        self.add(other.sparse())

    def add(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Adds (bucket, count) pairs."""
        counts = self.counts
        for index, count in pairs:
            counts[index] += count

    def sparse(self) -> list[tuple[int, int]]:
        """(bucket, count) of all buckets that are not empty."""
        return [(index, count) for index, count in enumerate(self.counts) if count]

    @property
    def greatest(self) -> int:
        """The greatest value, as reported by its bucket; 0 for an empty histogram."""
        return max((greatest_of(index) for index, count in enumerate(self.counts) if count), default=0)

    @property
    def total(self) -> int:
        return sum(self.counts)

    def mean(self) -> float:
        """The mean, in which each sample counts as the greatest value of its bucket; 0 for an empty histogram."""
        total = self.total
        return sum(greatest_of(index) * count for index, count in self.sparse()) / total if total else 0.0

    def value_at(self, share: float) -> int:
        """The greatest value of the lowest bucket that at least this share of the samples does not exceed; 0 for an
        empty histogram.
        """
        total = self.total
        wanted = max(1, -(-round(total * share * 10**9) // 10**9))
        cumulative = 0
        for index, count in self.sparse():
            cumulative += count
            if cumulative >= wanted:
                return greatest_of(index)
        return 0

    def up_to(self, value: int) -> int:
        """How many samples surely do not exceed a value, judged by their buckets."""
        return sum(count for index, count in self.sparse() if greatest_of(index) <= value)

    def percentile(self, percent: str) -> int | None:
        """A percentile, named as `"99.9"`; None if fewer than `BEYOND_MIN` samples lie beyond it."""
        share = float(percent) / 100
        return self.value_at(share) if self.total * (1 - share) >= BEYOND_MIN - 1e-6 else None

    def percentiles(self) -> dict[str, int]:
        """All of `PERCENTILES` that may be reported, and `max`."""
        values = {percent: self.percentile(percent) for percent in PERCENTILES}
        return {percent: value for percent, value in values.items() if value is not None} | {"max": self.greatest}

    def steps(self) -> Iterator[tuple[int, int]]:
        """Yields (greatest value of a bucket, number of samples in it and below), rising."""
        cumulative = 0
        for index, count in self.sparse():
            cumulative += count
            yield greatest_of(index), cumulative


def hgrm(histogram: Histogram) -> str:
    """The percentile distribution as text, in milliseconds, in the form that HdrHistogram's plotters read."""
    total = histogram.total
    lines = ["       Value     Percentile TotalCount 1/(1-Percentile)", ""]
    for value, cumulative in histogram.steps():
        share = cumulative / total
        inverse = f"{1 / (1 - share):14.2f}" if share < 1 else ""
        lines.append(f"{value / 1e6:12.3f} {share:2.12f} {cumulative:10d} {inverse}".rstrip())
    deviation = (
        sum((greatest_of(i) - histogram.mean()) ** 2 * count for i, count in histogram.sparse()) / total
        if total
        else 0.0
    ) ** 0.5
    lines.append(f"#[Mean    = {histogram.mean() / 1e6:12.3f}, StdDeviation   = {deviation / 1e6:12.3f}]")
    lines.append(f"#[Max     = {histogram.greatest / 1e6:12.3f}, Total count    = {total:12d}]")
    lines.append(f"#[Buckets = {SIZE >> SUB_BITS:12d}, SubBuckets     = {1 << SUB_BITS:12d}]")
    return "\n".join(lines) + "\n"
