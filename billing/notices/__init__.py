"""Notices: reports events of accounts to another service by POST, behind everything else.

A follower of the journal (`billing.follower`) writes the notices that are owed into its file. It sends them by the same
delivery as cutoffs, until they are acknowledged.

    link      in the worker: hands over batches
    notifier  the process that sends; settings: the settings that the worker passes to it
    notice    which entries make notices, and their bodies (pure); post: the bytes of a request (pure)
    store     the file of owed notices; opening: creates and repairs it; copying: a copy for a backup
    window    the owed notices that are in memory (pure)
    outages   log messages about an endpoint that takes no notices
"""
