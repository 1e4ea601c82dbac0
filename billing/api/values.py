"""The types of parameters and options, each defined once for machines, for people and for parsers.

Each field of the table of methods has a `Type`, which has

    kind         its machine name, one of the words below; clients, command line and documents treat fields by it
    description  the values that it takes, for people
    bounds       what else a machine has to know: `min`, `max`, `bytes_max`, `choices`, …
    parse        returns the canonical form of a value that any door decoded, or raises `Refused` with the name that
                 the contract fixes

    kind        as a client sends it                                      canonical
    user_id     text of 1-128 bytes, or a non-negative integer            bytes
    amount      nanos, or a decimal string of coins                       int, nanos
    rate        the same per second, minute or hour (see `per`)           as sent: it depends on another field
    integer     a whole number                                            int
    span        nanoseconds of time                                       int
    instant     nanoseconds since the epoch                               int
    text        UTF-8                                                     bytes
    key         any bytes                                                 bytes
    enum        one of a few words                                        the value that the word stands for
    flag        true or false                                             0 or 1
    set         an array of some of a few words                           tuple of str, in the order of the choices
    thresholds  an array of maps of either `amount` or `runway_ns`        [(kind, value)]
    array       any array, whose values are not checked                   list

An option that the client sends as nil has its default; `parse` is not called for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Protocol

import msgspec

from billing.api.params import array_of, invalid, pairs_of, request_id_of, text_of, user_id_of, whole_of
from billing.ledger.commands import BY_AMOUNT, BY_RUNWAY, THRESHOLDS_MAX
from billing.ledger.money import INT64_MAX, parse_amount, parse_limit, parse_signed_amount

POSITIVE: Final = "positive"
ZERO_TOO: Final = "zero_too"
SIGNED: Final = "signed"

_AMOUNTS: Final[dict[str, tuple[str, Callable[[object], int]]]] = {
    POSITIVE: ("integer of nanos above 0, or decimal string of coins", parse_amount),
    ZERO_TOO: ("integer of nanos, or decimal string of coins; 0 allowed", parse_limit),
    SIGNED: ("signed integer of nanos, or decimal string of coins", parse_signed_amount),
}


class Type(Protocol):
    """See the module."""

    kind: ClassVar[str]

    @property
    def description(self) -> str:
        """The values that the type takes, for people."""

    @property
    def bounds(self) -> dict[str, object]:
        """What else a machine has to know."""

    def parse(self, value: object, name: str) -> Any:
        """The canonical value of the field `name`. Raises Refused."""


class Plain(msgspec.Struct, frozen=True):
    """A type without bounds, unless a subclass has some."""

    @property
    def bounds(self) -> dict[str, object]:
        return {}


class UserId(Plain, frozen=True):
    """The user that a call is about. With `empty`, a cursor: an empty text means the start."""

    empty: bool = False
    kind: ClassVar[str] = "user_id"

    @property
    def description(self) -> str:
        return "user_id" if self.empty else "text of 1-128 bytes, or integer"

    def parse(self, value: object, name: str) -> bytes:
        return b"" if self.empty and value in (b"", "") else user_id_of(value)


class _Money(Plain, frozen=True):
    """The common part of amounts and rates. `sign`: POSITIVE, ZERO_TOO, or SIGNED, which excludes zero."""

    sign: str = POSITIVE

    @property
    def description(self) -> str:
        return _AMOUNTS[self.sign][0]

    @property
    def bounds(self) -> dict[str, object]:
        return {"sign": self.sign}


class Amount(_Money, frozen=True):
    """Money."""

    kind: ClassVar[str] = "amount"

    def parse(self, value: object, name: str) -> int:
        return _AMOUNTS[self.sign][1](value)


class Rate(_Money, frozen=True):
    """Money per second, minute or hour. The row's `build` parses it, because its value depends on `per`."""

    sign: str = ZERO_TOO
    kind: ClassVar[str] = "rate"

    def parse(self, value: object, name: str) -> object:
        return value


class Integer(Plain, frozen=True):
    """A whole number from `low` to `high`."""

    low: int = 0
    high: int = INT64_MAX
    suffix: str = ""  # appended to the description
    kind: ClassVar[str] = "integer"

    @property
    def description(self) -> str:
        return ("integer" if self.high == INT64_MAX else f"integer, {self.low}-{self.high}") + self.suffix

    @property
    def bounds(self) -> dict[str, object]:
        return {"min": self.low, "max": self.high}

    def parse(self, value: object, name: str) -> int:
        return whole_of(value, name, self.low, self.high)


