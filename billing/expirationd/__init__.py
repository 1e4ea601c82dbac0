"""What falls due and whom to tell: the daemon's expirationd.

Reading order: `wheel` (which accounts fall due, pure), `outbox` (which request goes next, pure), `health` (what is
thought of an endpoint, pure), `request` (the bytes of a call, pure; `billing.signature` signs them), `answer` (what
came back, pure), `dialing` (how a connection comes about), `line` (one connection), `endpoint` (which connection a call
goes out on), `delivery` (the shell that joins them), `outages` (what is told of endpoints that take no calls). What is
owed is not kept here: it is the ledger's, which is asked right before each request.
"""
