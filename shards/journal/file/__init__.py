"""The journal as local files: segments, snapshots, and their recovery.

One directory holds one shard's journal.

    record              the bytes of segments and of the manifest; snapshot: those of a snapshot
    journal             a shard's journal; backend: what makes it; map_log: the map's
    active_segment      the file that is written to; segment_reserve: room got ahead for the next one
    retained_snapshots  the two snapshots that are kept
    recovery            whether the files can be believed; cleanup: what opening does with those of the life before
    reader              reads without owning; replay: reads again what is known to be whole
    copying             a copy up to a position; writing: the same, of a log of any kind
"""
