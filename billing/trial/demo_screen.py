"""What the demo shows: a live table on a terminal, plain lines everywhere else.

    PlainScreen   one line per step and per GET, and now and then a line with all balances: for pipes and logs
    LiveScreen    a table of accounts that ticks, below it the story, and at the end what to try next

Both are told the same: `say`, `account`, `arrival`, `finish`. Instants are shown in UTC with all nine digits, and of
each GET how long after the exact instant it was received.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from billing.ledger.money import format_coins
from billing.trial.arrivals import Arrival
from billing.trial.demo_scene import Account, coins
from shards.system.clock import boot_now_ns

SECOND_NS: Final = 10**9
STORY_LINES: Final = 16
REFRESH_HZ: Final = 10
BALANCES_EVERY_NS: Final = 2 * SECOND_NS


def clock_time(at_ns: int) -> str:
    """An instant's time of day, UTC, to the nanosecond."""
    seconds, rest = divmod(at_ns, SECOND_NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}.{rest:09}"


def told(arrival: Arrival) -> str:
    """A GET in words."""
    late_ns = arrival.arrived_ns - arrival.exhausted_at_ns
    late = f"{late_ns / 1000:,.0f} µs after" if late_ns >= 0 else f"{-late_ns / 1000:,.0f} µs BEFORE"
    return f"GET for {arrival.user_id}: {late} the exact instant {clock_time(arrival.exhausted_at_ns)}"


class PlainScreen:
    """Lines of text."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._started_ns = boot_now_ns()
        self._balances: dict[str, str] = {}
        self._told_ns = self._started_ns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        self._write(f"{(boot_now_ns() - self._started_ns) / SECOND_NS:6.2f} s  {text}")

    def account(self, account: Account) -> None:
        self._balances[account["user_id"]] = coins(account["balance_nanos"])
        if boot_now_ns() - self._told_ns > BALANCES_EVERY_NS:
            self._told_ns = boot_now_ns()
            self.say("balances: " + ", ".join(f"{user} {balance}" for user, balance in sorted(self._balances.items())))

    def arrival(self, arrival: Arrival) -> None:
        self.say(told(arrival))

    def finish(self, score: str, clean: bool, lines: list[str]) -> None:
        for line in [score, *lines]:
            self._write(line)


class LiveScreen:
    """A table that ticks. Used as a context manager: the terminal is as before behind it."""

    def __init__(self, console: Console) -> None:
        self._started_ns = boot_now_ns()
        self._accounts: dict[str, Account] = {}
        self._story: deque[Text] = deque(maxlen=STORY_LINES)
        self._below: list[Panel] = []
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=REFRESH_HZ)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, text: str) -> None:
        self._tell(text, "")

    def account(self, account: Account) -> None:
        self._accounts[account["user_id"]] = account

    def arrival(self, arrival: Arrival) -> None:
        self._tell(told(arrival), "bold green" if arrival.arrived_ns >= arrival.exhausted_at_ns else "bold red")

    def finish(self, score: str, clean: bool, lines: list[str]) -> None:
        if lines:
            self._below = [Panel(Text("\n".join(lines)), title="try next", title_align="left")]
        self._tell(score, "bold green" if clean else "bold red")

    def _tell(self, text: str, style: str) -> None:
        elapsed = f"{(boot_now_ns() - self._started_ns) / SECOND_NS:6.2f} s  "
        self._story.append(Text.assemble((elapsed, "dim"), (text, style)))

    def _render(self) -> Group:
        table = Table(title="accounts", title_justify="left", expand=False)
        table.add_column("user")
        table.add_column("balance, coins", justify="right", min_width=16)
        table.add_column("coins a second", justify="right")
        table.add_column("runs out at (UTC)", min_width=18)
        table.add_column("state", min_width=9)
        for user_id, account in sorted(self._accounts.items()):
            due_ns = account["exhausts_at_ns"]
            active = account["state"] == "active"
            table.add_row(
                user_id,
                coins(account["balance_nanos"]),
                format_coins(account["rate_nanos_per_second"]),
                clock_time(due_ns) if due_ns is not None else "",
                Text(account["state"], "green" if active else "bold red"),
            )
        return Group(table, Panel(Group(*self._story), title="what happens", title_align="left"), *self._below)
