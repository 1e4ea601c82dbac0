"""The log on a majority: NATS JetStream, one stream for each shard's journal, one for its snapshots, one for the map.

    codec        the client's side of the NATS protocol: bytes in, events out; requests in, bytes out. No I/O
    connection   one blocking connection to whichever server answers, and requests over it
    streams      what is asked of a stream: its state, a message, a run of messages, a publish at a sequence
    record       the bytes of a journal's messages, and the rules by which they follow each other. No I/O
    journal      a shard's journal; snapshots: what it keeps beside the log; reader: both, for those who only look
    map_log      the map, decided by compare-and-set
    guard        whether the streams are fit, before anything starts; and making them

The library of NATS for Python is not used here: a publish through it costs three times as much, and it never resolves a
publish that is refused. It reads what this code wrote in the tests, as the second opinion.
"""
