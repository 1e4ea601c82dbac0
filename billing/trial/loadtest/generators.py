"""The generators as one: each step is asked of all processes at once, and what came of it is added up.

A generator that ends, or says that a step failed, ends the whole run (`GeneratorError`): numbers of a part of the
load would look like numbers of all of it.
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
    """A generator could not do its work."""


class _Member:
    """One process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.answered = 0  # in the step under way
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
        """The generators' processes."""
        return [member.child.pid for member in self._members if member.child is not None]

    async def open(self) -> list[dict[str, Any]]:
        """Lets each connect."""
        of = len(self._members)
        orders = [
            msgspec.json.encode(msgspec.structs.replace(self._order, share=Share(member.number, of)))
            for member in self._members
        ]
        return await self._all("open", [(order,) for order in orders])

    async def step(
        self, name: str, *arguments: Any, on_progress: Callable[[int], None] = lambda _: None
    ) -> list[dict[str, Any]]:
        """The same step of all of them; what came of it, one by one. `on_progress` is told the sum of answers."""
        return await self._all(name, [arguments] * len(self._members), on_progress)

    async def claims(self, at_ns: int) -> tuple[list[Claims], int | None]:
        """Every account that expects cutoffs until an instant, and when the next one is coming."""
        claims: list[Claims] = []
        coming: list[int] = []
        for part in await self.step("settle", at_ns):
            for user_id, cutoffs, superseded, overtaken in part["claims"]:
                expected = [Expected(user_id, seq, due_ns) for seq, due_ns in cutoffs]
                claims.append(Claims(user_id, expected, superseded, set(overtaken)))
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
    """A number of all processes together."""
    return sum(part[key] for part in parts)


def merged(parts: Iterable[dict[str, Any]], key: str) -> Histogram:
    """A histogram of all processes together."""
    histogram = Histogram()
    for part in parts:
        histogram.add(part[key])
    return histogram


def merged_intervals(parts: Sequence[dict[str, Any]]) -> list[Histogram]:
    """The histograms of each interval, of all processes together."""
    count = max((len(part["intervals"]) for part in parts), default=0)
    histograms = [Histogram() for _ in range(count)]
    for part in parts:
        for histogram, pairs in zip(histograms, part["intervals"], strict=False):
            histogram.add(pairs)
    return histograms


def skew_of(parts: Iterable[dict[str, Any]], skew: Skew) -> None:
    """Narrows a skew by what each process has learned."""
    for part in parts:
        skew.narrow(*part["skew"])
