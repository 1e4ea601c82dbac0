"""Backups: a copy of everything as of one instant, taken while the daemon serves; and put back.

    files    what a backup is on disk
    command  `billing backup` and `billing restore`
    rebuild  `billing rebuild`: the files of history and notices, made again

`shards.backup` holds the files still, `shards.journal.file.copying` copies a journal, and
`billing.worker.startup_hold` says what a restored daemon is careful about.
"""
