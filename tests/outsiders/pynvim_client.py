"""The scene by the MessagePack-RPC session of `pynvim`: HOST PORT USER."""

import json
import sys

from pynvim.msgpack_rpc import tcp_session

host, port, user = sys.argv[1:]
session = tcp_session(host, int(port))
session.error_wrapper = Exception  # its own takes an error for the pair that Neovim sends
replies = {
    "topped_up": session.request("top_up", user, "5")["balance_nanos"],
    "rate": session.request("set_rate", user, 3600, {"per": "hour", "resource": "vm"})["rate_nanos_per_hour"],
    "debited": session.request("debit", user, 2_000_000_000)["debited_nanos"],
}
try:
    session.request("debit", user, "9")
except Exception as error:
    replies["refused"] = error.args[0]
replies["state"] = session.request("get_account", user)["state"]
print(json.dumps(replies))
session.close()
