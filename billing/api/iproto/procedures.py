"""Translates the calls of Tarantool connectors to calls of procedures, and results to those of Tarantool. Pure.

A connector calls every procedure of the table by its name, with the params of MessagePack-RPC. It may also call

    increase_balance(user, coins)    a top-up; returns nothing
    decrease_balance(user, coins)    a debit; returns one of three texts, as the older system with these functions did
    vshard.router.callrw(bucket_id, [mode,] name, args, [options])     and callro, callbro, callre, callbre, call

The coins of the first two are whole coins, or a decimal text. The bucket id of the last is ignored, because any worker
passes a call on to the owner of its user.

CALL returns the list of the values that a function returned; CALL_16, of Tarantool 1.6, makes a tuple of each value
that is no tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from billing.api.calling import packed, plain
from billing.api.iproto.protocol import NO_VALUES
from billing.ledger.errors import Refused

Returns = Callable[[object], bytes]  # a reply that is no refusal, or the text in its place -> DATA

INCREASE: Final = b"increase_balance"
DECREASE: Final = b"decrease_balance"
ROUTED: Final = frozenset(
    b"vshard.router." + name for name in (b"call", b"callrw", b"callro", b"callbro", b"callre", b"callbre")
)
_MODES: Final = (b"read", b"write")
_ARRAYS: Final = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
COINS_DIGITS: Final = 9


TRANSLATED: Final = ROUTED | {INCREASE, DECREASE}  # names that no procedure has


class Called(NamedTuple):
    """A call as the door passes it to its session. `refused` returns DATA for a refusal that the called function
    returns as a result, and None for any other refusal.
    """

    name: bytes
    params: object
    returns: Returns
    refused: Callable[[Refused], bytes | None]


def called(name: object, arguments: object, *, in_tuples: bool) -> Called:
    """Translates a CALL or, with `in_tuples`, a CALL_16. Raises Refused."""
    if type(name) is not bytes:
        raise Refused("INVALID_PARAMS", "a function is called by its name")
    if arguments is None:
        arguments = []
    if type(arguments) is not list:
        raise Refused("INVALID_PARAMS", "the arguments of a call are an array")
    if name in ROUTED:
        name, arguments = _routed(arguments)
    if name == INCREASE:
        return Called(b"top_up", _of_coins(arguments), _nothing, _not_told)
    returned = _tuples if in_tuples else _values
    if name == DECREASE:
        return Called(
            b"debit",
            _of_coins(arguments),
            lambda reply: returned(what_is_left(plain(reply))),
            lambda refused: (
                returned(what_is_missing(refused.details)) if refused.name == "INSUFFICIENT_FUNDS" else None
            ),
        )
    return Called(name, arguments, returned, _not_told)


def _routed(arguments: list[Any]) -> tuple[bytes, list[Any]]:
    """Returns name and arguments of the call within a call of vshard's router. Raises Refused."""
    rest = arguments[1:]
    if len(rest) > 1 and (rest[0] in _MODES or type(rest[0]) is tuple) and type(rest[1]) is bytes:
        rest = rest[1:]
    if not arguments or type(arguments[0]) not in (int, float) or not rest or type(rest[0]) is not bytes:
        raise Refused("INVALID_PARAMS", "expected bucket_id, name and args")
    inner = rest[1] if len(rest) > 1 else []
    if inner is None or inner == ():
        inner = []
    if type(inner) is not list:
        raise Refused("INVALID_PARAMS", "expected args as an array")
    return rest[0], inner


def _of_coins(arguments: list[Any]) -> list[Any]:
    """Returns the arguments with the coins as a decimal text: to a procedure, a whole number would be nanos. Raises
    Refused.
    """
    if len(arguments) != 2:
        raise Refused("INVALID_PARAMS", "expected user and coins")
    user, coins = arguments
    if type(coins) is float and coins.is_integer() and abs(coins) <= 2**53:
        coins = int(coins)
    return [user, str(coins).encode() if type(coins) is int else coins]


def _values(reply: object) -> bytes:
    return b"\x91" + packed(reply)


def _tuples(reply: object) -> bytes:
    value = packed(reply)
    return (b"\x91" if value[0] in _ARRAYS else b"\x91\x91") + value


def _nothing(_: object) -> bytes:
    return NO_VALUES


def _not_told(_: Refused) -> bytes | None:
    return None


def what_is_left(account: Mapping[str, Any]) -> str:
    """Returns the text of decrease_balance for a debit that was taken; `account`: the reply to the debit."""
    if account["outcome"] == "exhausted":
        return "средства только что закончились"
    return f"остаток средств: {_coins(account['available_nanos'])}"


def what_is_missing(details: Mapping[str, Any]) -> str:
    """Returns the text of decrease_balance for a refused debit; `details`: those of INSUFFICIENT_FUNDS."""
    available, missing = _coins(details["available_nanos"]), _coins(details["shortfall_nanos"])
    return f"не достаточно средств: {available}, необходимо еще: {missing}, операция не будет совершена."


def _coins(nanos: int) -> str:
    """Returns nanos as a text of coins, with as many decimals as they need."""
    integer, rest = divmod(abs(nanos), 10**COINS_DIGITS)
    decimals = f".{rest:0{COINS_DIGITS}}".rstrip("0") if rest else ""
    return f"{'-' if nanos < 0 else ''}{integer}{decimals}"
