"""A payment service: books each payment as a top-up once, however often it is run.

    python top_ups.py payments.jsonl

Each line of the file is a payment that arrived: `{"payment": "p-17", "user": "alice", "amount": "5"}`. The payment's
own identity is the `request_id`, so the same payment cannot be booked twice: not when the file is read again after a
crash, nor when an answer was lost and the client asks again. The client repeats such calls by itself for as long as
`timeout_s` says; after that this program goes on trying, since it must not give up on somebody's money. A payment that
comes again with another amount is refused by the daemon, and named here: somebody has to look at it.

Exit code 0: every payment is booked. 1: some were refused, and are named on standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from billing.client import BillingError, Client

AT_ONCE = 100  # payments under way; the daemon writes what arrives together with one sync


async def book(client: Client, payment: dict[str, str]) -> str:
    """Adds one payment's money; says what was done. Raises BillingError where it is refused for good."""
    while True:
        try:
            account = await client.top_up(
                payment["user"], payment["amount"], request_id=payment["payment"], message="a payment"
            )
        except BillingError as error:
            if not error.retry:
                raise
            print(f"{payment['payment']} waits: {error}", file=sys.stderr)
            continue
        done = "was booked before" if account["replayed"] else "is booked"
        return f"{payment['payment']} {done}, {payment['user']} is {account['state']}"


async def main(payments: list[dict[str, str]]) -> int:
    address = os.environ.get("BILLING_ADDRESS", "127.0.0.1:3311")
    refused = 0
    async with Client(address, token=os.environ.get("BILLING_TOKEN")) as client:
        for start in range(0, len(payments), AT_ONCE):
            some = payments[start : start + AT_ONCE]
            for payment, answer in zip(
                some, await asyncio.gather(*(book(client, one) for one in some), return_exceptions=True), strict=True
            ):
                if isinstance(answer, BillingError):
                    refused += 1
                    print(f"{payment['payment']} was refused: {answer}", file=sys.stderr)
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    print(answer)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main([json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()])))
