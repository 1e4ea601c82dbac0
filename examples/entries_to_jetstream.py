"""A bridge: every entry of every account into a stream of NATS JetStream, each exactly once.

    NATS=nats://127.0.0.1:4222 python entries_to_jetstream.py

An entry becomes a message of the stream BILLING, subject `billing.entries`, its JSON the row as `entries` answers it.
**Where the bridge goes on stands in the stream itself**: the last message holds the cursor of the last entry that was
written, so rows and cursor cannot come apart, and a bridge that was killed at any instant goes on behind it. Each
message names the sequence that it must follow (`Nats-Expected-Last-Sequence`), so that a second bridge on the same
stream writes nothing: it is refused and ends. Entries of an account come in their order.

It ends when it has reached the newest entry; `--follow` goes on with what comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os

import nats
from nats.js.errors import NotFoundError

from billing.client import Client

STREAM = "BILLING"
SUBJECT = "billing.entries"
PAGE = 1000
PAUSE_S = 0.2  # between two looks at a feed that has nothing new


async def main(follow: bool) -> None:
    connection = await nats.connect(os.environ.get("NATS", "nats://127.0.0.1:4222"))
    stream = connection.jetstream()
    await stream.add_stream(name=STREAM, subjects=[SUBJECT])  # does nothing where it is there
    cursor, sequence = None, 0
    try:
        last = await stream.get_last_msg(STREAM, SUBJECT)
        cursor, sequence = json.loads(last.data or b"")["cursor"], last.seq or 0
    except NotFoundError:
        pass  # the stream is new: from the first entry on
    written = 0
    address = os.environ.get("BILLING_ADDRESS", "127.0.0.1:3311")
    async with Client(address, token=os.environ.get("BILLING_TOKEN")) as client:
        while True:
            rows = await client.entries(after=cursor, limit=PAGE)
            for row in rows:
                told = await stream.publish(
                    SUBJECT, json.dumps(row).encode(), headers={"Nats-Expected-Last-Sequence": str(sequence)}
                )
                sequence, cursor = told.seq, row["cursor"]
            written += len(rows)
            if not rows and not follow:
                break
            if not rows:
                await asyncio.sleep(PAUSE_S)
    await connection.close()
    print(f"{written} entries written, {sequence} are in the stream")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes all entries into a stream of NATS JetStream.")
    parser.add_argument("--follow", action="store_true", help="goes on with what comes")
    asyncio.run(main(parser.parse_args().follow))
