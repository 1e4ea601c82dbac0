"""Reads calls written as in Lua, for people who are used to Tarantool's console. Pure.

    debit('user_03', 200)               is read as    debit user_03 200
    increase_balance('user_03', 500)                  top_up user_03 500
    decrease_balance('user_03', 200)                  debit user_03 200, answered by a text: остаток средств: 550

Arguments are texts in quotes and numbers. The last two functions answer as the door for Tarantool's connectors does
(`billing.api.iproto.procedures`). Nothing is evaluated: `read` returns None for a line that is no such call.
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
    """The name of the called function, and the line of the console that makes the same call."""

    name: str
    line: str


def read(line: str) -> LuaCall | None:
    """The call in a line; None if the line is no call in Lua's form."""
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
