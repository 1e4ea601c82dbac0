"""A call as Lua writes it, for hands that know Tarantool's console. Pure.

    debit('user_03', 200)               is read as    debit user_03 200
    increase_balance('user_03', 500)                  top_up user_03 500
    decrease_balance('user_03', 200)                  debit user_03 200, answered by a text: остаток средств: 550

Arguments are texts in quotes and numbers. The last two answer as at the door for Tarantool's connectors
(`billing.api.iproto.procedures`). Nothing is evaluated: a line that is no such call is left as it is.
"""

from __future__ import annotations

import re
import shlex
from typing import Final, NamedTuple

INCREASE: Final = "increase_balance"
DECREASE: Final = "decrease_balance"

_CALL = re.compile(r"\s*([a-z_]+)\s*\((.*)\)\s*;?\s*", re.DOTALL)
_ARGUMENT = re.compile(r"""\s*(?:'([^'\\]*)'|"([^"\\]*)"|(-?\d+(?:\.\d+)?))\s*(,|$)""")
_PROCEDURE: Final = {INCREASE: "top_up", DECREASE: "debit"}


class LuaCall(NamedTuple):
    """The function that was called, and the console's line that does the same."""

    name: str
    line: str


def read(line: str) -> LuaCall | None:
    """What a line calls; None where it is not written so."""
    called = _CALL.fullmatch(line)
    if called is None:
        return None
    name, rest = called.groups()
    words = [_PROCEDURE.get(name, name)]
    while rest:
        argument = _ARGUMENT.match(rest)
        if argument is None:
            return None
        words.append(next(text for text in argument.groups()[:3] if text is not None))
        rest = rest[argument.end() :]
        if not rest and argument.group(4):
            return None  # a comma with nothing behind it
    return LuaCall(name, shlex.join(words))
