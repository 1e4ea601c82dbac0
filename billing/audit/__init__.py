"""The operators' record: every operator's request that is no change of an account, with its actor, and every refused
sign-in.

Theory. What happens to accounts stands in their entries, each with its actor. What operators do (moves, pins,
rebalances, backups, releases and retries of cutoffs, reloads, starts and stops, and the drains that these cause) and
sign-ins that are refused, at every door, leave no entry, so they stand here. A record is written and synced before the
act begins; the log says what came of it. A signal does not say who sent it: what it causes has no actor.

Each process writes files of its own in `audit/` of the data directory: `shard-K.jsonl` a worker, `main.jsonl` the
supervisor's. So nobody waits for anybody's lock, and reading joins them by their instants, also while the daemon is
down. A file is only ever appended to; at `FILE_BYTES_MAX` it gets a number and a new one begins, and of those with a
number the oldest goes where there are more than `FILES_KEPT`.

A line is one JSON object: `at_ns` (wall time), `actor` (as in entries), `act`, `details` (what was asked for).

A backup has copies of the files, and a restored daemon goes on with them.

    trail      the files: appending, rotating
    reading    the files of all processes as one feed, resumable by a cursor
    recorder   of one process: threads that wait for the disk, and a bound on refused sign-ins
"""
