"""The doors: how the world asks, and how it is answered.

Reading order: `params` (one value), `calls` and `questions` (one parser per procedure), `methods` (the table of all
procedures, for every door), `wire` (MessagePack-RPC as bytes), `auth` (who may do what), `door` (what connections
share), `request_reader` (bytes in, requests out), `response_writer` (replies in, bytes out), `response_transport` and
`msgpack_rpc` (a connection: when replies leave, how requests come in), `calling` (the seam on which every other door
stands: calls in, replies back, and no bytes of any protocol).

A door parses and range-checks everything into the canonical tuples of `billing.ledger.commands`; what it refuses never
reaches the ledger. It decides nothing about money.
"""
