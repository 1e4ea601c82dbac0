"""How money and time work here: accounts, commands, entries. Pure.

The room is a state machine: `Ledger.apply(bucket_id, at_ns, command)` changes accounts and appends one packed entry
per change. Commands already carry their instant, so the same state and the same command have the same outcome, byte
for byte, and recovery is the same call again. It uses the standard library only, and of that no asyncio, clock, file,
socket, randomness or logging. In reading order:

    money              amounts and rates, from texts to integers and back
    commands, errors   what can be asked, and how it is refused
    entry              the record of a change
    account            an account's face: settled, changed, written back; exhaustion: when it runs out
    book               the accounts of a bucket, in rows; extra: what few of them have; block: a bucket as bytes
    ledger             the only place where accounts change; fast_path: the same, for the most frequent commands
    balances, rates    the commands that move money and that change rates; closing: opening and closing accounts
    schedule           what time causes, in order; posting: records a change and its consequences
    credits            parts of a balance that end; thresholds: when to warn
    cutoffs            what is still to be told to the cutoff URL; classes: what differs from account to account
    requests           request ids, and the first answers that they stand for
    views              accounts as replies show them
    audit              conservation, held against the books
"""
