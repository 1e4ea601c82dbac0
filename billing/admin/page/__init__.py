"""The dashboard: one page, whose parts are made again each second.

The server makes all markup, so that a browser without JavaScript sees the same figures. The script replaces old parts
by new ones, moves buckets in the picture, and counts one balance down. All markup is made with `markupsafe`, which
escapes every inserted value, because user ids and errors come from outside.

    parts      the content of each element of the page
    condition  the daemon's faults of now, in sentences, the worst first
    plots      the plots
    words      numbers in words
"""
