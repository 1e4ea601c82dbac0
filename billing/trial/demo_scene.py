"""The scene of the demo: three users, and what happens to their money.

    user_01   is topped up, starts a machine, and runs out; then the scene, for the receiver, reports rate 0
    user_02   is topped up, starts a machine, is saved by another top-up a second before it runs out, and stops it
    user_03   is topped up, starts and stops a machine, and is debited the rest to the last nano: exhausted at once

A receiver has to report rate 0 after each cutoff. The daemon keeps the reported rate, since a report is a fact,
and counts what it would have charged as overrun until rate 0 is reported. At the end no machine runs, so no cutoff
comes after the verdict.

Every machine costs one coin a second, which is one nano a nanosecond, so that each balance can be followed by eye.

`Promises` judges the demo, and trusts the replies. If a reply names a coming instant and the next reply is stamped at
or after that instant, the account ran out at that instant. If the reply to a debit says that it exhausted the account,
the account ran out at the instant of that reply. Each of these exhaustions must have had its GET, no GET may come
before its instant, and there must be no other GET.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final, NamedTuple, Protocol

from billing.client.client import Client
from billing.ledger.money import COIN_NANOS, format_coins
from billing.trial.arrivals import Arrival
from shards.system.clock import MACHINE_CLOCKS

USERS: Final = ("user_01", "user_02", "user_03")
MACHINE: Final = "vm-1"
SECOND_NS: Final = 10**9
SAVED_BEFORE_NS: Final = SECOND_NS  # at any pace: a busy machine is not quicker at a faster pace
GETS_WAIT_S: Final = 5.0
FALSE_WAIT_S: Final = 0.3

Account = dict[str, Any]


class Screen(Protocol):
    """The screen that shows the scene."""

    def say(self, text: str) -> None:
        """Shows one step of the story."""

    def account(self, account: Account) -> None:
        """Shows an account as of now."""


class Score(NamedTuple):
    """The judgement of the scene: numbers of cutoffs."""

    expected: int
    received: int
    missing: int
    early: int
    false: int

    @property
    def clean(self) -> bool:
        return not (self.missing or self.early or self.false)

    def __str__(self) -> str:
        return (
            f"{self.expected} cutoffs expected, {self.received} received, "
            f"{self.missing} missing, {self.early} early, {self.false} false"
        )


class Promises:
    """The cutoffs that follow from replies. The caller hands in the replies of one account in the order of their
    instants.
    """

    def __init__(self) -> None:
        self.expected: set[tuple[str, int]] = set()
        self._coming: dict[str, int | None] = {}
        self._active: dict[str, bool] = {}

    def reply(self, account: Account) -> None:
        user_id, at_ns = account["user_id"], account["at_ns"]
        coming_ns = self._coming.get(user_id)
        if coming_ns is not None and coming_ns <= at_ns:
            self.expected.add((user_id, coming_ns))
        elif self._active.get(user_id) and account.get("outcome") == "exhausted":
            self.expected.add((user_id, at_ns))
        self._coming[user_id] = account["exhausts_at_ns"]
        self._active[user_id] = account["state"] == "active"

    def score(self, arrivals: Collection[Arrival]) -> Score:
        called = {(arrival.user_id, arrival.exhausted_at_ns) for arrival in arrivals}
        return Score(
            len(self.expected),
            len(self.expected & called),
            len(self.expected - called),
            sum(arrival.arrived_ns < arrival.exhausted_at_ns for arrival in arrivals),
            len(called - self.expected),
        )


def coins(nanos: int) -> str:
    """Coins with all nine digits, so that a column of changing balances stays aligned."""
    return f"{'-' if nanos < 0 else ''}{abs(nanos) // COIN_NANOS}.{abs(nanos) % COIN_NANOS:09}"


class Scene:
    """Plays the scene once. `pace` 2 takes half as long (and half as much money)."""

    def __init__(self, client: Client, screen: Screen, arrivals: Collection[Arrival], pace: float) -> None:
        self.promises = Promises()
        self._client = client
        self._screen = screen
        self._arrivals = arrivals
        self._pace = pace

    async def play(self) -> Score:
        """Plays the scene and judges it. Raises BillingError if the daemon refuses a command that it should accept."""
        for user_id, seconds in zip(USERS, (11.0, 8.0, 6.0), strict=True):
            await self._top_up(user_id, seconds, "is topped up with {}")
            await self._pause(0.4)
        started = [await self._start(user_id) for user_id in USERS]
        await self._pause(3.0)
        await self._stop_and_spend_all(USERS[2])
        await self._sleep_until(started[1] - SAVED_BEFORE_NS)
        await self._top_up(USERS[1], 12.0, "is about to run out and is topped up with {}: saved, no GET")
        await self._sleep_until(started[0])
        await self._pause(1.5)
        await self._report_off(USERS[0])
        await self._pause(1.0)
        await self._stop(USERS[1])
        return await self._judge()

    async def _top_up(self, user_id: str, seconds: float, story: str) -> None:
        nanos = int(seconds * COIN_NANOS / self._pace)
        self._show(await self._client.top_up(user_id, nanos=nanos))
        self._screen.say(f"{user_id} " + story.format(f"{format_coins(nanos)} coins"))

    async def _start(self, user_id: str) -> int:
        """Starts the user's machine. Returns the boot instant at which the money will run out."""
        account = await self._client.set_rate(user_id, "1", resource=MACHINE)
        boot_ns = MACHINE_CLOCKS.boot_ns()
        self._show(account)
        self._screen.say(f"{user_id} starts a machine for 1 coin a second")
        return boot_ns + int(account["runway_ns"])

    async def _report_off(self, user_id: str) -> None:
        """Does the duty of a cutoff's receiver: switches the machine off, and reports rate 0."""
        account = await self._client.get_account(user_id)
        self._show(account)
        self._screen.say(
            f"{user_id} has run out, its rate stands: {coins(account['overrun_nanos'])} coins of overrun so far"
        )
        await self._pause(1.0)
        self._show(await self._client.set_rate(user_id, "0", resource=MACHINE))
        self._screen.say(f"{user_id}: its machine is off, and whoever switched it off reports rate 0; overrun stops")

    async def _stop(self, user_id: str) -> int:
        """Stops the user's machine. Returns the remaining balance, in nanos."""
        account = await self._client.set_rate(user_id, "0", resource=MACHINE)
        self._show(account)
        left_nanos: int = account["balance_nanos"]
        self._screen.say(f"{user_id} stops the machine; {coins(left_nanos)} coins are left and stay")
        return left_nanos

    async def _stop_and_spend_all(self, user_id: str) -> None:
        left_nanos = await self._stop(user_id)
        await self._pause(1.5)
        self._screen.say(f"{user_id} is debited exactly {coins(left_nanos)} coins")
        self._show(await self._client.debit(user_id, nanos=left_nanos))

    async def _judge(self) -> Score:
        for user_id in USERS:
            self._show(await self._client.get_account(user_id))
        polls = int(GETS_WAIT_S / 0.1)
        while self.promises.score(self._arrivals).missing and polls:
            await asyncio.sleep(0.1)
            polls -= 1
        await asyncio.sleep(FALSE_WAIT_S)
        return self.promises.score(self._arrivals)

    def _show(self, account: Account) -> None:
        self.promises.reply(account)
        self._screen.account(account)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._pace)

    async def _sleep_until(self, boot_ns: int) -> None:
        await asyncio.sleep(max(0, boot_ns - MACHINE_CLOCKS.boot_ns()) / SECOND_NS)
