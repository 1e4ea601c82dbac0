"""The operators' record: who asked the daemon for what besides changes of accounts, and who was not let in.

Theory. What happens to accounts stands in their entries, each with its actor. What operators do (moves, pins,
rebalances, backups, releases and retries of cutoffs, reloads, and with them the drains that they cause) and sign-ins
that are refused leave no entry, so they stand here. A record is written and synced before the act
begins; the log says what came of it.

Each process writes files of its own in `audit/` of the data directory: `shard-K.jsonl` a worker, `main.jsonl` the
supervisor's. So nobody waits for anybody's lock, and reading joins them by their instants, also while the daemon is
down. A file is only ever appended to; at `FILE_BYTES_MAX` it gets a number and a new one begins, and of those with a
number the oldest goes where there are more than `FILES_KEPT`.

A line is one JSON object: `at_ns` (wall time), `actor` (as in entries), `act`, `details` (what was asked for).

    trail      the files: appending, rotating, reading
    recorder   of one process: a thread that waits for the disk, and a bound on refused sign-ins
"""
