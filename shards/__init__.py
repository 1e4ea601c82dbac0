"""Keeps a state machine alive: buckets, workers, journal, moves. It knows nothing of money.

A shard is a journal and the buckets in it; a worker is a process that hosts shards. What a bucket holds is behind the
protocol of `shards.machine`. This room never imports `billing`, which uses it as an application uses a library.

    shard       one shard without I/O; machine: what a bucket's content must be able to do; replies: its callers
    batch       what the journal holds; buckets: which bucket a key is in, and whose it is
    journal     the seam behind which batches are durable; its backends
    worker      one worker process
    moves       a bucket changes its shard
    supervisor  the main process
    links       between workers of different hosts
    system      the only modules that touch the machine
    control     every message between supervisor and workers
    backup      up to which positions the logs are one instant; restored: the mark that they came from a backup
    exits       the exit codes; counting: "1 user", "2 users"

Another application brings
- a `Machine` (`shards.machine`): apply a command, replay its record, let time pass, dump and load a bucket; commands
  and queries as tuples, records as bytes. `tests/shards/counters.py` is a whole one in a hundred lines;
- a `Hosted` (`shards.worker.hosting`): its doors (`open` gets the sockets and hands requests to the worker's `submit`,
  `read` and `operate`), how replies are encoded, and the outgoing calls that must not begin while a bucket leaves;
- a main process that binds sockets and runs a `Supervisor` with the command that starts a worker, and a worker command
  that calls `shards.worker.process.run` with a function that builds the `Hosted`.
It gets moving buckets, a changing number of shards, recovery, snapshots, routing, and one clock that never goes back.
"""
