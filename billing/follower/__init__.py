"""A follower: a process that reads one shard's journal and keeps what it takes from it in an SQLite file of its own.

Theory. History and notices are both made from the journal, behind the hot path. The worker hands each durable batch
on as it stands (`link`), a child process (`process`) takes from it what it wants and writes that together with the
batch's position in one transaction (`store`). So each batch takes effect exactly once, whoever was killed when; what
lies behind the stored position is read again from the journal (`feed`).

Invariant: a follower's word lets the journal be trimmed, so the word is given for proved pages only. **Every page of
the file outside SQLite's write-ahead log has been read back from the medium. The log is begun anew only once its own
pages have been read back as well** (`proof`). A sync or a proof that fails ends the process, as it ends a worker; the
next process opens a copy that was read past the page cache, because the page cache of a disk that failed is not to be
believed.

A follower never slows a command down, never changes the journal and never ends its worker: the one exception is a file
ahead of its journal: it proves a loss of batches in the journal (`store.Ahead`).

    link      in the worker: bounded hand-over, catching up from the journal, questions, restarts
    feed      batches read again from the journal, on a thread of their own
    messages  what the two say to each other
    process   the child process: one wire, one file; what history and notices have in common
    store     the file: made whole, opened with suspicion, made durable, proved
    proof     reads back from the medium what a checkpoint wrote
"""
