"""The arguments of calls: user ids, and money that is never a bare number.

An amount is a decimal text of coins (`"12.5"`), a `Decimal`, or `nanos=12500000000`; for anything else the call raises
TypeError before it sends anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

DIGITS: Final = 9  # of coins behind the point: nanos

UserId = str | int
Amount = str | Decimal
ThresholdGiven = Mapping[str, str | Decimal | int]  # one of `amount` (coins), `amount_nanos` and `runway_ns`


def money(name: str, coins: object, nanos: int | None, exact: str = "nanos") -> str | int:
    """Converts an amount to its form on the wire. `exact`: the caller's name for the argument `nanos`. Raises TypeError
    for a bare number, and unless exactly one of `coins` and `nanos` is given.
    """
    if (coins is None) == (nanos is None):
        raise TypeError(f'expected either {name}, as "12.5" or a Decimal, or {exact}')
    if coins is None:
        if type(nanos) is not int:
            raise TypeError(f"{exact} must be an int, not {type(nanos).__name__}")
        return nanos
    if isinstance(coins, Decimal):
        return _text_of(coins)
    if not isinstance(coins, str):
        text = f"{name} must be a text of coins or a Decimal, not {type(coins).__name__}"
        raise TypeError(text + _meant(coins, exact))
    return coins


def _text_of(coins: Decimal) -> str:
    """Returns every digit, without zeros beyond the nanos, which a product of decimals ends with."""
    integer, point, fraction = format(coins, "f").partition(".")
    return integer + point + fraction[:DIGITS] + fraction[DIGITS:].rstrip("0")


def rehearsed(params: Sequence[Any], place: tuple[int, str] | None) -> list[Any]:
    """Converts the params of a call that `dry_run` is about to their form on the wire. `place`: where they have money,
    and its name; thresholds among them are as for `set_thresholds`. Raises TypeError for a bare number.
    """
    sent = list(params)
    if place is not None and place[0] < len(sent):
        index, name = place
        given = sent[index]
        if name == "thresholds" and isinstance(given, Sequence):
            sent[index] = thresholds_of(given)
        elif isinstance(given, Decimal):
            sent[index] = _text_of(given)
        elif isinstance(given, int | float):
            text = f"{name} must be a text of coins or a Decimal, not {type(given).__name__}"
            raise TypeError(text + _meant(given, ""))
    return sent


def _meant(number: object, exact: str) -> str:
    """Returns how to write what a bare number may have meant: so many coins, or so many nanos, where `exact` names the
    argument that takes these.
    """
    if isinstance(number, bool) or not isinstance(number, int | float):
        return ""
    coins = format(Decimal(str(number)), "f")
    if "n" in coins.lower():  # NaN or Infinity
        return ""
    nanos = f", or give {number} as {exact} for so many nanos" if isinstance(number, int) and exact else ""
    return f': write "{coins}" for so many coins{nanos}'


def thresholds_of(thresholds: Sequence[ThresholdGiven]) -> list[dict[str, Any]]:
    """Converts thresholds to their form on the wire; what a threshold has beside its amount goes with it, and is the
    daemon's to refuse. Raises TypeError as `money` does.
    """
    return [_threshold_of(each) for each in thresholds]


def _threshold_of(given: ThresholdGiven) -> dict[str, Any]:
    rest: dict[str, Any] = dict(given)
    if "amount" not in rest and "amount_nanos" not in rest:
        return rest
    coins, nanos = rest.pop("amount", None), rest.pop("amount_nanos", None)
    return {"amount": money("amount", coins, nanos, "amount_nanos"), **rest}
