"""Backups: a copy of everything as of one instant, taken while the daemon serves; and its restoration.

    files    the files of a backup on disk
    command  `billing backup` and `billing restore`
    rebuild  `billing rebuild`: makes the files of history and notices again

`shards.backup` keeps the files from changing meanwhile, `shards.journal.file.copying` copies a journal, and
`billing.worker.startup_hold` defines what a restored daemon holds back.
"""
