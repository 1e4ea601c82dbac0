"""Describes a method for a person: its parameters, its reply and its errors. Pure: takes a row of `methods`, returns
lines.

top_up user_id, amount, {expires_at_ns, kind, request_id, message}
Adds money; creates the account if it is new. Role: top_up.

Takes:
  user_id  text of 1-128 bytes, or integer
  …
Answers a map:
  state    active or exhausted
  …
Refuses with INVALID_AMOUNT, LIMIT_EXCEEDED, …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from billing.cli.tables import TEXT, WHOLE, Column, draw, fold

INDENT = "  "


def described(row: Mapping[str, Any], width: int | None) -> list[str]:
    """The lines of the description. None is wider than `width`, unless `width` is None."""
    params, options, reply = row["params"], row["options"], row["reply"]
    names = [field["name"] for field in params]
    names += [f"{{{', '.join(field['name'] for field in options)}}}"] if options else []
    doc = row["doc"]
    lines = [
        *_folded(f"{row['name']} {', '.join(names)}".rstrip(), width),
        *_folded(f"{doc[:1].upper()}{doc[1:]}. Role: {row['role']}.", width),
    ]
    for heading, fields in (("Takes", params), ("Options, in a map behind these", options)):
        if fields:
            lines += ["", f"{heading}:", *_fields([(field["name"], field["type"]) for field in fields], width)]
    lines += ["", *_answers(reply, width)]
    return [*lines, "", *_folded(f"Refuses with {', '.join(row['errors'])}.", width)] if row["errors"] else lines


def _answers(reply: Mapping[str, Any], width: int | None) -> list[str]:
    fields = reply.get("fields")
    many = reply.get("many", False)
    if not fields:
        return [f"Answers an array: {reply['kind']}." if many else f"Answers: {reply['kind']}."]
    heading = "Answers an array of maps:" if many else "Answers a map:"
    return [heading, *_fields([(field["name"], _meaning(field)) for field in fields], width)]


def _meaning(field: Mapping[str, Any]) -> str:
    """The type and meaning of a reply's field: `instant, or nil; when it runs out if nothing else happens`."""
    kind = " or ".join(field["choices"]) if field.get("choices") else field["kind"].replace("_", " ")
    kind = f"array: {kind}" if field.get("many") else kind
    may = [text for text, key in (("or nil", "nullable"), ("where it applies", "optional")) if field.get(key)]
    doc = f"; {field['doc']}" if field.get("doc") else ""
    return ", ".join([kind, *may]) + doc


def _fields(rows: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    columns = (
        Column("", WHOLE, [name for name, _ in rows]),
        Column("", TEXT, [meaning for _, meaning in rows]),
    )
    lines = draw(columns, None if width is None else width - len(INDENT)).lines
    return [INDENT + line for line in lines[1:]]


def _folded(text: str, width: int | None) -> list[str]:
    return fold(text, width) if width else [text]
