"""The names of notices without the instants in them, for tests that know entries by their numbers."""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"(^|:)(\d+)-\d+(:[^:]+)$")


def numbered(name: str) -> str:
    """`7:account-debited` for `7-1700000012000000000:account-debited`, also behind a user; that of a refused debit as
    it is.
    """
    return _NAME.sub(r"\1\2\3", name)
