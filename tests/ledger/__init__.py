"""The ledger's rules one by one, and random programs against a model that shares no code with it."""
