"""`billing doctor`: checks whether the data in a data directory, or in a log on servers, are right. No daemon may run.

Theory. The daemon checks its data with its own code: replay is the same call that made the entry. That check cannot
find a fault in this code, or in a codec that writes and reads in the same wrong way. So this room is a second
implementation. It uses neither the ledger nor the daemon's file readers nor their codecs: every layout here was written
from the grammar in the docstring of the module that writes it, and the rules of money and time from the contract. Each
sum is one plain Python integer of internal units. The code is written to be obvious, even where that makes it slow.

Invariant: the doctor never writes, except for one explicit order (`cut`), and it never guesses: data that it cannot
check, because something before them is damaged, are listed as not checked.

    command              the command line; examine: the whole examination, in order; report: its findings
    files                reads one file by offset, ahead
    directory            the journal in a directory; segment, snapshot: parse its files
    log                  the interface of a journal for the other modules, and a journal on servers
    owners               the map of buckets, from its journal
    entry                parses one entry of the ledger
    state                accounts; part: parses a bucket in a snapshot; likeness: compares two states of a bucket
    commands, cutoffs    carry out commands, and reports about cutoffs, a second time
    replay               compares entries with that; shard: checks one log; compare: checks its snapshots
    history, statements  check the rows of the history, and figures of periods
    notices              checks the files of owed notices
    cut                  cuts a damaged tail off, by order of an operator
"""
