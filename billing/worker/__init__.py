"""The application in a worker process: the state machine of a shard, its doors to clients and its outgoing calls.

`shards.worker` runs the process and hosts this application.

    application        joins the parts; implements what `shards.worker` hosts
    machine            ledger and timing wheel, as the content of a shard's buckets
    dependencies       clocks, disk, followers' processes and endpoints, which a simulation replaces
    client_doors       the doors that a worker opens to clients
    followers          history and notices, which follow the journal of the shard
    outgoing_calls     sends cutoffs and restores, and reports their outcome to the ledger
    startup_hold       decides which overdue cutoffs wait for an operator after a start
    classes            reads the cutoff classes from the configuration
    periodic_checks    checks that a worker makes by itself
    aggregates         sums over the accounts of a shard; aggregate_rounds: when these are computed
    questions          the table of handlers for queries that the state machine does not answer itself
    history_questions  answers queries from the history; feed: a page of all entries
    pages              pages of accounts and of owed cutoffs
    explain            the state of one account in detail, with the reason why its call waits
"""
