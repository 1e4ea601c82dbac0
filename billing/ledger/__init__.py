"""How money and time work here: accounts, commands, entries. Pure.

The package is a state machine: `Ledger.apply(bucket_id, at_ns, command)` changes an account and appends one packed
entry per change. The instant of a command is an argument, so the same state and the same command have the same outcome,
byte for byte, and recovery applies the recorded commands through the same code. The package imports nothing but the
standard library, and from it no asyncio, clock, file, socket, randomness or logging. In reading order:

    money              amounts and rates, from texts to integers and back
    commands, errors   the commands that change an account, and the errors that refuse them
    entry              the record of a change
    account            a working copy of one account: settle, change, write back; exhaustion: when an account runs out
    book               the accounts of a bucket, in rows; extra: fields that few accounts have; block: a bucket as bytes
    ledger             the only place where accounts change; fast_path: the same, for the most frequent commands
    balances, rates    the commands that move money and that change rates; closing: opening and closing accounts
    schedule           what time causes, in order; posting: records a change and its consequences
    credits            parts of a balance that end; thresholds: when to warn the account's owner
    cutoffs            the calls that are owed to the cutoff URL; classes: the cutoff rules of some accounts
    requests           request ids, with the first answer to each
    views              accounts as replies show them
    audit              checks that no money is lost or made in a bucket
"""
