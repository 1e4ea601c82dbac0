"""One worker process: recovers its shard, serves it, passes requests on, and takes snapshots meanwhile."""
