"""How money and time work here: accounts, commands, entries. Pure.

The room is a state machine: `Ledger.apply(bucket_id, at_ns, command)` changes accounts and appends one packed entry
per change. Commands already carry their instant, so the same state and the same command have the same outcome, byte
for byte, and recovery is the same call again.

It uses the standard library only, and of that no asyncio, clock, file, socket, randomness or logging. Reading order:
`money` (amounts and rates), `commands`, `errors`, `entry` (the record of a change), `account` (its place in memory),
`ledger` (the only mutator).
"""
