"""What a worker and a follower say to each other: tuples over a `shards.system.links.Wire`, the kind first.

worker → follower
    (OPEN, directory, shard, first, head, suspect, options)
                                              first of all; the journal holds the batches `first` to `head`; `suspect`:
                                              the process before ended on the disk or on damage; `options`: of its kind
    (BATCH, position, payload)                in order, from the position after OPENED's
    (ASK, number, question)                   a question is a tuple that the follower's kind knows
    (SETTLE,)                                 commit, and prove it, now
    (CLOSE,)                                  commit, make durable, end; so does a closed wire

follower → worker
    (OPENED, position, remarks)               the file ends with this batch; remarks are for the operator's log
    (REACHED, position, bytes, durable, owes) committed up to here, this much of payload in this life; proved up to
                                              there; so many things are still to be done by this shard's follower
    (ANSWER, number, answer)                  plain data, as the follower's kind answers
    (REFUSED, number, reason)                 this question cannot be answered now
    (FAILED, code, reason)                    the follower ends, with this exit code
    (TOLD, figures)                           plain data for the operator
"""

from __future__ import annotations

from typing import Final

OPEN: Final = 0
BATCH: Final = 1
ASK: Final = 2
CLOSE: Final = 3
SETTLE: Final = 4

OPENED: Final = 16
REACHED: Final = 17
ANSWER: Final = 18
REFUSED: Final = 19
FAILED: Final = 20
TOLD: Final = 21
