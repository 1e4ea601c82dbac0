"""Converts a request's path, query, headers and JSON to the params of its method. No sockets.

    POST /v1/accounts/ann/debit?            Idempotency-Key: invoice-4711
    {"amount": "12.5", "mode": "partial"}
        debit  [b"ann", "12.5", ((b"mode", "partial"), (b"request_id", b"invoice-4711"))]

A **field** comes as JSON in the body or, where the method only reads, as text in the query. By its kind in the table:

    amount, rate    "amount": "12.5" (coins), or "amount_nanos": 12500000000; a bare number of coins is refused; 5.0 is
                    the whole number 5, as JSON Schema has it, up to 2**53
    instant         "from_ns": 1764335000000000000, or "from": "2025-11-28T13:03:20.5Z"
    thresholds      [{"amount": "5"}, {"amount_nanos": 5}, {"runway_ns": 60000000000}]
    request_id      the header Idempotency-Key, with or without the quotes of its draft standard
    set             an array; in a query words with commas between them
    params          of `dry_run`: an array as the called method takes, in which no money is a bare number either
    flag            true or false, in a query, too
    all others      as JSON has them, in a query as text

The option that asks for the next page is called `cursor` at this door; its value is `next_cursor` of the page before.

JSON is read strictly: UTF-8, an object, no name twice, no NaN, Infinity or number beyond range, no nesting deeper than
`DEPTH_MAX`. A wrong request is refused with `INVALID_PARAMS`, or with the error name that belongs to the value; the
message names the field.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from billing.api.http.routes import Route
from billing.api.methods import Field, find
from billing.api.params import invalid
from billing.ledger.errors import Refused

Pairs = list[tuple[str, Any]]

_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}")
_INSTANT: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_MONEY_ERROR: Final = {"amount": "INVALID_AMOUNT", "rate": "INVALID_RATE"}
CURSOR: Final = "cursor"


class Entry(NamedTuple):
    """The meaning of a name in a request: a field of the method, and a function that reads its value."""

    field: Field
    read: Callable[[str, Any], Any]  # (name as sent, value as JSON or text) -> value for the method's parser


# -- values ------------------------------------------------------------------------------------------------------------


def _as_is(name: str, value: Any) -> Any:
    return value


def _coins(error: str) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> Any:
        if type(value) is not str:
            raise Refused(error, f'{name} must be a decimal string of coins, as "12.5"; or give {name}_nanos')
        return value

    return read


def _nanos(error: str) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> Any:
        if type(value) is not int and not (type(value) is float and value.is_integer()):
            raise Refused(error, f"{name} must be a whole number")
        return value

    return read


def _whole_text(name: str, value: str) -> int:
    if not _WHOLE.fullmatch(value):
        raise invalid(f"{name} must be a whole number")
    return int(value)


def _flag_text(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise invalid(f"{name} must be true or false")
    return value == "true"


def _words_text(name: str, value: str) -> list[str]:
    return value.split(",") if value else []


def _instant(name: str, value: Any) -> int:
    """Converts an instant of RFC 3339 to nanoseconds since the epoch, exact to the nanosecond."""
    match = _INSTANT.fullmatch(value) if type(value) is str else None
    if match is None:
        raise invalid(f"{name} must be an instant, as 2025-11-28T13:03:20.5Z; or give {name}_ns")
    day, time, fraction, sign, hours, minutes = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{time}").replace(tzinfo=UTC)
        if sign:
            away = timedelta(hours=int(hours), minutes=int(minutes))
            moment = moment - away if sign == "+" else moment + away
    except (ValueError, OverflowError):
        raise invalid(f"{name} must be an instant that the calendar has") from None
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))


def _thresholds(name: str, value: Any) -> Any:
    if type(value) is not list:
        raise invalid(f"{name} must be an array")
    return [_threshold(each) for each in value]


def _threshold(value: Any) -> dict[str, Any]:
    if type(value) is not dict or len(value) != 1:
        raise invalid("a threshold must be a map of one of amount, amount_nanos and runway_ns")
    ((name, bound),) = value.items()
    if name == "amount":
        return {"amount": _coins("INVALID_AMOUNT")(name, bound)}
    if name == "amount_nanos":
        return {"amount": _nanos("INVALID_AMOUNT")(name, bound)}
    return {name: bound}


def rehearsed(method: object, params: object) -> object:
    """Returns the params of the call that `dry_run` is about, with thresholds as its own parser takes them. Raises
    Refused where money is a bare number.
    """
    row = find(method)
    if row is None or type(params) is not list:
        return params
    values = list(params)
    for index, (field, value) in enumerate(zip(row.required, params, strict=False)):
        if field.type.kind in _MONEY_ERROR and type(value) in (int, float):
            message = f'{field.name} must be a decimal string of coins, as "12.5"'
            raise Refused(_MONEY_ERROR[field.type.kind], message)
        if field.type.kind == "thresholds":
            values[index] = _thresholds(field.name, value)
    return values


def cursor_of(value: object) -> str:
    """Returns the opaque cursor behind a row. `value`: the user id or the number by which its method is paged."""
    text = f"n{value}" if type(value) is int else f"t{value}"
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def _cursor(kind: str) -> Callable[[str, Any], Any]:
    """Reads the cursors of a method that is paged by a value of this kind; refuses those of another kind of method."""

    def read(name: str, value: Any) -> Any:
        try:
            text = base64.b64decode(value.encode() + b"=" * (-len(value) % 4), b"-_", validate=True).decode()
            if kind != "integer" and text[:1] == "t":
                return text[1:]
            if kind == "integer" and text[:1] == "n" and _WHOLE.fullmatch(text[1:]):
                return int(text[1:])
        except (ValueError, binascii.Error):
            pass
        raise invalid(f"{name} must be what next_cursor of the page before says")

    return read


_IN_QUERY: Final[dict[str, Callable[[str, Any], Any]]] = {
    "integer": _whole_text,
    "span": _whole_text,
    "instant": _whole_text,
    "flag": _flag_text,
    "set": _words_text,
}


def entries_of(route: Route) -> dict[str, Entry]:
    """Returns all names that a request for this route may have in its body or query."""
    entries: dict[str, Entry] = {}
    for field in (*route.in_body, *route.method.options):
        name, kind = field.name, field.type.kind
        if name == "request_id":
            continue
        if name == route.method.reply.cursor:
            entries[CURSOR] = Entry(field, _cursor(kind))
        elif kind in _MONEY_ERROR:
            entries[name] = Entry(field, _coins(_MONEY_ERROR[kind]))
            entries[f"{name}_nanos"] = Entry(field, _nanos(_MONEY_ERROR[kind]))
        elif kind == "thresholds":
            entries[name] = Entry(field, _thresholds)
        else:
            entries[name] = Entry(field, _as_is if route.has_body else _IN_QUERY.get(kind, _as_is))
            if kind == "instant":
                entries[name.removesuffix("_ns")] = Entry(field, _instant)
    return entries


# -- JSON and queries --------------------------------------------------------------------------------------------------


def _object(pairs: Pairs) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise invalid(f"the name {_shown(twice)} stands twice in one object")
    return members


def _no_constant(name: str) -> Any:
    raise invalid(f"{name} is no number of JSON")


def _number(text: str) -> float:
    """Returns a number with a point or an exponent; NaN, which no field takes, where a float would round it to a whole
    number.
    """
    number = float(text)
    if not number.is_integer():
        return number
    try:
        return number if Decimal(text) == Decimal(number) else math.nan
    except InvalidOperation:  # an exponent beyond those of Decimal
        return math.nan


# Beyond every request, and below what any Python's parser takes: that was some 1,000 before 3.12, 40,000 since 3.14.
DEPTH_MAX: Final = 64
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_BESIDE_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")

_decode: Final = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_no_constant).decode


def nests_deeper(body: bytes, levels: int) -> bool:
    """Returns whether more than so many arrays and objects of a JSON text stand within each other. Of other bytes it
    may say either, and says that they do where more than twice as many would be open at once.
    """
    outside_texts = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside_texts.translate(_ONE_KIND, _BESIDE_BRACKETS)
    for _ in range(levels):
        inner = brackets
        brackets = inner.replace(b"[]", b"")  # the innermost level
        if len(brackets) == len(inner):
            return len(brackets) > levels
    return bool(brackets)


def json_of(body: bytes) -> dict[str, Any]:
    """Returns the JSON object in a body; an empty body is an empty object. Raises Refused `INVALID_PARAMS`."""
    if not body:
        return {}
    if body.count(b"[") + body.count(b"{") > DEPTH_MAX and nests_deeper(body, DEPTH_MAX):
        raise invalid("the body nests too deep")
    try:
        document = _decode(body.decode())
    except UnicodeDecodeError:
        raise invalid("the body must be UTF-8") from None
    except json.JSONDecodeError as error:
        raise invalid(f"the body is no JSON: {error.msg} at byte {error.pos}") from None
    except ValueError:  # an integer of more digits than Python converts
        raise invalid("the body has a number that nothing here can be") from None
    if type(document) is not dict:
        raise invalid("the body must be a JSON object")
    return document


def query_of(query: str) -> dict[str, str]:
    """Returns names and values of a query. Raises Refused `INVALID_PARAMS`."""
    fields: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        if not pair:
            continue
        name, _, value = (_unquoted(part) for part in pair.partition("="))
        if name in fields:
            raise invalid(f"{_shown(name)} stands twice in the query")
        fields[name] = value
    return fields


def _unquoted(part: str) -> str:
    try:
        return unquote_to_bytes(part.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise invalid("the query must be UTF-8") from None


def _shown(name: str) -> str:
    return name if _WORD.fullmatch(name) else "that is no plain word"


# -- the whole request -------------------------------------------------------------------------------------------------


class Reader:
    """Reads the requests of one route."""

    __slots__ = ("_entries", "_keyed", "_names", "_required", "_room", "_route")

    def __init__(self, route: Route) -> None:
        self._route = route
        self._entries = entries_of(route)
        self._names = [field.name for field in route.method.required]
        self._room = {name: route.in_path.index(name) for name in route.in_path}
        self._required = {field.name for field in route.in_body}
        self._keyed = route.method.option("request_id") is not None

    def params(self, in_path: list[bytes], query: str, key: str | None, body: bytes) -> list[Any]:
        """Returns the params of the method. `in_path`: the values that `routes.find` found in the path. `key`: the
        header Idempotency-Key. Raises Refused.
        """
        route, entries = self._route, self._entries
        fields: dict[str, Any] = query_of(query) if query else {}
        if route.has_body:
            if fields:
                raise invalid(f"{route.method.name} takes its fields as JSON, not in the query")
            fields = json_of(body)
        values: dict[str, Any] = {}
        options: list[tuple[bytes, Any]] = []
        for name, value in fields.items():
            entry = entries.get(name)
            if entry is None:
                raise self._unknown(name)
            field_name = entry.field.name
            if field_name in values:
                raise invalid(f"{name} says again what another field says")
            read = values[field_name] = None if value is None else entry.read(name, value)
            if field_name not in self._required:
                options.append((field_name.encode(), read))
        if key is not None:
            if self._keyed:
                options.append((b"request_id", request_id_of(key)))
            elif route.has_body:
                raise invalid(f"{route.method.name} takes no Idempotency-Key")
        params = [
            in_path[self._room[name]] if name in self._room else self._required_value(values, name)
            for name in self._names
        ]
        for index, field in enumerate(route.method.required):
            if field.name in self._room and field.type.kind == "integer":
                params[index] = _whole_text(field.name, params[index].decode("utf-8", "replace"))
        if route.method.name == "dry_run":
            params[1] = rehearsed(*params)
        return [*params, tuple(options)] if options else params

    def _required_value(self, values: dict[str, Any], name: str) -> Any:
        if name not in values:
            forms = [form for form, entry in self._entries.items() if entry.field.name == name]
            raise invalid(f"{' or '.join(forms)} is missing")
        return values[name]

    def _unknown(self, name: str) -> Refused:
        if name == "request_id" and self._keyed:
            return invalid("request_id comes as the header Idempotency-Key")
        allowed = f"fields are {', '.join(self._entries)}" if self._entries else "there are no fields"
        return invalid(f"unknown field: {_shown(name)}; {allowed}")


def request_id_of(header: str) -> bytes:
    """Returns the request id in the header Idempotency-Key, without the quotes of a structured field where it has
    them.
    """
    if len(header) >= 2 and header[0] == header[-1] == '"':
        header = header[1:-1]
    return header.encode("utf-8", "surrogateescape")
