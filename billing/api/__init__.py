"""The doors: how the world asks, and how it is answered.

A door parses and range-checks everything into the canonical tuples of `billing.ledger.commands`; what it refuses never
reaches the ledger. It decides nothing about money. `http` and `iproto` are doors of their own; MessagePack-RPC's is
here. In reading order:

    params, values, shapes  one parameter; the types of parameters; the shapes of replies
    methods                 the table of all methods, for every door; calls: from a row's values to a command
    wire, frames            MessagePack-RPC as bytes; where a frame ends that is not decoded
    auth, origins           who may do what; who is at the other end of a connection
    door                    what connections share: the gate to the worker, limits, counters, deadlines
    request_reader          bytes in, requests out; response_writer: replies in, bytes out
    response_transport      when replies leave, and how a connection ends
    msgpack_rpc             a connection of MessagePack-RPC
    calling                 the seam on which every other door stands: calls in, replies back, no bytes
    opening                 from listening sockets to doors
    replies                 the replies of the most frequent commands, as records that are encoded fast
    latency                 how long requests take
    token_bucket            how many requests a connection may make
    connection_limits       how many connections a process has room for
    listener                accepting connections, some a turn of the loop
    tls, tls_entrance       TLS of the doors; handshakes, bounded
"""
