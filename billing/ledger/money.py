"""Amounts and rates: from what a client sent to exact integers, and back to text.

An amount is an integer of nanos (10**-9 of a coin), or a decimal string of coins with at most 9 digits after the
point. A float is accepted only if it is a whole number of at most 2**53, because JavaScript clients send large integers
as floats; it is a number of nanos, as an integer is. A bool is not accepted. A rate comes as an amount per second,
minute or hour and is kept in nanos per hour, so that prices per hour are exact.

The internal unit is what a rate of one nano per hour spends in one nanosecond: `NANO` of these units are one nano. A
balance is one Python integer of internal units. The ledger never computes money in floating point.
"""

import re
from typing import Final

from billing.ledger.errors import Refused

NANO: Final = 3600 * 10**9  # internal units per nano: ns per hour
COIN_NANOS: Final = 10**9
INT64_MAX: Final = 2**63 - 1
FLOAT_WHOLE_MAX: Final = 2**53  # up to here a float holds each whole number exactly

PER_HOUR: Final[dict[bytes, int]] = {b"second": 3600, b"minute": 60, b"hour": 1}

_DECIMAL = re.compile(rb"([+-]?)([0-9]{1,30})(?:\.([0-9]{1,9}))?")


def parse_amount(value: object) -> int:
    """An amount above zero, in nanos. Raises Refused `INVALID_AMOUNT` for anything else, also above 2**63-1."""
    if type(value) is int and 0 < value <= INT64_MAX:
        return value
    nanos = _nanos(value, "INVALID_AMOUNT", "amount")
    if nanos <= 0:
        raise Refused("INVALID_AMOUNT", "amount must be above zero")
    return nanos


def parse_limit(value: object) -> int:
    """An amount of zero or more, in nanos (a credit limit, a threshold). Raises Refused `INVALID_AMOUNT`."""
    nanos = _nanos(value, "INVALID_AMOUNT", "amount")
    if nanos < 0:
        raise Refused("INVALID_AMOUNT", "amount must not be negative")
    return nanos


def parse_signed_amount(value: object) -> int:
    """An amount of either sign but not zero, in nanos. Raises Refused `INVALID_AMOUNT`."""
    nanos = _nanos(value, "INVALID_AMOUNT", "amount")
    if nanos == 0:
        raise Refused("INVALID_AMOUNT", "amount must not be zero")
    return nanos


def parse_rate(value: object, per: object = b"second") -> int:
    """A rate of zero or more, in nanos per hour; `per` is second, minute or hour.

    Raises Refused `INVALID_RATE` for a value that is not an amount, or is negative, and for another `per`;
    `LIMIT_EXCEEDED` above 2**63-1 nanos per hour.
    """
    factor = _factor(per)
    nanos = _nanos(value, "INVALID_RATE", "rate")
    if nanos < 0:
        raise Refused("INVALID_RATE", "rate must not be negative")
    return _within_limit(nanos * factor)


def parse_delta(value: object, per: object = b"second") -> int:
    """A change of a rate, signed, zero allowed, in nanos per hour. Raises Refused `INVALID_RATE` or `LIMIT_EXCEEDED` as
    `parse_rate` does, but negative values are allowed.
    """
    delta = _within_limit(_nanos(value, "INVALID_RATE", "delta") * _factor(per))
    if delta < -INT64_MAX:
        raise Refused("INVALID_RATE", "delta lies below any rate there can be")
    return delta


def format_coins(nanos: int) -> str:
    """Nanos as a decimal string of coins without needless zeros: `12_500_000_000` is `"12.5"`. `parse_signed_amount`
    parses this form, except zero.
    """
    coins, rest = divmod(abs(nanos), COIN_NANOS)
    text = f"{coins}.{rest:09}".rstrip("0") if rest else str(coins)
    return "-" + text if nanos < 0 else text


def _within_limit(rate: int) -> int:
    if rate > INT64_MAX:
        raise Refused(
            "LIMIT_EXCEEDED", "rate must be at most 2**63-1 nanos per hour", {"limit_nanos_per_hour": INT64_MAX}
        )
    return rate


def _factor(per: object) -> int:
    name = per.encode("utf-8", "replace") if type(per) is str else per
    factor = PER_HOUR.get(name) if type(name) is bytes else None
    if factor is None:
        raise Refused("INVALID_RATE", "per must be second, minute or hour")
    return factor


def _nanos(value: object, error: str, field: str) -> int:
    if type(value) is str:
        value = value.encode("utf-8", "replace")
    if type(value) is int:
        nanos = value
    elif type(value) is bytes:
        match = _DECIMAL.fullmatch(value)
        if match is None:
            raise Refused(
                error,
                f"{field} must be an integer of nanos, or a decimal string of coins, at most 9 digits after the point",
            )
        sign, coins, fraction = match.groups()
        nanos = int(coins) * COIN_NANOS + (int(fraction.ljust(9, b"0")) if fraction else 0)
        nanos = -nanos if sign == b"-" else nanos
    elif type(value) is float:
        if not value.is_integer() or abs(value) > FLOAT_WHOLE_MAX:
            raise Refused(error, f"{field} as a float must be a whole number of at most 2**53")
        nanos = int(value)
    else:
        raise Refused(error, f"{field} must be an integer of nanos or a decimal string of coins")
    if abs(nanos) > INT64_MAX:
        raise Refused(error, f"{field} must be at most 2**63-1 nanos")
    return nanos
