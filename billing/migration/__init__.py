"""Moving in: accounts out of CSV, JSON lines and Tarantool's own files, as commands to a daemon that serves.

An import that was interrupted is run again as it was, and adds nothing twice.

    mapping           which of Tarantool's spaces hold what (pure)
    tarantool_log     `.snap` and `.xlog` files as rows (pure)
    tarantool_spaces  those rows replayed to tuples by space (pure)
    sources           accounts, of whatever file is given
    plan              commands, of an account
    command           `billing import`
"""
