"""Converts parameters, as clients of many languages send them, to canonical values.

The decoder returns texts as bytes (str, raw and bin look alike), maps as tuples of pairs, arrays as lists; another door
may pass str and dict. Each function here takes one such value and returns the canonical one, or raises `Refused` with
the name that the contract fixes. The message names the field and its range. It never repeats what the client sent,
except the name of an unknown option where that is a plain word.

Languages that cannot tell an empty map from an empty array (PHP, Lua) may send either for the other. A bool is never a
number. A float is a number only where it is whole and at most 2**53 in size, because JavaScript clients send large
integers as floats.
"""

from collections.abc import Sequence
from typing import Final

from billing.ledger.commands import REQUEST_ID_BYTES_MAX, USER_ID_BYTES_MAX
from billing.ledger.errors import Refused
from billing.ledger.money import FLOAT_WHOLE_MAX, INT64_MAX

Pairs = Sequence[tuple[object, object]]

_OPTION_NAME_SHOWN_MAX: Final = 32


def user_id_of(value: object) -> bytes:
    """Returns a user id as bytes: UTF-8 of 1-128 bytes, or a non-negative integer as its decimal digits. Raises Refused
    `INVALID_USER_ID`.
    """
    if type(value) is str:
        value = value.encode("utf-8", "surrogatepass")
    elif type(value) is int and value >= 0:
        value = b"%d" % value
    elif type(value) is float and value.is_integer() and 0 <= value <= FLOAT_WHOLE_MAX:  # JavaScript above 2**31
        value = b"%d" % int(value)
    if type(value) is not bytes or not 0 < len(value) <= USER_ID_BYTES_MAX or not _is_utf8(value):
        raise Refused(
            "INVALID_USER_ID",
            f"user_id must be UTF-8 text of 1 to {USER_ID_BYTES_MAX} bytes or a non-negative integer",
        )
    return value


def request_id_of(value: object) -> bytes:
    """Returns a request id: any 1-64 bytes. Raises Refused `INVALID_PARAMS`."""
    if type(value) is str:
        value = value.encode("utf-8", "surrogatepass")
    if type(value) is not bytes or not 0 < len(value) <= REQUEST_ID_BYTES_MAX:
        raise invalid(f"request_id must be text or bytes of 1 to {REQUEST_ID_BYTES_MAX} bytes")
    return value


def text_of(value: object, field: str, bytes_min: int, bytes_max: int) -> bytes:
    """Returns UTF-8 text of `bytes_min` to `bytes_max` bytes. Raises Refused `INVALID_PARAMS`."""
    if type(value) is str:
        value = value.encode("utf-8", "surrogatepass")
    if type(value) is not bytes or not bytes_min <= len(value) <= bytes_max or not _is_utf8(value):
        raise invalid(f"{field} must be UTF-8 text of {bytes_min} to {bytes_max} bytes")
    return value


def whole_of(value: object, field: str, low: int, high: int = INT64_MAX) -> int:
    """Returns an integer from `low` to `high`, both included. Raises Refused `INVALID_PARAMS`."""
    if type(value) is float and value.is_integer() and abs(value) <= FLOAT_WHOLE_MAX:
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise invalid(f"{field} must be an integer from {low} to {_shown(high)}")
    return value


def array_of(value: object, field: str, length_max: int) -> list[object]:
    """Returns an array of at most `length_max` values. Raises Refused `INVALID_PARAMS`."""
    if value == () or value == {}:  # languages that cannot tell an empty map from an empty array
        return []
    if type(value) is not list or len(value) > length_max:
        raise invalid(f"{field} must be an array of at most {length_max} values")
    return value


def array_params(params: object, count: int, expected: str) -> list[object]:
    """Returns `params` as an array; nil and an empty map are an empty one. `expected` names the `count` required
    parameters, for the refusal. Raises Refused `INVALID_PARAMS`.
    """
    if params is None or params == () or params == {}:
        return []
    if type(params) is not list:
        raise _arity(count, expected)
    return params


def two_and_options(values: list[object], expected: str) -> tuple[object, object, object]:
    """Returns the two required parameters and the options, None without any. Raises Refused `INVALID_PARAMS`."""
    if len(values) == 2:
        return values[0], values[1], None
    if len(values) != 3:
        raise _arity(2, expected)
    return values[0], values[1], values[2]


def split_params(params: object, count: int, expected: str) -> tuple[list[object], object]:
    """Returns the `count` required parameters and the options, None without any. Raises Refused `INVALID_PARAMS`."""
    values = array_params(params, count, expected)
    if len(values) == count:
        return values, None
    if len(values) != count + 1:
        raise _arity(count, expected)
    return values[:count], values[count]


def _arity(count: int, expected: str) -> Exception:
    takes = f"params must be an array of {expected}" if count else "params must be an empty array"
    return invalid(f"{takes}, and then at most a map of options")


def pairs_of(value: object, field: str = "options") -> Pairs:
    """Returns the pairs of a map, with texts among the keys as bytes and no key twice; nil and an empty array are an
    empty map. Raises Refused `INVALID_PARAMS`.
    """
    if value is None or value == []:
        return ()
    if type(value) is dict:
        value = tuple(
            (key.encode("utf-8", "surrogatepass") if type(key) is str else key, item) for key, item in value.items()
        )
    if type(value) is not tuple:
        raise invalid(f"{field} must be a map")
    if len(value) > 1:
        try:
            twice = len({key for key, _ in value}) < len(value)
        except TypeError:  # a key that is itself an array: no option has such a name
            raise invalid(f"{field} must be a map with texts as keys") from None
        if twice:
            raise invalid(f"{field} must not name anything twice")
    return value


def unknown_option(name: object, option_names: Sequence[str]) -> Refused:
    """Returns the refusal of an option that the method does not have; it names the option if that is a plain word."""
    shown = "an option without a plain name"
    if type(name) is bytes and len(name) <= _OPTION_NAME_SHOWN_MAX and name.replace(b"_", b"a").isalnum():
        shown = name.decode("ascii")
    allowed = f"options are {', '.join(option_names)}" if option_names else "there are no options"
    return invalid(f"unknown option: {shown}; {allowed}")


def invalid(message: str) -> Refused:
    """Returns the refusal `INVALID_PARAMS` with a message that says what was expected."""
    return Refused("INVALID_PARAMS", message)


def _is_utf8(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _shown(number: int) -> str:
    return "2**63-1" if number == INT64_MAX else str(number)
