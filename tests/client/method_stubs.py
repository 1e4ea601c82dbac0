"""The client's methods, made of the rows of the table.

`text` is `billing/client/methods.py`: a coroutine for each row, with arguments and results as types, and what the
client has to know of procedures besides: which change nothing, and which are about one account. `blocking_text` is
`billing/client/blocking_methods.py`, the same methods waiting for their answers. `tests.client.stubs` writes both.

A field is an argument under its name, an amount or a rate is two: the coins, and `nanos`; behind these all are given by
name. What Python keeps for itself has another name.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Final

from billing.api.methods import COMMAND, METHODS, QUERY, Field, Method
from billing.api.values import Enum, WordSet
from tests.conftest import REPOSITORY

FILE: Final = REPOSITORY / "billing" / "client" / "methods.py"
BLOCKING_FILE: Final = REPOSITORY / "billing" / "client" / "blocking_methods.py"
MONEY: Final = ("amount", "rate")
NAMES: Final = {"with": "show", "class": "class_name"}  # words of Python's own
DOC_WIDTH: Final = 105
ROWS: Final = [row for name, row in METHODS.items() if name != "hello"]  # a connection signs in by itself

TYPES: Final = {
    "user_id": "UserId",
    "text": "str",
    "key": "str | bytes",
    "integer": "int",
    "instant": "int",
    "span": "int",
    "flag": "bool",
    "thresholds": "Sequence[ThresholdGiven]",
    "array": "Sequence[Any]",
}
SCALARS: Final = {"text": "str", "integer": "int"}  # replies that are no map

HEAD: Final = '''"""One method for each procedure: made of the table of methods by `python -m tests.client.stubs`.

What an argument may be stands in `billing.client.arguments`. `call` takes any procedure by its name, with money as it
is on the wire.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Literal

from billing.client.arguments import Amount, ThresholdGiven, UserId, money, rehearsed, thresholds_of
'''

CLASS: Final = '''class Methods(ABC):
    """Every procedure, over `call`."""

    @abstractmethod
    async def call(self, method: str, *params: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """The result of any procedure; options that are None are not sent. Raises BillingError."""
'''

BLOCKING_HEAD: Final = '''"""The methods of `billing.client.methods`, each of which waits for its answer.

Made of the table of methods by `python -m tests.client.stubs`.
"""

from __future__ import annotations

from abc import ABC

from billing.client.blocking import Blocking, blocking
from billing.client.methods import Methods


class BlockingMethods(Blocking, ABC):
    """Every procedure; each returns when its answer is there."""

'''


def name_of(field: Field) -> str:
    """A field's name as an argument."""
    return NAMES.get(field.name, field.name)


def _type_of(field: Field) -> str:
    kind = field.type
    if isinstance(kind, Enum | WordSet):
        literal = f"Literal[{', '.join(repr(choice) for choice in kind.choices)}]"
        return f"Sequence[{literal}]" if isinstance(kind, WordSet) else literal
    return TYPES[kind.kind]


def _parameters(row: Method) -> list[str]:
    by_place, by_name = ["self"], []
    for field in row.required:
        if field.type.kind in MONEY:
            by_place.append(f"{name_of(field)}: Amount | None = None")
            by_name.append("nanos: int | None = None")
        else:
            (by_name if by_name else by_place).append(f"{name_of(field)}: {_type_of(field)}")
    by_name += [f"{name_of(field)}: {_type_of(field)} | None = None" for field in row.options]
    return [*by_place, *(["*", *by_name] if by_name else [])]


def _sent(field: Field) -> str:
    """A required field as the call is given it."""
    name = name_of(field)
    if field.type.kind in MONEY:
        return f'money("{name}", {name}, nanos)'
    sent = {"thresholds": f"thresholds_of({name})", "array": f"rehearsed({name}, MONEY_AT.get(method))"}
    return sent.get(field.type.kind, name)


def _call(row: Method) -> tuple[list[str], str]:
    """The statements before the call, and the call."""
    options, renamed = [], []
    for field in row.options:
        name = name_of(field)
        value = f"None if {name} is None else list({name})" if isinstance(field.type, WordSet) else name
        if name == field.name:
            options.append(f"{name}={value}")
        else:
            renamed.append(f'"{field.name}": {value}')
    before = [f"renamed: dict[str, Any] = {{{', '.join(renamed)}}}"] if renamed else []
    arguments = [repr(row.name), *map(_sent, row.required), *options, *(["**renamed"] if renamed else [])]
    return before, f"await self.call({', '.join(arguments)})"


def _method(row: Method) -> str:
    reply, (before, call) = row.reply, _call(row)
    if reply.shape is not None:
        name = reply.shape.name
        result_type = f"list[{name}]" if reply.many else name
        body = [f"return [{name}(row) for row in {call}]" if reply.many else f"return {name}({call})"]
    elif reply.kind in SCALARS:
        result_type = SCALARS[reply.kind]
        body = [f"result: {result_type} = {call}", "return result"]
    else:
        result_type, body = "Any", [f"return {call}"]
    doc = f"{row.doc[:1].upper()}{row.doc[1:]}."
    if len(doc) > DOC_WIDTH:
        doc = "\n".join(textwrap.wrap(doc, DOC_WIDTH, subsequent_indent="        ")) + "\n        "
    lines = [f'"""{doc}"""', *before, *body]
    head = f"    async def {row.name}({', '.join(_parameters(row))}) -> {result_type}:"
    return "\n".join([head, *(f"        {line}" for line in lines)]) + "\n"


def _formatted(source: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FILE), "-"]
    return subprocess.run(command, cwd=REPOSITORY, input=source, capture_output=True, text=True, check=True).stdout


def _names(name: str, comment: str, names: list[str]) -> str:
    return f"# {comment}\n{name}: Final = frozenset({{{', '.join(map(repr, names))}}})\n"


def _money_at() -> str:
    places = {
        row.name: (index, field.name)
        for row in METHODS.values()
        for index, field in enumerate(row.required)
        if field.type.kind in (*MONEY, "thresholds")
    }
    return f"# Which parameter of a change is money, and its name.\nMONEY_AT: Final = {places!r}\n"


def text() -> str:
    """`billing/client/methods.py`."""
    classes = sorted({row.reply.shape.name for row in ROWS if row.reply.shape is not None}, key=str.casefold)
    imported = "from billing.client.results import (\n" + "".join(f"    {name},\n" for name in classes) + ")\n"
    about = [
        row.name
        for row in METHODS.values()
        if row.kind in (COMMAND, QUERY) and row.required and row.required[0].name == "user_id"
    ]
    reads = [row.name for row in METHODS.values() if not row.changes]
    sets_of_names = [
        _names("ABOUT_ACCOUNT", "What begins with a user_id, for the user's owner.", about),
        _names("ONLY_READS", "What changes nothing, and may be asked again.", reads),
        _money_at(),
    ]
    return _formatted(
        HEAD + imported + "\n" + "\n".join(sets_of_names) + "\n\n" + "\n".join([CLASS, *map(_method, ROWS)])
    )


def blocking_text() -> str:
    """`billing/client/blocking_methods.py`."""
    return _formatted(BLOCKING_HEAD + "".join(f"    {row.name} = blocking(Methods.{row.name})\n" for row in ROWS))
