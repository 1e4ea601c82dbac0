"""Tarantool's protocol: existing Tarantool connectors call every procedure, by its name.

`protocol` is the bytes, without I/O; `procedures` says what a called name means here, and how its result is returned;
`connection` is one client. The door has no space and runs no Lua: a SELECT finds nothing, and EVAL is refused.
"""
