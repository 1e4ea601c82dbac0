"""Links between hosts: how a worker reaches a shard that another host serves. Within a host, there are unix sockets."""
