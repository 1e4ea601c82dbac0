"""The doors: the protocol endpoints through which clients call the daemon.

A door parses and range-checks each request into a canonical tuple of `billing.ledger.commands`. A request that a door
refuses never reaches the ledger. Doors decide nothing about money. `http` and `iproto` are packages with a door each;
the modules of the MessagePack-RPC door are in this package itself. In reading order:

    params, values, shapes  one parameter; the types of parameters; the shapes of replies
    methods                 the table of all methods, for every door; calls: builds commands from parsed values
    wire, frames            MessagePack-RPC as bytes; finds the end of a frame that is not decoded
    auth, origins           the roles of a connection; its peer
    door                    what connections share: the gate to the worker, limits, counters, deadlines
    request_reader          bytes in, requests out; response_writer: replies in, bytes out
    response_transport      when replies leave, and how a connection ends
    msgpack_rpc             a connection of MessagePack-RPC
    calling                 the interface under every other door: calls in, replies back, no bytes
    opening                 opens the doors on their listening sockets
    replies                 the replies of the most frequent commands, as records that are encoded fast
    latency                 how long requests take
    token_bucket            how many requests per second a connection may make
    connection_limits       how many connections the file descriptors of a process allow
    listener                accepts connections, several per turn of the event loop
    tls, tls_entrance       TLS contexts of the doors; a bounded number of handshakes
"""
