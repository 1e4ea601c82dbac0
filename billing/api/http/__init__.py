"""The HTTP/JSON door: accounts as resources, made from the table of methods.

Reading order: `routes` (the method of a request), `reading` (a request's path, query, headers and JSON as the params of
its method), `writing` (a reply as JSON, a refusal as a problem), `openapi` (the door as an OpenAPI document), `answers`
(an answer as bytes), `credentials` and `browser` (the grant of a request), `server` (the steps of a request, in order),
`feed` (the feed of all entries), and `connection`, the only module that touches sockets.

What this door guarantees:

- **Money is never a bare number.** `"amount": "12.5"` is coins, `"amount_nanos": 12500000000` is nanos; a reply has
  both.
- **`Idempotency-Key` is the request_id.** A repeated call gets its first answer again, with `Idempotent-Replayed:
  true`, refusals included.
- **An error is a problem** (RFC 9457) with the contract's `name`, `code`, `retry` and `applied`.
- **A token has the same roles as at every door.** Without tokens, every client over loopback may do everything, except
  a web page: see `browser`.

The same requests in the same order have the same effects as at any other door, and are answered once durable.
"""
