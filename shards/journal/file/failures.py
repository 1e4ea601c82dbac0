"""Which error of the journal a failed call of the disk is: the disk's fault, or a lack of the machine's that passes."""

from __future__ import annotations

import errno

from shards.exits import OF_THE_MOMENT
from shards.journal import Starved, Unknown

FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})  # an operator has to mend these; the disk is sound


def failure_of(doing: str, error: Exception) -> tuple[type[Unknown], str]:
    """The kind and the text of the journal's error. `doing`: what the call was for ("syncing")."""
    if isinstance(error, OSError) and error.errno in OF_THE_MOMENT:
        return Starved, f"no descriptors or memory were left for {doing}: {error}"
    return Unknown, f"the disk failed while {doing}: {error}"
