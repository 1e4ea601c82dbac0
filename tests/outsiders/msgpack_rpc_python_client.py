"""The scene by `msgpack-rpc-python`: HOST PORT USER."""

import json
import sys

import msgpackrpc

host, port, user = sys.argv[1:]
client = msgpackrpc.Client(msgpackrpc.Address(host, int(port)), unpack_encoding="utf-8")
replies = {
    "topped_up": client.call("top_up", user, "5")["balance_nanos"],
    "rate": client.call("set_rate", user, 3600, {"per": "hour", "resource": "vm"})["rate_nanos_per_hour"],
    "debited": client.call("debit", user, 2_000_000_000)["debited_nanos"],
}
try:
    client.call("debit", user, "9")
except msgpackrpc.error.RPCError as error:
    replies["refused"] = str(error)
replies["state"] = client.call("get_account", user)["state"]
print(json.dumps(replies))
client.close()
