"""Cutoffs that fall due, and the calls that tell of them: the daemon's expirationd.

What is owed is not kept here: it is the ledger's, which is asked right before each request. In reading order:

    wheel           which accounts fall due, and when (pure)
    coming          what is coming, straight from the accounts; wheel_scrubber: the wheel held against that (both pure)
    outbox          which call goes next, and when again (pure); health: the state of an endpoint (pure)
    request         the bytes of a call (pure; `billing.signature` signs them); answer: what came back (pure)
    routes          which request and which endpoint a call takes
    dialing         opens a connection; line: one connection; endpoint: chooses the connection for a call
    delivery        the shell that joins them; outages: reports endpoints that take no calls
    silence         whether a server serves few connections at once (pure); throughput: how many calls it takes (pure)
    recheck         which delivered cutoffs are looked at again, and when (pure)
"""
