"""The doors: how the world asks, and how it is answered.

Reading order: `params` (one value), `calls` (one parser per procedure), `methods` (the table of all procedures, for
every door), `wire` (MessagePack-RPC frames without I/O), `auth` (who may do what), `msgpack_rpc` (the server's
connections), then the other side: `connection` and `client`.

A door parses and range-checks everything into the canonical tuples of `billing.ledger.commands`; what it refuses never
reaches the ledger. It decides nothing about money.
"""
