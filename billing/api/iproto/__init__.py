"""The door of Tarantool's protocol: existing Tarantool connectors call every procedure by its name.

`protocol` encodes and decodes the bytes, without I/O; `procedures` translates called names and their results;
`connection` is the connection of one client. The door has no spaces and runs no Lua: a SELECT finds nothing, and EVAL
is refused.
"""
