"""The log on a majority: NATS JetStream, one stream for each shard's journal, one for its snapshots, one for the map.

    codec        the client's side of the NATS protocol: bytes in, events out; requests in, bytes out. No I/O
    connection   one blocking connection to whichever server answers, and requests over it
    streams      what is asked of a stream: its state, a message, a run of messages, a publish at a sequence
    publisher    one message after the other at a known sequence, until it is known what came of it
    record       the bytes of a journal's messages, and the rules by which they follow each other. No I/O
    journal      a shard's journal; backend: what makes it
    log          what stands in the journal's stream; snapshots: what is kept beside it; reader: both, without owning
    map_log      the map, decided by compare-and-set
    witness      what this host has seen of a stream, by which one that lost its end is known
    guard        whether the streams are fit, before anything starts; and making them; permissions: what our user may do
    restoring    streams filled from another log

The library of NATS for Python is not used here: a publish through it costs three times as much, and it never resolves a
publish that is refused. It reads what this code wrote in the tests, as the second opinion.
"""
