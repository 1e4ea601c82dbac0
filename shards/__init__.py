"""Keeps a state machine alive: buckets, workers, journal, moves. It knows nothing of money.

A shard is a journal and the buckets in it; a worker is a process that hosts shards. What a bucket holds is behind the
protocol of `shards.machine`. This room never imports `billing`, which uses it as an application uses a library.
"""
