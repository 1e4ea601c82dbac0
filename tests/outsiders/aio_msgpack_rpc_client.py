"""The scene by `aio-msgpack-rpc`: HOST PORT USER."""

import asyncio
import json
import sys

import aio_msgpack_rpc


async def main(host: str, port: str, user: str) -> None:
    reader, writer = await asyncio.open_connection(host, int(port))
    client = aio_msgpack_rpc.Client(reader, writer)
    replies = {
        "topped_up": (await client.call("top_up", user, "5"))["balance_nanos"],
        "rate": (await client.call("set_rate", user, 3600, {"per": "hour", "resource": "vm"}))["rate_nanos_per_hour"],
        "debited": (await client.call("debit", user, 2_000_000_000))["debited_nanos"],
    }
    try:
        await client.call("debit", user, "9")
    except aio_msgpack_rpc.error.RPCResponseError as error:
        replies["refused"] = str(error)
    replies["state"] = (await client.call("get_account", user))["state"]
    print(json.dumps(replies))
    client.close()


asyncio.run(main(*sys.argv[1:]))
