"""A follower: a process that reads one shard's journal and writes what its kind needs to an SQLite file of its own.

Theory. The history and the notices are both derived from the journal, behind the hot path. The worker passes on each
durable batch unchanged (`link`). A child process (`process`) derives its rows from the batch and writes them together
with the batch's position in one transaction (`store`). So each batch takes effect exactly once, whichever process was
killed and whenever; batches behind the stored position are read again from the journal (`feed`).

Invariant: the position that a follower acknowledges lets the journal be trimmed, so a follower acknowledges proved
pages only. **Every page of the file outside SQLite's write-ahead log has been read back from the medium. The log is
restarted only once its own pages have been read back as well** (`proof`). A sync or a proof that fails ends the
process, as it ends a worker. The next process opens a copy that was read past the page cache, because the page cache of
a disk that failed cannot be trusted.

A follower never slows a command down, never changes the journal and never ends its worker, with one exception: a file
that is ahead of its journal proves that the journal has lost batches (`store.Ahead`).

    link      in the worker: bounded hand-over, catching up from the journal, questions, restarts
    feed      reads batches again from the journal, on a thread of its own
    messages  the messages between worker and process
    process   the child process: one connection to its worker, one file; what the processes of all kinds share
    store     the file: created atomically, checked when opened, made durable, proved
    proof     reads back from the medium what a checkpoint wrote
    damage    reads what can still be read of a damaged file
"""
