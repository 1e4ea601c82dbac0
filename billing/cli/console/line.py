"""Parses a line typed at the console into a call, by the daemon's reply to `methods`: no method is built into the
console.

    line   = name {value | option}
    name   = of a method or of its command, with - or _             top_up, top-up, account, buckets move
    option = name "=" value | "--" name "=" value | "--" name value      ttl=5m, --ttl 5m
    value  = word | "quoted text"                                   as a shell quotes

A value is parsed by the kind of its parameter in the table: money is coins ("12.5"), or nanos with an n behind ("5n");
a span is `90s`, `5m`, `2h`, `1d` or plain nanoseconds; an array is JSON, in which money is coins in quotes, or a
threshold's `amount_nanos`; an integer, a flag, a date or a text is written as such. Nothing is computed or evaluated: a
line that is no call is refused, and the message shows the right form.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from datetime import tzinfo
from typing import Any, Final, NamedTuple

from billing.cli.options import span_ns
from billing.cli.periods import is_relative, parse_period
from billing.cli.vocabulary import option_of, procedure_of
from billing.cli.vocabulary import words_of as command_words_of

OWN: Final = {
    "help": "help [PROCEDURE]: what there is, or what a procedure takes",
    "watch": "watch USER [SPAN]: an account's balance as it ticks, until ^C or for a span of time",
    "clear": "clear: empties the screen",
    "exit": "exit: ends the console, as ^D does",
}
OWN_ALSO: Final = {"quit": "exit", "?": "help"}

# The `kind` of a method in the table -> the title under which `help` lists the method.
_TITLES: Final = {"command": "Accounts: changes", "query": "Accounts: questions", "operation": "Operation"}
_LAST_TITLE: Final = "The daemon"
_NANOS = re.compile(r"-?\d{1,30}n")
_COINS = re.compile(r"[+-]?\d{1,30}(\.\d{1,9})?")
_LINE_WIDTH_MIN: Final = 40


class LineError(ValueError):
    """The line is no call; the text shows the right form."""


class ConsoleCall(NamedTuple):
    """A call of a method, or one of the console's own commands (`OWN`) with its words."""

    name: str
    params: list[Any]
    options: dict[str, Any]


