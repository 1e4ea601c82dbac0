"""Draws one account while its balance falls. Between two replies of the daemon this module computes the balance from
the rate and the billing instant of the last reply, as the daemon does. The drawn figures are an estimate, not a reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from billing.cli.sentences import called, standing
from billing.cli.values import Look, coins, moment, printable, span
from shards.system.clock import MACHINE_CLOCKS

DRAW_EVERY_S: Final = 0.1
ASK_EVERY_NS: Final = 1_000_000_000
HOUR_NS: Final = 3600 * 10**9

Ask = Callable[[], Awaitable[dict[str, Any]]]


def picture(account: dict[str, Any], passed_ns: int, look: Look = Look()) -> Table:  # noqa: B008  immutable
    """A table of the account as it should be `passed_ns` after the reply."""
    now_ns = account["at_ns"] + passed_ns
    rate, available = account["rate_nanos_per_hour"], account["available_nanos"]
    exhausts_at_ns = account["exhausts_at_ns"]
    if account["state"] == "active" and rate:
        if exhausts_at_ns is not None and now_ns >= exhausts_at_ns:
            spent = available
        else:
            spent = rate * passed_ns // HOUR_NS
    else:
        spent = 0
    left_ns = None if exhausts_at_ns is None else max(0, exhausts_at_ns - now_ns)
    style = "red" if account["state"] == "exhausted" or left_ns == 0 else "yellow" if left_ns is not None else "green"
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("user", Text(printable(str(account["user_id"]))))
    table.add_row("balance", Text(coins(account["balance_nanos"] - spent), style=f"bold {style}"))
    table.add_row("available", coins(available - spent))
    table.add_row("rate", f"{coins(rate)} per hour")
    table.add_row(*map(Text, standing(account, look)["exhausts_at_ns"]))
    if left_ns is not None:
        table.add_row("in", Text(span(left_ns // 10**6 * 10**6), style=style))
    if account["state"] == "active" and (cutoff := account.get("cutoff")) is not None:
        table.add_row("last cutoff", Text(f"{moment(cutoff['exhausted_at_ns'], look)}, {called(cutoff)}"))
    return table


async def watch(console: Console, ask: Ask, for_ns: int | None, look: Look = Look()) -> None:  # noqa: B008
    """Draws until it is cancelled or `for_ns` have passed. Asks the daemon once a second, and at the exhaustion."""
    account = await ask()
    began_ns = asked_ns = MACHINE_CLOCKS.boot_ns()
    with Live(picture(account, 0, look), console=console, refresh_per_second=1 / DRAW_EVERY_S, transient=False) as live:
        while for_ns is None or MACHINE_CLOCKS.boot_ns() - began_ns < for_ns:
            await asyncio.sleep(DRAW_EVERY_S)
            due_ns = account["exhausts_at_ns"]
            passed_ns = MACHINE_CLOCKS.boot_ns() - asked_ns
            if passed_ns > ASK_EVERY_NS or (due_ns is not None and account["at_ns"] + passed_ns >= due_ns):
                account = await ask()
                asked_ns, passed_ns = MACHINE_CLOCKS.boot_ns(), 0
            live.update(picture(account, passed_ns, look))
