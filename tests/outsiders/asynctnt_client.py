"""The scene by PyPI's `asynctnt`: HOST PORT USER_ID [NAME TOKEN] as arguments, the outcome on standard output."""

import asyncio
import json
import sys

import asynctnt

host, port, user, *signed = sys.argv[1:]
account = dict(zip(("username", "password"), signed, strict=False))


async def main():
    connection = asynctnt.Connection(host=host, port=int(port), **account)
    await connection.connect()

    async def call(name, *arguments):
        return (await connection.call(name, list(arguments))).body

    replies = {
        "topped_up": (await call("top_up", user, "5"))[0]["balance_nanos"],
        "rate": (await call("set_rate", user, 3600, {"per": "hour", "resource": "vm"}))[0]["rate_nanos_per_hour"],
        "debited": (await call("debit", user, 2 * 10**9))[0]["debited_nanos"],
        "routed": (await call("vshard.router.callrw", 1, "get_account", [user]))[0]["state"],
    }
    try:
        replies["refused"] = repr(await call("debit", user, "9"))
    except asynctnt.exceptions.TarantoolDatabaseError as error:
        replies["refused"] = error.message
    coins_user = user + "-coins"
    replies["increased"] = await call("increase_balance", coins_user, 750)
    replies["decreased"] = [(await call("decrease_balance", coins_user, coins))[0] for coins in (200, 500, 200, 50)]
    await connection.ping()
    replies["pinged"] = True
    await connection.disconnect()
    return replies


json.dump(asyncio.run(main()), sys.stdout)
