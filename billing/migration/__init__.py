"""Import: accounts from CSV, JSON lines and Tarantool's own files, as commands to a serving daemon.

An interrupted import is run again unchanged, and adds nothing twice.

    mapping           which of Tarantool's spaces and fields hold users, coins and history (pure)
    tarantool_log     `.snap` and `.xlog` files as rows (pure)
    tarantool_spaces  replays those rows to the tuples of each space (pure)
    sources           reads accounts from any of these files
    plan              the commands for an account
    command           `billing import`
"""
