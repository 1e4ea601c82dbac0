"""Calls as Lua writes them: the same line of the console, or left alone."""

from __future__ import annotations

import pytest

from billing.cli.console.lua_call import LuaCall, read


@pytest.mark.parametrize(
    ("line", "name", "arguments"),
    [
        ("decrease_balance('user_03', 200)", "decrease_balance", "debit user_03 200"),
        ('increase_balance( "user 03" , 12.5 );', "increase_balance", "top_up 'user 03' 12.5"),
        ("ping()", "ping", "ping"),
        ("adjust('u', -5, 'it''s wrong')", None, None),
        ("adjust('u', -5, \"it's wrong\")", "adjust", "adjust u -5 'it'\"'\"'s wrong'"),
        ("debit('user_03', )", None, None),
        ("debit('user_03' 5)", None, None),
        ("debit('user_03', 1 + 1)", None, None),
        ("debit('user_03', os.exit())", None, None),
        ("debit user_03 5", None, None),
        ("s:select{}", None, None),
    ],
)
def test_a_call_is_read_as_words_and_nothing_is_evaluated(line: str, name: str | None, arguments: str | None) -> None:
    assert read(line) == (None if name is None or arguments is None else LuaCall(name, arguments))
