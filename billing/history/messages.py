"""What a worker and the projector of its history say to each other: tuples over a `Wire`, the kind first.

worker → projector
    (OPEN, directory, shard, first, head)     first of all; the journal holds the batches `first` to `head`
    (BATCH, position, payload)                in order, from the position after OPENED's
    (ASK, number, bucket id, generation, user id, before, limit)
    (CLOSE,)                                  commit, make durable, end; so does a closed wire

projector → worker
    (OPENED, position, begins)                the file ends with this batch, and begins with that one
    (REACHED, position, bytes, durable)       committed up to here, this much of payload in this life; durable up to
    (ROWS, number, rows)                      rows as `history` answers them
    (REFUSED, number, reason)                 this question cannot be answered now
    (FAILED, reason)                          the projector ends
    (TOLD, figures)                           plain data for the operator

OPEN carries further fields for a projector of another kind (`billing.notices.notifier`), and nobody asks that one.
"""

from __future__ import annotations

from typing import Final

OPEN: Final = 0
BATCH: Final = 1
ASK: Final = 2
CLOSE: Final = 3

OPENED: Final = 16
REACHED: Final = 17
ROWS: Final = 18
REFUSED: Final = 19
FAILED: Final = 20
TOLD: Final = 21
