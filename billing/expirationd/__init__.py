"""What falls due and whom to tell: the daemon's expirationd.

Reading order: `wheel` (which accounts fall due, pure), `outbox` (which request goes next, pure), `signature` (how a
receiver knows that it was us, pure), `request` (what a cutoff looks like on the wire), `delivery` (the aiohttp shell
around the outbox). What is owed is not kept here: it is the ledger's, and it is asked again right before each request.
"""
