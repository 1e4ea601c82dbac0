"""The HTTP/JSON door: accounts as resources, made from the table of methods.

Reading order: `routes` (which method a request means), `reading` (its path, query, headers and JSON as the params of
that method), `writing` (a reply as JSON, a refusal as a problem), `openapi` (all of it as a document), `answers` (the
bytes of an answer), `credentials` and `browser` (who asks), `server` (what is done with a request, in order), `feed`
(the feed of all entries), and then the only module that touches sockets, `connection`.

What holds at this door:

- **Money is never a bare number.** `"amount": "12.5"` is coins, `"amount_nanos": 12500000000` is nanos; a reply has
  both.
- **`Idempotency-Key` is the request_id.** A call that comes again is answered as the first time, with
  `Idempotent-Replayed: true`, refusals included.
- **An error is a problem** (RFC 9457) with the contract's `name`, `code`, `retry` and `applied`.
- **A token's roles hold here as everywhere.** Without tokens, whoever calls over loopback may do everything, but no
  web page may: see `browser`.

The same requests in the same order have the same effects as at any other door, and are answered once durable.
"""
