"""What a call takes: user ids, and money that is never a bare number.

An amount is a decimal text of coins (`"12.5"`), a `Decimal`, or `nanos=12500000000`; anything else is a TypeError
before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

UserId = str | int
Amount = str | Decimal
ThresholdGiven = Mapping[str, str | Decimal | int]  # one of `amount` (coins), `amount_nanos` and `runway_ns`


def money(name: str, coins: object, nanos: int | None) -> str | int:
    """An amount as it goes over the wire. Raises TypeError for a bare number, and where there is none or two."""
    if (coins is None) == (nanos is None):
        raise TypeError(f'expected either {name}, as "12.5" or a Decimal, or nanos')
    if coins is None:
        if type(nanos) is not int:
            raise TypeError(f"nanos must be an int, not {type(nanos).__name__}")
        return nanos
    if isinstance(coins, Decimal):
        return format(coins, "f")
    if not isinstance(coins, str):
        raise TypeError(f'{name} must be a text of coins, as "12.5", or a Decimal; or give nanos={coins!r}')
    return coins


def thresholds_of(given: Sequence[ThresholdGiven]) -> list[dict[str, Any]]:
    """Thresholds as they go over the wire. Raises TypeError as `money`."""
    return [
        {"amount": money("amount", each.get("amount"), each.get("amount_nanos"))}  # type: ignore[arg-type]
        if "amount" in each or "amount_nanos" in each
        else dict(each)
        for each in given
    ]
