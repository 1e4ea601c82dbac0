"""Backups: a copy of everything as of one instant, taken while the daemon serves; and put back.

`files` is what a backup is on disk; `command` is `billing backup` and `billing restore`. `shards.backup` holds the
files still, `shards.journal.file.copying` copies a journal, and `billing.worker.startup_hold` says what a
restored daemon is careful about.
"""
