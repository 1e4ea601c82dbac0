"""`billing console`: a prompt at which the procedures of a daemon are typed. Nothing is evaluated.

`line` turns what is typed into a call, by the daemon's own description of its procedures, `lua_call` likewise what is
typed as Lua (both pure); `session` asks, shows and goes on; `watch` draws one account whose balance ticks.
"""
