"""History: every account's entries, kept queryable beyond memory, as an SQLite file per shard.

Theory. The journal is the source of truth. A follower (`billing.follower`) derives the history from it, behind the hot
path and in a process of its own: the projector takes the records of entries out of each durable batch (`projection`)
and writes them, some dozens to a compressed page (`page`), together with the batch's position in one transaction
(`store`). So each entry becomes a row exactly once, by position, and nothing of it is left out. A row's figures are
computed when it is read: entries are written all the time, and few are read.

Invariant: an answer contains every entry that was answered before, or says from which instant on it is complete. A
batch is durable, and handed over, before anything in it is answered; a question follows it on the same connection, and
the projector commits what it has before it answers. The rows of a user whose bucket moved are in the files of several
shards. A directory holds the files of all shards, whichever hosts serve these, and `history_reader` reads all of them.
Entry_ids are consecutive, so a missing row is noticed, and a placeholder row reports it.

The history never slows a command down, never changes the journal, and never guesses.

    link        in the worker: the questions to a history
    projector   the child process: one connection, one file
    replica     the process that writes this host's files of the shards that other hosts serve
    replica_link  the main process's end of the replica
    gaps        which batches a file lacks, and batches rebuilt from a file for another host's
    mending     fills the gaps of a file with the batches of other hosts
    mender      beside the replica: decides when gaps are filled, and reports the result
    projection  which bytes of a batch are rows; pure, and the one module here that is written for speed
    page        rows as they are stored in the file, and the fields that a row shows; pure
    accounts    the accounts that have rows in a file, and the newest row of each
    store       the file: schema, transactions, reading pages, cutting back; tables: the part that a worker needs
    retention   deletes rows older than history.keep_days
    openings    the rate lines at the first row that an account keeps after a deletion
    salvage     makes a new file of the sound rows of a damaged or older one
    restoring   restores rows that neither file nor journal has, from a backup and from a snapshot
    history_reader  reads an account's rows from all files
    cursor      the position of a reader in the feed of all entries; pure
    entries     the feed: the rows of all files, once each, those of an account in their order
    feed_part   one shard's part of the feed, where hosts share the journal
    batches     the batch of that journal which a row came from
    period      a period of an account: opening, entries, total accrual and accrual by line, closing; pure
    period_reader  reads the rows of a period or a past balance, and makes the answer
    turns       which answer takes its next step; pure
    copying     a copy for a backup
"""
