"""What is typed at the console, as a call; by the table that `methods` answers, so that the console knows no procedure.

    line   = name {value} {option "=" value}
    name   = that of a procedure, with - or _          top_up, top-up
    value  = word | "quoted text"                      as a shell quotes

A value is read by what the table says of its parameter: money is coins ("12.5"), or nanos with an n behind it ("5n");
a span (`…_ns`) is `90s`, `5m`, `2h`, `1d` or plain nanoseconds; an array is JSON; everything else is what it looks
like. Nothing is computed, and nothing is evaluated: a line that is no call is refused, with what would be one.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

OWN = {
    "help": "help [PROCEDURE]: what there is, or what a procedure takes",
    "watch": "watch USER [SPAN]: an account's balance as it ticks, until ^C or for a span of time",
    "exit": "exit: ends the console, as ^D does",
}
_SPANS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_SPAN = re.compile(r"(\d{1,18})(ns|us|ms|s|m|h|d)?")
_NANOS = re.compile(r"-?\d{1,30}n")
_COINS = re.compile(r"-?\d+(\.\d+)?")
_WORD = re.compile(r"[a-z]+")


class LineError(ValueError):
    """The line is no call; the text says what would be one."""


class Asked(NamedTuple):
    """One call, or one of the console's own words."""

    name: str
    params: list[Any]
    options: dict[str, Any]


class Table:
    """The procedures of a daemon, by name."""

    def __init__(self, described: Iterable[Mapping[str, Any]]) -> None:
        """`described`: what `methods` answered."""
        self.methods = {row["name"]: row for row in described if row["name"] != "hello"}

    def names(self) -> list[str]:
        """All first words."""
        return sorted([*self.methods, *OWN])

    def parse(self, text: str) -> Asked | None:
        """The call that `text` is; None for an empty line. Raises LineError."""
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            raise LineError(f"the quotes do not match: {error}") from None
        if not words:
            return None
        name = words[0].replace("-", "_")
        if name in OWN:
            return Asked(name, words[1:], {})
        method = self.methods.get(name)
        if method is None:
            near = difflib.get_close_matches(name, self.names(), 3, 0.5)
            raise LineError(f"there is no {words[0]}" + (f"; do you mean {' or '.join(near)}?" if near else ": help"))
        required, optional = method["params"], {field["name"]: field for field in method["options"]}
        values = words[1 : 1 + len(required)]
        if len(values) < len(required):
            raise LineError(f"{required[len(values)]['name']} is missing: {self.usage(name)}")
        params = [_value_of(field, value) for field, value in zip(required, values, strict=True)]
        options = {}
        for word in words[1 + len(required) :]:
            key, equals, value = word.partition("=")
            if not equals or key not in optional:
                raise LineError(f"{word!r} is no option: {self.usage(name)}")
            options[key] = _value_of(optional[key], value)
        return Asked(name, params, options)

    def usage(self, name: str) -> str:
        """How a procedure is called, in one line."""
        method = self.methods[name]
        words = [name, *(field["name"].upper() for field in method["params"])]
        words += [f"[{field['name']}=…]" for field in method["options"]]
        return " ".join(words)

    def help(self, name: str) -> str:
        """Everything about a procedure, or one of the console's own words. Raises LineError."""
        name = name.replace("-", "_")
        if name in OWN:
            return OWN[name]
        if name not in self.methods:
            raise LineError(f"there is no {name}")
        method = self.methods[name]
        lines = [self.usage(name), f"    {method['doc']} (role {method['role']})"]
        lines += [f"    {field['name']}: {field['type']}" for field in [*method["params"], *method["options"]]]
        return "\n".join(lines)

    def complete(self, text: str, users: Iterable[str]) -> list[str]:
        """What the last word of `text` may become; `users` are the ids that were typed or seen before."""
        words = text.split(" ")
        last = words[-1]
        if len(words) == 1:
            return [name for name in self.names() if name.startswith(last.replace("-", "_"))]
        name = words[0].replace("-", "_")
        if name == "help":
            return [other for other in self.names() if other.startswith(last)]
        method = self.methods.get(name)
        required = [field["name"] for field in method["params"]] if method is not None else []
        if name == "watch":
            required = ["user_id"]
        place = len(words) - 2
        if place < len(required):
            return sorted(user for user in users if user.startswith(last)) if required[place] == "user_id" else []
        if method is None:
            return []
        key, equals, value = last.partition("=")
        if not equals:
            return [f"{field['name']}=" for field in method["options"] if field["name"].startswith(key)]
        types = [field["type"] for field in method["options"] if field["name"] == key]
        return [f"{key}={choice}" for kind in types for choice in _choices(kind) if choice.startswith(value)]


def _choices(kind: str) -> list[str]:
    """The words of a type that lists them: `strict (default), partial or force`."""
    if any(word in kind for word in ("text", "integer", "array", "coins", "_id")):
        return []
    return [word for word in _WORD.findall(kind) if word not in ("default", "or")]


def _value_of(field: Mapping[str, str], value: str) -> Any:
    """A typed value as it goes over the wire."""
    name, kind = field["name"], field["type"]
    if "coins" in kind:
        if _NANOS.fullmatch(value):
            return int(value[:-1])
        if not _COINS.fullmatch(value):
            raise LineError(f"{name}: expected coins, as 12.5, or nanos, as 5n; got {value!r}")
        return value
    if name.endswith("_ns"):
        return span_of(name, value)
    if kind.startswith("integer") or kind == "entry_id":
        if not re.fullmatch(r"-?\d{1,19}", value):
            raise LineError(f"{name}: expected a whole number, got {value!r}")
        return int(value)
    if kind == "true or false":
        if value not in ("true", "false"):
            raise LineError(f"{name}: expected true or false, got {value!r}")
        return value == "true"
    if kind.startswith("array"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise LineError(f"{name}: expected JSON, as '[{{\"amount\": 5}}]': {error}") from None
    return value


def span_of(name: str, value: str) -> int:
    """`90s`, `5m`, `250ms`, or nanoseconds. Raises LineError."""
    found = _SPAN.fullmatch(value)
    if found is None:
        raise LineError(f"{name}: expected a span of time, as 90s, 5m, 2h or 1d; got {value!r}")
    return int(found[1]) * _SPANS_NS[found[2] or "ns"]
