"""What runs in a worker process beside the shard: the hosted machine, its doors and its outgoing calls.

`shards.worker` runs the process; this is the application that it hosts.

    application        joins them: what `shards.worker` hosts
    machine            ledger and timing wheel, as the content of a shard's buckets
    dependencies       clocks, disk, followers' processes and endpoints, as the worker is given them
    client_doors       the doors that it opens to clients
    followers          history and notices, which follow its journal
    outgoing_calls     cutoffs and restores, from what became owed to what came of it
    startup_hold       which cutoffs of a start wait for an operator
    classes            cutoff classes, as the configuration has them
    periodic_checks    what a worker looks at by itself
    aggregates         sums over its accounts; aggregate_rounds: when they are made
    questions          what is answered beside the machine: the table of handlers
    history_questions  those that the history answers; feed: a page of all entries
    pages              pages of accounts and of owed cutoffs
    explain            why an account stands where it stands
"""
