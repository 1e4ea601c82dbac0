"""History: every account's entries, kept queryable beyond memory, as an SQLite file per shard.

Theory. The journal is the truth, history is derived from it, behind the hot path and in a process of its own. The
worker hands each durable batch on as it stands (`link`); the projector (`projector`) takes the rows out of it
(`projection`) and writes them together with the batch's position in one transaction (`store`). So each entry becomes a
row exactly once, by position, whoever was killed when; what lies behind the stored position is read again from the
journal, which is not trimmed above it.

Invariant: an answered entry is always in the answer. A batch is durable, and handed over, before anything it holds is
answered; a question travels behind it on the same wire, and the projector writes what it has before it answers. Rows of
a user whose bucket moved stand in several shards' files of one directory; `shelf` reads them all, and knows from
the records of moves whether the others have all there is.

It never slows a command down, never changes the journal, and never guesses: a hole between the file and the journal
is refused by name, not skipped.

    link        in the worker: bounded hand-over, catching up from the journal, questions, restarts
    feed        batches read again from the journal, on a thread of their own
    messages    what the two say to each other
    projector   the child process: one wire, one file
    projection  a batch's bytes as rows; pure, and the one fast module here
    store       the file: schema, transactions, what is durable, cutting back
    shelf       reading an account's rows out of all files
    statement   a period of an account: opening, entries, closing, and whether it adds up; pure
"""
