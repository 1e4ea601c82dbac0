"""Finds the accounts that fall due, and makes the calls to the cutoff and restore URLs: the daemon's expirationd.

The package does not store which calls are owed: the ledger does, and is asked right before each request. In reading
order:

    wheel           which accounts fall due, and when (pure)
    coming          what is coming, read from the accounts; wheel_scrubber: compares the wheel with that (both pure)
    outbox          which calls are owed, and when they are retried (pure)
    lane            which call goes to an endpoint next (pure); health: the state of an endpoint (pure)
    request         the bytes of a call (pure; `billing.signature` signs them); answer: parses the answer (pure)
    routes          which request template and which endpoint a call uses
    dialing         opens a connection; line: one connection; endpoint: chooses the connection for a call
    delivery        the shell that joins them; outages: reports endpoints that take no calls
    counts          what came of the calls since the worker's start
    silence         whether a server serves few connections at once (pure); throughput: how many calls it takes (pure)
    recheck         which delivered cutoffs are checked again, and when (pure)
"""
