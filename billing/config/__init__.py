"""The configuration: every key declared once, loaded, checked as one, and reloaded.

Each part of the daemon receives only the table that it needs, never the whole configuration.

    schema  every key, with its type, bounds, default and meaning; config.toml is printed from it
    load    merges defaults, file and environment, and checks the result before anything starts
    reload  reads the configuration again on SIGHUP, and applies the keys that may change
    shares  parses texts about shards, such as weights
    doors   the key and the module of each door
"""