class Span(Integer, frozen=True):
    """Nanoseconds of time, as a multiple of `multiple_of`."""

    multiple_of: int = 1
    kind: ClassVar[str] = "span"

    @property
    def bounds(self) -> dict[str, object]:
        bounds: dict[str, object] = {"min": self.low, "max": self.high}
        return bounds if self.multiple_of == 1 else bounds | {"multiple_of": self.multiple_of}

    def parse(self, value: object, name: str) -> int:
        number = whole_of(value, name, self.low, self.high)
        if number % self.multiple_of:
            raise invalid(f"{name} must be a multiple of {self.multiple_of}")
        return number


class Instant(Integer, frozen=True):
    """Nanoseconds since the epoch."""

    kind: ClassVar[str] = "instant"


class Text(Plain, frozen=True):
    """UTF-8 text of `bytes_min` to `bytes_max` bytes."""

    bytes_max: int
    bytes_min: int = 0
    kind: ClassVar[str] = "text"

    @property
    def description(self) -> str:
        return f"text of {self.bytes_min}-{self.bytes_max} bytes"

    @property
    def bounds(self) -> dict[str, object]:
        return {"bytes_min": self.bytes_min, "bytes_max": self.bytes_max}

    def parse(self, value: object, name: str) -> bytes:
        return text_of(value, name, self.bytes_min, self.bytes_max)


class Key(Plain, frozen=True):
    """The key that makes a call idempotent: any bytes."""

    bytes_max: int
    kind: ClassVar[str] = "key"

    @property
    def description(self) -> str:
        return f"text or bytes, 1-{self.bytes_max} bytes"

    @property
    def bounds(self) -> dict[str, object]:
        return {"bytes_min": 1, "bytes_max": self.bytes_max}

    def parse(self, value: object, name: str) -> bytes:
        return request_id_of(value)


class Enum(Plain, frozen=True):
    """One of a few words, each of which stands for a value."""

    choices: Mapping[str, Any]
    default: str = ""
    raw: bool = False  # `parse` returns the value as sent, and the row's `build` parses it
    kind: ClassVar[str] = "enum"

    @property
    def description(self) -> str:
        return listed([f"{choice} (default)" if choice == self.default else choice for choice in self.choices])

    @property
    def bounds(self) -> dict[str, object]:
        return {"choices": list(self.choices)}

    def parse(self, value: object, name: str) -> Any:
        if self.raw:
            return value
        choice = value.decode("utf-8", "replace") if type(value) is bytes else value
        if type(choice) is not str or choice not in self.choices:
            raise invalid(f"{name} must be {listed(list(self.choices))}")
        return self.choices[choice]


class Flag(Plain, frozen=True):
    """True or false, as 1 or 0."""

    kind: ClassVar[str] = "flag"

    @property
    def description(self) -> str:
        return "true or false"

    def parse(self, value: object, name: str) -> int:
        if type(value) is not bool:
            raise invalid(f"{name} must be true or false")
        return int(value)


class WordSet(Plain, frozen=True):
    """An array of some of a few words."""

    choices: tuple[str, ...]
    kind: ClassVar[str] = "set"

    @property
    def description(self) -> str:
        return f"array of {listed(list(self.choices))}"

    @property
    def bounds(self) -> dict[str, object]:
        return {"choices": list(self.choices)}

    def parse(self, value: object, name: str) -> tuple[str, ...]:
        array = array_of(value, name, len(self.choices))
        names = [choice.decode("utf-8", "replace") if type(choice) is bytes else choice for choice in array]
        if any(type(choice) is not str or choice not in self.choices for choice in names):
            raise invalid(f"{name} must be an array of {listed(list(self.choices))}")
        return tuple(choice for choice in self.choices if choice in names)


class Thresholds(Plain, frozen=True):
    """When to send low-balance notices."""

    kind: ClassVar[str] = "thresholds"

    @property
    def description(self) -> str:
        return "array of maps of either amount or runway_ns"

    @property
    def bounds(self) -> dict[str, object]:
        return {"length_max": THRESHOLDS_MAX}

    def parse(self, value: object, name: str) -> list[tuple[int, int]]:
        return [_threshold_of(each) for each in array_of(value, name, THRESHOLDS_MAX)]


class Array(Plain, frozen=True):
    """An array of any values, which another parser checks."""

    length_max: int
    kind: ClassVar[str] = "array"
    text: str = "array"

    @property
    def description(self) -> str:
        return self.text

    @property
    def bounds(self) -> dict[str, object]:
        return {"length_max": self.length_max}

    def parse(self, value: object, name: str) -> list[object]:
        return array_of(value, name, self.length_max)


def listed(items: list[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _threshold_of(value: object) -> tuple[int, int]:
    pairs = pairs_of(value, "a threshold") if value is not None else ()
    if len(pairs) == 1:
        name, bound = pairs[0]
        if name == b"amount":
            return BY_AMOUNT, parse_limit(bound)
        if name == b"runway_ns":
            return BY_RUNWAY, whole_of(bound, "runway_ns", 0)
    raise invalid("a threshold must be a map of either amount or runway_ns")
