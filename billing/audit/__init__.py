"""The operators' record (audit trail): every request of an operator that changes no account, with its actor, and every
refused sign-in.

Theory. Changes of accounts are recorded in their entries, each with its actor. Acts of operators (moves, pins,
rebalances, backups, releases and retries of cutoffs, reloads, starts and stops, and the drains that these cause) and
refused sign-ins, at every door, leave no entry, so they are recorded here. A record is written and synced before the
act begins; the log reports its result. A signal does not identify its sender: the acts that it causes have no actor.

Each process writes its own files in `audit/` of the data directory: a worker `shard-K.jsonl`, the supervisor
`main.jsonl`. So no process waits for the lock of another, and a reader merges the files by their instants, even while
the daemon is down. A file is only ever appended to. At `FILE_BYTES_MAX` it gets a number, and a new one begins; where
more than `FILES_KEPT` have a number, the oldest is removed.

A line is one JSON object: `at_ns` (wall time), `actor` (as in entries), `act`, `details` (the parameters of the act).

A backup contains copies of the files, and a restored daemon appends to them.

    trail      the files: appending, rotating
    reading    the files of all processes as one feed, resumable by a cursor
    recorder   the writer of one process: threads that wait for the disk, and a limit on records of refused sign-ins
"""
