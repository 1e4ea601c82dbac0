"""History: every account's entries, kept queryable beyond memory, as an SQLite file per shard.

Theory. The journal is the truth, history is derived from it by a follower (`billing.follower`), behind the hot path and
in a process of its own: the projector takes the records of entries out of each durable batch (`projection`) and writes
them, some dozens to a compressed page (`page`), together with the batch's position in one transaction (`store`). So
each entry becomes a row exactly once, by position, and nothing of it is left out. A row's figures are worked out when
it is read: entries are written all the time, and few are read.

Invariant: an answered entry is always in the answer, or the answer says from when it is whole. A batch is durable, and
handed over, before anything it holds is answered; a question travels behind it on the same wire, and the projector
writes what it has before it answers. Rows of a user whose bucket moved stand in several shards' files of one directory,
which has those of all shards, wherever these are served; `history_reader` reads them all. Entry_ids follow each other,
so rows that are missing are seen; a row says so in their place.

It never slows a command down, never changes the journal, and never guesses.

    link        in the worker: what the history is asked
    projector   the child process: one wire, one file
    replica     the process that makes this host's files of the shards that other hosts serve
    replica_link  the main process's end of that
    gaps        what a file lacks, and batches made again out of one for another host's
    mending     filling the gaps of a file with what other hosts have
    mender      beside the replica: when that is done, and what is said of it
    projection  which of a batch's bytes are rows; pure, and the one fast module here
    page        rows as they stand in the file, and what a row shows; pure
    accounts    who has rows in a file, and which is the newest of each
    store       the file: schema, transactions, reading pages, cutting back; tables: what a worker knows of it
    retention   giving up what is older than history.keep_days
    openings    the rate lines where an account's rows begin since
    salvage     a new file out of what is good in a damaged or older one
    restoring   what neither file nor journal has, from a backup and from a snapshot
    history_reader  reading an account's rows out of all files
    cursor      how far a reader of the feed of all entries is; pure
    entries     the feed: all files' rows, once each, an account's in their order
    feed_part   one shard's part of it, where hosts share the journal
    batches     which batch of that journal a row came from
    period      a period of an account: opening, entries, accrual in all and by line, closing; pure
    period_reader  which rows a period or a past balance is made of, and what is answered
    copying     a copy for a backup
"""
