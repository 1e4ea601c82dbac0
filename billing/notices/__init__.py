"""Notices: what happened to accounts, told to another service by POST, behind everything else.

A follower of the journal (`billing.follower`) puts what is owed into its file and sends it by the same delivery as
cutoffs, until it is acknowledged.

    link      in the worker: hands over batches
    notifier  the process that sends; settings: what it is told by the worker
    notice    which entries are told, and how (pure); post: the bytes of a request (pure)
    store     the file of what is owed; opening: makes, finds again and mends it; copying: a copy for a backup
    window    what of it is in memory (pure)
    outages   what the log says of an endpoint that takes none
"""
