"""The application: what is owed, when it runs out, and whom to tell.

Prepaid billing by the second. `billing` imports `shards` (which keeps a state machine alive and knows nothing of
money), never the other way round. Someone who only wants to know how money and time work here reads `billing/ledger/`
and nothing else.
"""

__version__ = "0.1.0"
