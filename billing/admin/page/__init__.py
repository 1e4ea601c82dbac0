"""The dashboard: one page, made here, kept fresh by what `parts` makes again each second.

Everything that is shown is markup made on the server, so that a browser without JavaScript sees the same figures; the
script puts new parts in the place of old ones, moves buckets in the picture, and counts one balance down. All markup is
made by `markupsafe`, which escapes whatever is put into it: user ids and errors come from outside.

    parts      the content of each element of the page
    condition  what is wrong with the daemon now, in sentences, the worst first
    plots      the curves
    words      numbers in words
"""
