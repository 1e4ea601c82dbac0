"""The log on a majority: NATS JetStream, one stream for each shard's journal, one for its snapshots, one for the map.

    codec        the client's side of the NATS protocol: bytes in, events out; requests in, bytes out. No I/O
    connection   one blocking connection to whichever server answers, and requests over it
    streams      requests to a stream: its state, a message, a run of messages, a publish at a sequence
    publisher    publishes one message after the other at a known sequence, and resolves doubt
    record       the bytes of a journal's messages, and the rules by which they follow each other. No I/O
    journal      a shard's journal; backend: makes journals, readers and the map's log
    log          reads the journal's stream; snapshots: those in a stream of their own; reader: both, without owning
    map_log      the map, decided by compare-and-set
    witness      what this host has seen of a stream, which shows that a stream has lost its end
    guard        checks the servers and streams before anything starts, and makes streams; permissions: of our user
    restoring    fills streams from another log

The library of NATS for Python is not used here: a publish through it costs three times as much, and it never resolves a
publish that is refused. In the tests it reads what this code wrote, as a second opinion.
"""
