"""Whether what was answered is what the table says of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from billing.api.shapes import Field, Reply, Shape

_TYPES: dict[str, type | tuple[type, ...]] = {
    "text": (str, bytes),
    "integer": int,
    "flag": bool,
    "nanos": int,
    "nanos_per_hour": int,
    "nanos_per_second": int,
    "instant": int,
    "span": int,
    "enum": str,
    "rates": dict,
    "instants": dict,
    "map": dict,
    "any": object,
}


def faults(reply: Reply, result: Any) -> list[str]:
    """Everything in which a result is not what `reply` says."""
    if not reply.many:
        return list(_value("reply", reply.kind, reply.shape, result))
    if type(result) is not list:
        return [f"reply is {type(result).__name__}, no array"]
    return [fault for row in result for fault in _value("row", reply.kind, reply.shape, row)]


def _value(where: str, kind: str, shape: Shape | None, value: Any) -> Iterator[str]:
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind not in ("flag", "any")):
        yield f"{where} is {value!r}, no {kind}"
    elif shape is not None:
        yield from _map(where, shape, value)


def _map(where: str, shape: Shape, value: Any) -> Iterator[str]:
    for field in shape.fields:
        yield from _field(f"{where}.{field.name}", field, value)
    for name in value.keys() - {field.name for field in shape.fields}:
        yield f"{where}.{name} is not in the shape {shape.name}"


def _field(where: str, field: Field, value: dict[str, Any]) -> Iterator[str]:
    if field.name not in value:
        if not field.optional:
            yield f"{where} is missing"
        return
    field_value = value[field.name]
    if field_value is None:
        if not field.nullable and field.kind != "any":
            yield f"{where} is nil"
        return
    if field.many and type(field_value) is not list:
        yield f"{where} is no array"
        return
    for item in field_value if field.many else [field_value]:
        yield from _value(where, field.kind, field.shape, item)
        if field.choices and item not in field.choices:
            yield f"{where} is {item!r}, none of its choices"
