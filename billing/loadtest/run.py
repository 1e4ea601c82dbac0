"""One run over a plan: the commands sent and answered, the cutoffs received, and the verdict on all of it.

While commands are being sent nothing else is done here: answers are kept, and the receiver keeps what arrives. The
model runs afterwards, then every account is read once more, then the cutoffs are collected until none is missing or
none has come for `ARRIVALS_WAIT_S`, and a little longer for those that should not come.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Final

from rich.progress import Progress, TaskID

from billing.api.client import Client
from billing.loadtest.assess import Answer, Assessment, answer_of
from billing.loadtest.drive import Drive, Request, Skew
from billing.loadtest.plan import TOP_UP, Plan
from billing.loadtest.verdict import Verdict, judge
from billing.ops.arrivals import Arrival, ArrivalReader
from shards.clock import boot_now_ns

SECOND_NS: Final = 10**9
PROGRESS_EVERY_NS: Final = SECOND_NS // 10
ARRIVALS_WAIT_S: Final = 15.0
ARRIVALS_POLL_S: Final = 0.25
FALSE_WAIT_S: Final = 0.5


class Run:
    """One run over a plan: what was sent, answered and received."""

    def __init__(self, plan: Plan, client: Client, reader: ArrivalReader) -> None:
        self.assessment = Assessment()
        self.arrivals: list[Arrival] = []
        self.took_ns = 0
        self.answers: list[Answer | None] = [None] * len(plan.steps)
        self._plan = plan
        self._users = set(plan.users)
        self._reader = reader
        self.commands = Drive(client, len(plan.steps), self._request, self._on_answer)
        self.readings = Drive(client, len(plan.users), self._reading, self._on_reading)

    async def drive(self, progress: Progress) -> None:
        """Sends the plan at its moments and waits for all answers."""
        gc.freeze()  # a million tuples that stay: not to be walked while latency is measured
        bar = _Bar(progress, "machines", len(self._plan.steps))
        began_ns = boot_now_ns()
        await self.commands.run([step.due_ns for step in self._plan.steps], bar.at)
        self.took_ns = boot_now_ns() - began_ns
        bar.at(len(self._plan.steps), True)

    async def judge(self, progress: Progress) -> Verdict:
        """Reads all balances and cutoffs, and runs the model."""
        bar = _Bar(progress, "the model", len(self._plan.steps))
        self.assessment.replay(self._plan, self.answers, bar.at)
        bar.at(len(self._plan.steps), True)
        bar = _Bar(progress, "balances", len(self._plan.users))
        await self.readings.run(None, bar.at)
        bar.at(len(self._plan.users), True)
        return await self._all_arrivals(progress)

    async def _all_arrivals(self, progress: Progress) -> Verdict:
        """Waits for every cutoff that is expected, and a little for those that are not."""
        bar, quiet_s = None, 0.0
        while True:
            came = await self._take_arrivals()
            quiet_s = 0.0 if came else quiet_s + ARRIVALS_POLL_S
            verdict = self._verdict()
            bar = bar or _Bar(progress, "cutoffs", verdict.expected)
            bar.at(verdict.received, True)
            if not verdict.missing or quiet_s > ARRIVALS_WAIT_S:
                break
            await asyncio.sleep(ARRIVALS_POLL_S)
        await asyncio.sleep(FALSE_WAIT_S)
        await self._take_arrivals()
        return self._verdict()

    async def _take_arrivals(self) -> int:
        shift_ns = self.skew.shift_ns
        fresh = [arrival for arrival in await self._reader.fresh() if arrival.user_id in self._users]
        self.arrivals += [arrival._replace(arrived_ns=arrival.arrived_ns + shift_ns) for arrival in fresh]
        return len(fresh)

    @property
    def skew(self) -> Skew:
        return self.commands.skew

    def _verdict(self) -> Verdict:
        return judge(self.assessment.accounts.values(), self.arrivals)

    def _request(self, index: int) -> Request:
        _, user_id, method, value, resource = self._plan.steps[index]
        if method == TOP_UP:
            return method, [user_id, value, {"request_id": str(index)}]
        rate_seq = 1 if value else 2
        return method, [
            user_id,
            value,
            {"per": "hour", "resource": resource, "rate_seq": rate_seq, "request_id": str(index)},
        ]

    def _on_answer(self, index: int, reply: dict[str, Any]) -> None:
        self.answers[index] = answer_of(reply)

    def _reading(self, index: int) -> Request:
        return "get_account", [self._plan.users[index]]

    def _on_reading(self, index: int, reply: dict[str, Any]) -> None:
        self.assessment.reading(self._plan.users[index], answer_of(reply))


class _Bar:
    """One line of the progress display, moved ten times a second at most."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task(name, total=total)
        self._moved_ns = 0

    def at(self, done: int, now: bool = False) -> None:
        now_ns = boot_now_ns()
        if now or now_ns - self._moved_ns > PROGRESS_EVERY_NS:
            self._moved_ns = now_ns
            self._progress.update(self._task, completed=done)
