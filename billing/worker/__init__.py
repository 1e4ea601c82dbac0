"""What runs in a worker process beside the shard: the hosted machine, its doors and its outgoing calls.

`shards.worker` runs the process; this is the application that it hosts.

    application      joins them: what `shards.worker` hosts
    machine          ledger and timing wheel, as the content of a shard's buckets
    pages            pages of accounts and of owed cutoffs; feed: a page of all entries
    explain          why an account stands where it stands
    periodic_checks  what a worker looks at by itself; aggregates: sums over its accounts
    startup_hold     which cutoffs of a start wait for an operator
    classes          cutoff classes, as the configuration has them
"""
