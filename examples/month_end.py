"""The month's end: a statement of every account as a CSV, proved as it is written.

    python month_end.py 2026-11 > november.csv

A row is a rate line of a user, or the user without one, with what accrued for it, and the user's opening and closing
balance. Two sums are checked to the internal unit (`exact`), so that a difference of less than a nano would be seen:
opening + credits - debits - accrued = closing, where credit that expired is among the debits; and the lines add up to
what accrued. A month that has not ended is answered up to now; the run refuses that, since its rows would be others
tomorrow, unless `--unfinished` is given. Months are those of UTC here.

Exit code 0: every account added up. 1: some did not, or miss entries, and are named on standard error. Accounts that
were closed before the run are not among those that `accounts` lists; whoever needs them keeps their names, since
`statement` goes on answering for them.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from billing.client import Client

COIN = 10**9
COLUMNS = ("user_id", "opening", "credits", "debits", "accrued", "closing", "resource", "accrued_by_resource")


def coins(nanos: int) -> str:
    """A decimal text of coins; no floating point."""
    whole, rest = divmod(abs(nanos), COIN)
    return f"{'-' if nanos < 0 else ''}{whole}.{rest:09}"


def month_of(text: str) -> tuple[int, int]:
    """The first instant of a month such as 2026-11, and that of the next one, in nanoseconds since the epoch."""
    first = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()) * COIN, int(following.timestamp()) * COIN


async def users(client: Client) -> AsyncIterator[str]:
    """All accounts there are, in order."""
    rows = await client.accounts()
    while rows:
        for row in rows:
            yield row["user_id"]
        rows = await client.accounts(after=rows[-1]["user_id"])


def faults_of(statement: dict[str, Any]) -> list[str]:
    """What is wrong with a statement; nothing, where it is right."""
    exact = {name: int(value) for name, value in statement["exact"].items()}
    faults = []
    if exact["opening"] + exact["credits"] - exact["debits"] - exact["accrued"] != exact["closing"]:
        faults.append("it does not add up")
    if sum(int(line["exact_accrued"]) for line in statement["resources"]) != exact["accrued"]:
        faults.append("its lines do not add up to what accrued")
    if statement["whole_from_ns"] is not None and statement["whole_from_ns"] > statement["from_ns"]:
        faults.append("entries of the period are lost")
    return faults


async def main(month: str, unfinished: bool) -> int:
    from_ns, to_ns = month_of(month)
    rows = csv.DictWriter(sys.stdout, COLUMNS)
    rows.writeheader()
    wrong = 0
    address = os.environ.get("BILLING_ADDRESS", "127.0.0.1:3311")
    async with Client(address, token=os.environ.get("BILLING_TOKEN")) as client:
        async for user in users(client):
            statement = await client.statement(user, from_ns, to_ns, by="resource", limit=0)
            if statement["up_to_now"] and not unfinished:
                print(f"{month} has not ended; --unfinished answers it up to now", file=sys.stderr)
                return 1
            for fault in faults_of(statement):
                wrong += 1
                print(f"{user}: {fault}", file=sys.stderr)
            sums = {name: coins(statement[f"{name}_nanos"]) for name in COLUMNS[1:6]}
            for line in statement["resources"] or [{"resource": "", "accrued_nanos": 0}]:
                accrued = coins(line["accrued_nanos"])
                rows.writerow({"user_id": user, **sums, "resource": line["resource"], "accrued_by_resource": accrued})
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes a month's statements as CSV.")
    parser.add_argument("month", help="such as 2026-11")
    parser.add_argument("--unfinished", action="store_true", help="also a month that has not ended, up to now")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.month, given.unfinished)))
