"""Links between hosts: how a worker reaches a shard that another host serves. Within a host, there are unix sockets.

Requests pass over both alike.

    far    connections, over TCP
    hello  what is said on one before its first request: each end proves itself (pure)
"""
