"""All generator processes together: sends each step to all of them at once, and adds up their results.

If a generator ends, or reports that a step failed, the whole run ends (`GeneratorError`): otherwise the figures of a
part of the load would look like the figures of all of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from billing.trial.loadtest.assess import Claims
from billing.trial.loadtest.generator import Order
from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.skew import Skew
from billing.trial.loadtest.verdict import Expected
from billing.trial.loadtest.workload import Share
from shards.system.host import Child, spawn
from shards.system.links import Wire

COMMAND: Final = (sys.executable, "-m", "billing.trial.loadtest.generator")
END_WAIT_S: Final = 5.0


class GeneratorError(Exception):
    """A generator ended, or a step of it failed."""


class _Member:
    """One generator process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.answered = 0  # commands answered in the step under way
        self.child: Child | None = None
        self.wire: Wire | None = None
        self._requests = 0
        self._waiting: asyncio.Future[dict[str, Any]] | None = None
        self._on_progress: Callable[[], None] = lambda: None

    async def start(self) -> None:
        self.child, control = await spawn(list(COMMAND), [])
        _, self.wire = await asyncio.get_running_loop().create_connection(
            lambda: Wire(self._on_message, self._on_closed, lambda _: None), sock=control
        )

    async def ask(self, step: str, arguments: Sequence[Any], on_progress: Callable[[], None]) -> dict[str, Any]:
        assert self.wire is not None
        self._requests += 1
        self.answered = 0
        self._on_progress = on_progress
        self._waiting = asyncio.get_running_loop().create_future()
        self.wire.send((self._requests, step, *arguments))
        return await self._waiting

    def _on_message(self, _: Wire, message: Any) -> None:
        number, kind, what = message
        if number != self._requests or self._waiting is None or self._waiting.done():
            return
        if kind == "progress":
            self.answered = what
            self._on_progress()
        elif kind == "done":
            self._waiting.set_result(msgspec.json.decode(what))
        else:
            self._waiting.set_exception(GeneratorError(f"generator {self.number}: {what}"))

    def _on_closed(self, _: Wire) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(GeneratorError(f"generator {self.number} ended"))


class Generators:
    """All generators. `async with Generators(order, processes) as generators`."""

    def __init__(self, order: Order, processes: int) -> None:
        self._order = order
        self._members = [_Member(number) for number in range(processes)]
        self.seq_base = 0  # what answers have shown of it; see `verdict.ordinal`

    async def __aenter__(self) -> Generators:
        for member in self._members:
            await member.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for member in self._members:
            if member.wire is not None:
                member.wire.close()
        for member in self._members:
            if member.child is not None:
                try:
                    await asyncio.wait_for(member.child.wait(), END_WAIT_S)
                except TimeoutError:
                    member.child.kill()
                    await member.child.wait()

    @property
    def pids(self) -> list[int]:
        """The process ids of the generators."""
        return [member.child.pid for member in self._members if member.child is not None]

    async def open(self) -> list[dict[str, Any]]:
        """Makes each generator connect. Returns their results."""
        of = len(self._members)
        orders = [
            msgspec.json.encode(msgspec.structs.replace(self._order, share=Share(member.number, of)))
            for member in self._members
        ]
        return await self._all("open", [(order,) for order in orders])

    async def step(
        self, name: str, *arguments: Any, on_progress: Callable[[int], None] = lambda _: None
    ) -> list[dict[str, Any]]:
        """Makes all generators do a step. Returns their results, one each. `on_progress(answered)`: called with the sum
        of answered commands.
        """
        return await self._all(name, [arguments] * len(self._members), on_progress)

    async def claims(self, at_ns: int) -> tuple[list[Claims], int | None]:
        """(claims of all accounts that expect cutoffs until an instant, the next coming exhaustion or None). Keeps what
        the answers have shown of the daemon's `seq_base`.
        """
        claims: list[Claims] = []
        coming: list[int] = []
        for part in await self.step("settle", at_ns):
            for user_id, cutoffs, superseded, overtaken in part["claims"]:
                expected = [Expected(user_id, seq, due_ns) for seq, due_ns in cutoffs]
                claims.append(Claims(user_id, expected, superseded, set(overtaken)))
            self.seq_base = self.seq_base or part["seq_base"]
            if part["coming"] is not None:
                coming.append(part["coming"])
        return claims, min(coming, default=None)

    async def _all(
        self,
        step: str,
        arguments: list[Sequence[Any]] | list[tuple[bytes]],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        def progressed() -> None:
            on_progress(sum(member.answered for member in self._members))

        tasks = [
            asyncio.ensure_future(member.ask(step, step_arguments, progressed))
            for member, step_arguments in zip(self._members, arguments, strict=True)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for each in tasks:
                each.cancel()


def total(parts: Iterable[dict[str, Any]], key: str) -> int:
    """The sum of a number over all processes."""
    return sum(part[key] for part in parts)


def merged(parts: Iterable[dict[str, Any]], key: str) -> Histogram:
    """The sum of a histogram over all processes."""
    histogram = Histogram()
    for part in parts:
        histogram.add(part[key])
    return histogram


def merged_intervals(parts: Sequence[dict[str, Any]]) -> list[Histogram]:
    """The histogram of each interval, summed over all processes."""
    count = max((len(part["intervals"]) for part in parts), default=0)
    histograms = [Histogram() for _ in range(count)]
    for part in parts:
        for histogram, pairs in zip(histograms, part["intervals"], strict=False):
            histogram.add(pairs)
    return histograms


def skew_of(parts: Iterable[dict[str, Any]], skew: Skew) -> None:
    """Narrows a skew by the bounds that each process has found."""
    for part in parts:
        skew.narrow(*part["skew"])
