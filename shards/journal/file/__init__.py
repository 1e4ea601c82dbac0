"""The journal as local files: segments, snapshots, and their recovery.

One directory holds one shard's journal.

    record              the bytes of segments and of the manifest; snapshot: those of a snapshot
    journal             a shard's journal; backend: makes journals; map_log: the log of the map
    active_segment      the file that is written to; segment_reserve: the next one, prepared ahead, and ballast
    retained_snapshots  the two snapshots that are kept
    recovery            reads and judges the files; cleanup: what opening does with those of an earlier life
    reader              reads without owning; replay: reads again what is known to be whole
    failures            which error a failed call of the disk is
    copying             a copy up to a position; writing: the same, of a log of any kind
"""
