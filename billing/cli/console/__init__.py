"""`billing console`: a prompt at which a person types calls of the daemon's methods. Nothing is evaluated.

`line` parses a typed line into a call, by the daemon's own description of its methods; `lua_call` translates a call
that is typed as Lua (both are pure). `session` reads lines, makes the calls and prints the replies; `watch` draws one
account while its balance falls.
"""
