"""The configuration: every key declared once, loaded, checked as one, and reloaded.

Each part of the daemon is handed the table that it needs, never the whole.

    schema  every key, with its type, bounds, default and meaning; config.toml is printed from it
    load    default, file and environment, checked before anything starts
    reload  what SIGHUP changes
    shares  texts about shards, such as weights
    doors   which key and module belong to each door
"""
