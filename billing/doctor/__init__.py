"""`billing doctor`: is what stands in a data directory, or in a log on servers, right? Answered while nothing runs.

Theory. The daemon proves itself with its own code: replay is the call that made the entry. A fault in that code, or in
a codec that writes and reads wrongly alike, would prove itself right. So this room is a second implementation. It
shares neither the ledger nor the reader of files nor any of their codecs: every layout here was written from the
grammar in the docstring of the module that writes it, money and time from the contract, with one plain Python integer
of internal units for each sum. It is written to be obvious, and is slow where that helps.

Invariant: it never writes, but for one order that says so (`cut`), and it never guesses: what it cannot check, because
something before it is damaged, it lists as not checked.

    command              the command line; examine: all of the examination, in order; report: what it found
    files                one file by offset, read ahead
    directory            the journal of a directory; segment, snapshot: the bytes of its files
    log                  what a journal is to the rest, and one on servers, whose bytes its backend proves
    owners               the map of buckets, from its journal
    entry                one entry of the ledger
    state                accounts; part: a bucket as a snapshot holds it; likeness: both compared
    commands, cutoffs    what a command or a report does, again
    replay               entries held against that; shard: a log; compare: its snapshots
    history, statements  the rows of the history, and figures of periods
    notices              the files of owed notices
    cut                  gives up a damaged tail, on order
"""
