"""The scene by PyPI's `tarantool`: HOST PORT USER_ID [NAME TOKEN] as arguments, the outcome on standard output."""

import json
import sys

import tarantool

host, port, user, *signed = sys.argv[1:]
account = dict(zip(("user", "password"), signed, strict=False))
connection = tarantool.Connection(host, int(port), **account)


def call(name, *arguments):
    return connection.call(name, arguments).data


replies = {
    "topped_up": call("top_up", user, "5")[0]["balance_nanos"],
    "rate": call("set_rate", user, 3600, {"per": "hour", "resource": "vm"})[0]["rate_nanos_per_hour"],
    "debited": call("debit", user, 2 * 10**9)[0]["debited_nanos"],
    "routed": call("vshard.router.callrw", 1, "get_account", [user])[0]["state"],
}
try:
    replies["refused"] = repr(call("debit", user, "9"))
except tarantool.DatabaseError as error:
    replies["refused"] = str(error.args[1])
coins_user = user + "-coins"
replies["increased"] = call("increase_balance", coins_user, 750)
replies["decreased"] = [call("decrease_balance", coins_user, coins)[0] for coins in (200, 500, 200, 50)]
replies["pinged"] = connection.ping() >= 0
json.dump(replies, sys.stdout)