class Table:
    """The methods of a daemon, by name."""

    def __init__(self, described: Iterable[Mapping[str, Any]], zone: tzinfo | None = None) -> None:
        """`described`: the reply to `methods`. `zone`: the zone of typed dates and times; None: the machine's own."""
        self._zone = zone
        self.methods = {row["name"]: row for row in described if row["name"] != "hello"}

    def names(self) -> list[str]:
        """All words with which a line may begin."""
        also = {command_words_of(name)[0].replace("-", "_") for name in self.methods}
        return sorted({*self.methods, *also, *OWN})

    def parse(self, text: str) -> ConsoleCall | None:
        """Parses a line; None for an empty one. Raises LineError."""
        try:
            words = shlex.split(text, comments=True)
        except ValueError as error:
            raise LineError(f"the quotes do not match: {error}") from None
        if not words:
            return None
        console_word = OWN_ALSO.get(words[0], words[0])
        if console_word in OWN:
            return ConsoleCall(console_word, words[1:], {})
        name, name_words = procedure_of(words, self.methods)
        method = self.methods.get(name)
        if method is None:
            near = difflib.get_close_matches(name, self.names(), 3, 0.5)
            raise LineError(f"there is no {words[0]}" + (f"; do you mean {' or '.join(near)}?" if near else ": help"))
        required, optional = method["params"], {field["name"]: field for field in method["options"]}
        values, options = self._sorted(name, words[name_words:], len(required), optional)
        if len(values) < len(required):
            raise LineError(f"{required[len(values)]['name']} is missing: {self.usage(name)}")
        params = [_value_of(field, value, self._zone) for field, value in zip(required, values, strict=True)]
        if name == "dry_run" and params[0] in self.methods and type(params[1]) is list:
            rehearsed = self.methods[params[0]]["params"]
            for index, (field, value) in enumerate(zip(rehearsed, params[1], strict=False)):
                params[1][index] = _in_json(field, value)
        return ConsoleCall(
            name, params, {key: _value_of(optional[key], value, self._zone) for key, value in options.items()}
        )

    def _sorted(
        self, name: str, words: list[str], required: int, optional: Mapping[str, Any]
    ) -> tuple[list[str], dict[str, str]]:
        """Sorts the words behind the name into values, in order, and options by name. Raises LineError."""
        values: list[str] = []
        options: dict[str, str] = {}
        rest = iter(words)
        for word in rest:
            head, equals, value = word.partition("=")
            key = option_of(head, optional) if word.startswith("--") or (equals and len(values) >= required) else None
            if key is not None:
                if not equals:
                    value = "true" if optional[key]["type"] == "true or false" else next(rest, "")
                options[key] = value
            elif len(values) < required and not word.startswith("--"):
                values.append(word)
            else:
                raise LineError(f"{word!r} is no option: {self.usage(name)}")
        return values, options

    def usage(self, name: str) -> str:
        """The form of a call of a method, in one line."""
        method = self.methods[name]
        parts = [name, *(field["name"].upper() for field in method["params"])]
        parts += [f"[{field['name']}=…]" for field in method["options"]]
        return " ".join(parts)

    def help(self, name: str) -> str:
        """The help of a method, or of one of the console's own commands. Raises LineError."""
        console_word = OWN_ALSO.get(name, name)
        if console_word in OWN:
            return OWN[console_word]
        procedure, _ = procedure_of(name.split(), self.methods)
        if procedure not in self.methods:
            raise LineError(f"there is no {name}")
        method = self.methods[procedure]
        also = " ".join(command_words_of(procedure))
        lines = [self.usage(procedure), f"    {method['doc']} (role {method['role']})"]
        lines += [f"    {field['name']}: {field['type']}" for field in [*method["params"], *method["options"]]]
        if also != procedure.replace("_", "-"):
            lines.append(f"    also: {also}")
        return "\n".join(lines)

    def overview(self, width: int) -> str:
        """Every method in a line or two, under the titles of their kinds. Lines are folded to `width` at spaces."""
        sections: dict[str, list[str]] = {title: [] for title in (*_TITLES.values(), _LAST_TITLE)}
        names = max((len(name) for name in self.methods), default=0)
        for name, method in self.methods.items():
            takes = " ".join(field["name"].upper() for field in method["params"])
            text = f"{takes}: {method['doc']}" if takes else str(method["doc"])
            title = _TITLES.get(str(method.get("kind")), _LAST_TITLE)
            sections[title] += _wrapped(f"  {name:<{names}}  ", text, width)
        lines = []
        for title, section_lines in sections.items():
            if section_lines:
                lines += [title, *section_lines, ""]
        lines.append("The console")
        for text in OWN.values():
            name, _, meaning = text.partition(": ")
            lines += _wrapped(f"  {name:<{names}}  ", meaning, width)
        lines += [
            "",
            *_wrapped("", "help PROCEDURE tells its options; commands' names, as account, are taken, too.", width),
        ]
        return "\n".join(lines)

    def complete(self, text: str, users: Iterable[str]) -> list[str]:
        """The possible completions of the last word of `text`. `users`: user ids of earlier calls."""
        words = text.split(" ")
        last = words[-1]
        if len(words) == 1:
            return [name for name in self.names() if name.startswith(last.replace("-", "_"))]
        if words[0].replace("-", "_") == "help":
            return [other for other in self.names() if other.startswith(last)]
        name, name_words = procedure_of(words[:-1], self.methods)
        method = self.methods.get(name)
        required = [field["name"] for field in method["params"]] if method is not None else []
        if words[0] == "watch":
            required = ["user_id"]
        index = len(words) - 1 - name_words
        if index < len(required):
            return sorted(user for user in users if user.startswith(last)) if required[index] == "user_id" else []
        if method is None:
            return []
        key, equals, value = last.partition("=")
        if not equals:
            return [f"{field['name']}=" for field in method["options"] if field["name"].startswith(key)]
        chosen = [choice for field in method["options"] if field["name"] == key for choice in _choices(field)]
        return [f"{key}={choice}" for choice in chosen if choice.startswith(value)]


