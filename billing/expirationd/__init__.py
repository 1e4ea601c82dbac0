"""Cutoffs that fall due, and the calls that tell of them: the daemon's expirationd.

Reading order: `wheel` (which accounts fall due, pure), `outbox` (which request goes next, pure), `health` (what is
thought of an endpoint, pure), `request` (the bytes of a call, pure; `billing.signature` signs them), `routes` (which
request and which endpoint a call takes), `answer` (reads an answer, pure), `dialing` (opens a connection), `line` (one
connection), `endpoint` (chooses the connection for a call), `delivery` (the shell that joins them), `outages` (reports
endpoints that take no calls). What is owed is not kept here: it is the ledger's, which is asked right before each
request.
"""
