"""One worker process: recovers its shard, serves it, passes requests on, and takes snapshots meanwhile.

Replies and notices leave it only once what they tell is durable.

    process         the process, with its control wire
    recovering      its first phase; recover: from snapshot and journal to a shard
    serving         its second phase
    worker          the loop around a shard that is served
    hosting         the interface between an application and its worker
    router          requests for other shards; far_links: those of other hosts; far_moves: moves to and from these
    snapshotter     takes snapshots; holds: standing still for a backup
    backpressure    a journal without room, or without a grant
    worker_queries  what the main process asks; asks: what is asked of it
    histogram       counters of events; gc_policy: the garbage collector
"""
