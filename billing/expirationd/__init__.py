"""What falls due and whom to tell: the daemon's expirationd.

Reading order: `wheel` (which accounts fall due, pure), `outbox` (which request goes next, pure), `signature` (how a
receiver knows that it was us, pure), `request` (the bytes of a cutoff, pure), `endpoint` (connections and answers, over
aiohttp), `delivery` (the shell that joins them). What is owed is not kept here: it is the ledger's, which is asked
right before each request.
"""
