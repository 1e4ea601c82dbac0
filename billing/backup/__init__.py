"""Backups: a copy of everything as of one instant, taken while the daemon serves; and put back.

`files` is what a backup is on disk; `command` is `billing backup` and `billing restore`. How the files are held still
is in `shards.backup`, how a journal is copied in `shards.journal.file.copying`; what a restored daemon is careful about in
`billing.worker.startup_hold`.
"""
