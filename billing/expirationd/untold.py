"""Whether what the ledger calls owed may be acted on yet. Pure.

The ledger is ahead of the disk, and the outbox asks it because of something older, too: a cutoff that failed before. So
between a change and its durability the ledger may name a call that a loss of power would leave without a cause. Of
each change that makes another call owed there is a notice, and until that was told nothing of it is done; the notice
then brings it to the outbox.
"""

from collections.abc import Iterable
from typing import Any, Final

from billing.ledger.cutoffs import Owed

CUTOFF: Final = "cutoff"
LIFTING: Final = ("restore", "superseded")


def is_untold(notices: Iterable[tuple[Any, ...]], bucket_id: int, user_id: bytes, call: Owed) -> bool:
    """`notices`: those that wait for the disk, `(kind, depends_ns, bucket_id, user_id, seq)`."""
    for kind, _, bucket, user, seq in notices:
        if user != user_id or bucket != bucket_id:
            continue
        if kind in LIFTING or (kind == CUTOFF and (call.kind != CUTOFF or seq <= call.seq)):
            return True
    return False
