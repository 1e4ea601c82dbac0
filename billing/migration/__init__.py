"""Moving in: accounts out of CSV, JSON lines and Tarantool's own files, as commands to a daemon that serves.

`mapping` says which of Tarantool's spaces hold what. `tarantool_log` reads `.snap` and `.xlog` files as rows,
`tarantool_spaces` replays those rows to tuples by space; all three are pure. `sources` makes accounts of whatever file
is given, `plan` makes commands of an account, and `command` is `billing import`.
"""