def _wrapped(head: str, text: str, width: int) -> list[str]:
    """`text` behind `head`, folded to `width`; further lines are indented to the width of `head`."""
    wide = max(width, _LINE_WIDTH_MIN)
    return textwrap.wrap(
        head + text, wide, subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
    )


def _choices(field: Mapping[str, Any]) -> list[str]:
    """The only words that a field accepts; empty if it accepts others."""
    return ["true", "false"] if field["kind"] == "flag" else list(field.get("choices", ()))


def _value_of(field: Mapping[str, Any], value: str, zone: tzinfo | None) -> Any:
    """Converts a typed value to the value that the client sends. Raises LineError."""
    name, kind = field["name"], field["kind"]
    if kind in ("amount", "rate"):
        if _NANOS.fullmatch(value):
            return int(value[:-1])
        if not _COINS.fullmatch(value):
            raise LineError(f"{name}: expected coins, as 12.5, or nanos, as 5n; got {value!r}")
        return value
    if kind == "span":
        return span_of(name, value)
    if kind == "instant":
        return _instant_of(name, value, zone)
    if kind == "integer":
        if not re.fullmatch(r"-?\d{1,19}", value):
            raise LineError(f"{name}: expected a whole number, got {value!r}")
        return int(value)
    if kind == "flag":
        if value not in ("true", "false"):
            raise LineError(f"{name}: expected true or false, got {value!r}")
        return value == "true"
    if kind in ("thresholds", "array", "set"):
        try:
            parsed = json.loads(value)
        except ValueError as error:
            raise LineError(f'{name}: expected JSON, as \'[{{"amount": "5"}}]\': {error}') from None
        return _in_json(field, parsed)
    return value


def _in_json(field: Mapping[str, Any], value: Any) -> Any:
    """Converts a value that stood in JSON to the value that the client sends. Raises LineError where a bare number
    stands for money: the daemon would take it for nanos, while all that one types here is coins.
    """
    if field["kind"] in ("amount", "rate"):
        _check_coins(field["name"], value)
    elif field["kind"] == "thresholds" and type(value) is list:
        return [_threshold_in_json(each) for each in value]
    return value


def _threshold_in_json(value: Any) -> Any:
    if type(value) is not dict:
        return value
    if value.keys() == {"amount_nanos"} and type(value["amount_nanos"]) is int:
        return {"amount": value["amount_nanos"]}
    _check_coins("amount", value.get("amount"))
    return value


def _check_coins(name: str, value: Any) -> None:
    if type(value) in (int, float):
        raise LineError(f'{name}: expected coins in quotes, as "12.5"; got {value}')


def _instant_of(name: str, value: str, zone: tzinfo | None) -> int:
    """Parses a date, a time or nanoseconds since the epoch. Words that depend on the current time raise LineError."""
    try:
        if value.isascii() and value.isdigit() and len(value) <= len("2026"):
            return int(value)  # nanoseconds, not a year
        if not is_relative(value):
            return parse_period(value, zone, 0).from_ns
    except ValueError:
        pass
    raise LineError(f"{name}: expected a date or an instant, as 2026-11-30 or 2026-11-30T12:00, got {value!r}")


def span_of(name: str, value: str) -> int:
    """Parses `90s`, `5m`, `250ms`, or nanoseconds, to nanoseconds. Raises LineError."""
    try:
        return int(value) if value.isascii() and value.isdigit() else span_ns(value)
    except ValueError:
        raise LineError(f"{name}: expected a span of time, as 90s, 5m, 2h or 1d; got {value!r}") from None
