"""What waits for the disk is not acted on."""

from __future__ import annotations

import pytest

from billing.expirationd.untold import is_untold
from billing.ledger.cutoffs import Owed

CUT = Owed("cutoff", "7:3:5", 3, 5, 0, False)
BACK = Owed("restore", "7:3:5:restore", 3, 5, 0, False)


@pytest.mark.parametrize(
    ("waits", "call", "held"),
    [
        ([], CUT, False),
        ([("cutoff", 1, 2, b"7", 3)], CUT, True),
        ([("cutoff", 1, 2, b"7", 4)], CUT, False),  # a newer one waits: the older goes on
        ([("superseded", 1, 2, b"7", 2)], CUT, True),
        ([("superseded", 1, 2, b"7", 3)], BACK, True),
        ([("restore", 1, 2, b"7", 3)], BACK, True),
        ([("cutoff", 1, 2, b"7", 4)], BACK, True),
        ([("threshold", 1, 2, b"7", 9)], CUT, False),
        ([("cutoff", 1, 2, b"8", 3), ("cutoff", 1, 9, b"7", 3)], CUT, False),  # another's
    ],
)
def test_held_back_while_its_notice_waits(waits, call, held):
    assert is_untold(waits, 2, b"7", call) is held
