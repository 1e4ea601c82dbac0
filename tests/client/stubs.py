"""What of the client is made of the table of methods, which it cannot read itself: it loads nothing of the daemon.

`python -m tests.client.stubs` writes `billing/client/results.py`: a class for each shape that a method of the client
answers, with the fields as the shape says and, behind them, the money among them as exact coins; and the methods
(`method_stubs`). `make docs` does so, and a test holds the files to the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from keyword import iskeyword
from typing import Final

from billing.api.http.writing import money_name
from billing.api.methods import METHODS
from billing.api.shapes import Field, Shape
from tests.client import method_stubs
from tests.conftest import REPOSITORY

FILE: Final = REPOSITORY / "billing" / "client" / "results.py"
LINE_MAX: Final = 120

HEAD: Final = '''"""What each call answers, as a class: made of the table of methods by `python -m tests.client.stubs`.

What all of them can do stands in `billing.client.result`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar, Literal

from billing.client.result import Result
'''

TYPES: Final = {
    "text": "str",
    "flag": "bool",
    "rates": "dict[str, int]",
    "instants": "dict[str, int]",
    "any": "Any",
}  # the others are numbers


def shapes() -> dict[str, Shape]:
    """All shapes of the client's methods by name, what is within another before it."""
    by_name: dict[str, Shape] = {}
    for row in METHODS.values():
        if row.reply.shape is not None and row.name != "hello":  # a connection signs in by itself
            for shape in _inside_out(row.reply.shape):
                by_name.setdefault(shape.name, shape)
    return by_name


def _inside_out(shape: Shape) -> Iterator[Shape]:
    for field in shape.fields:
        if field.shape is not None:
            yield from _inside_out(field.shape)
    yield shape


def type_of(field: Field) -> str:
    """The annotation of a field."""
    if field.shape is not None:
        name = field.shape.name
    elif field.choices:
        name = f"Literal[{', '.join(map(_quoted, field.choices))}]"
    else:
        name = TYPES.get(field.kind, "int")
    if field.many:
        name = f"list[{name}]"
    return name if field.kind == "any" and not field.many else name + " | None" * field.nullable


def attribute_of(field: Field) -> str:
    """The field's name as an attribute; a word of Python's own has an underscore behind it."""
    return f"{field.name}_" if iskeyword(field.name) else field.name


def _quoted(text: str) -> str:
    return f'"{text}"'


def class_of(shape: Shape) -> str:
    """The source of one class."""
    lines = [f"class {shape.name}(Result):", f'    """{shape.doc}"""', ""]
    nested = {field.name: field.shape.name for field in shape.fields if field.shape is not None}
    if nested:
        items = [f"{_quoted(name)}: {inner}" for name, inner in nested.items()]
        line = f"    _NESTED: ClassVar = {{{', '.join(items)}}}"
        if len(line) > LINE_MAX:
            line = "    _NESTED: ClassVar = {\n" + "".join(f"        {item},\n" for item in items) + "    }"
        lines += [line, ""]
    lines += [f"    {attribute_of(field)}: {type_of(field)}" for field in shape.fields]
    for field in shape.fields:
        coins = money_name(field.name, field.kind)
        if coins:
            lines.append(f"    {coins}: Decimal{' | None' * field.nullable}")
    return "\n".join(lines) + "\n"


def text() -> str:
    """The whole file."""
    return "\n\n".join([HEAD, *map(class_of, shapes().values())])


def main() -> int:
    """Writes the files."""
    FILE.write_text(text())
    method_stubs.FILE.write_text(method_stubs.text())
    method_stubs.BLOCKING_FILE.write_text(method_stubs.blocking_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
