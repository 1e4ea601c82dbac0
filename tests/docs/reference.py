"""The pages that are made of tables: docs/methods.md and docs/configuration.md.

`python -m tests.docs.reference` writes both; `make docs` does so before it builds the site, and a test holds the files
to what the tables say. The methods come from the table that every door is made of (`billing.api.methods`), their paths
over HTTP from `billing.api.http.routes`, the keys from `billing.config.schema`. What a refusal means stands here, a
sentence each: the daemon's own messages say what was wrong with one call, not what the name means.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from billing.api.http.routes import ROUTES
from billing.api.methods import COMMAND, COMMON_ERRORS, LOCAL, METHODS, OPERATION, QUERY, Method
from billing.api.methods import Field as Parameter
from billing.api.shapes import Field, Shape
from billing.api.values import listed
from billing.config.schema import Config, CutoffClass, declared, keys_of, sections, value_text
from billing.ledger.errors import KINDS
from billing.ledger.money import INT64_MAX

REPOSITORY: Final = Path(__file__).parents[2]

TITLES: Final = {
    COMMAND: "Changes of an account",
    QUERY: "Questions about an account",
    OPERATION: "The operator's side",
    LOCAL: "The door itself",
}

UNITS: Final = {
    "nanos": "nanos",
    "nanos_per_hour": "nanos an hour",
    "nanos_per_second": "nanos a second, rounded down",
    "instant": "instant, ns",
    "span": "span, ns",
    "flag": "true or false",
    "rates": "map from resource to nanos an hour",
    "any": "see the text",
}

MEANINGS: Final = {
    "PROTOCOL_ERROR": "The stream cannot be followed; the connection ends behind this answer.",
    "FRAME_TOO_LARGE": "A frame is larger than a request may be.",
    "UNKNOWN_METHOD": "There is no such procedure; `methods` lists them.",
    "INVALID_PARAMS": "Too many or too few parameters, an unknown option, or a value of the wrong type or range.",
    "INVALID_USER_ID": "A user id is a text of 1 to 128 bytes of UTF-8, or a whole number from 0.",
    "INVALID_AMOUNT": "The amount is no whole number of nanos or decimal text of coins, is not allowed to be 0 or "
    "negative here, or is beyond 2⁶³ − 1 nanos.",
    "INVALID_RATE": "The rate is no amount, is negative, or would become negative.",
    "UNKNOWN_ACCOUNT": "The user has no account; a `top_up` opens one.",
    "INSUFFICIENT_FUNDS": "The amount exceeds what is available; `shortfall_nanos` says by how much.",
    "INSUFFICIENT_RUNWAY": "The money would last for less than `min_runway_ns`; nothing was changed.",
    "STALE_RATE": "A newer `rate_seq` of this line was reported before.",
    "REQUEST_ID_CONFLICT": "The same `request_id` came before with other parameters or another procedure.",
    "UNKNOWN_HOLD": "There is no such hold, or it is over.",
    "LIMIT_EXCEEDED": "A balance, limit, hold or rate would leave its bound, or there would be too many of them.",
    "ACCOUNT_NOT_CLOSABLE": "A rate, a debt, a hold or an owed cutoff stands against closing.",
    "UNKNOWN_CUTOFF": "Nothing is owed to the cutoff URL for this account.",
    "UNKNOWN_CURSOR": "The cursor is of another daemon, or entries behind it were taken back or deleted; begin again.",
    "UNAUTHENTICATED": "The caller has not signed in, or the token is not known.",
    "FORBIDDEN": "The caller's roles do not include the one that the procedure asks for.",
    "UNAVAILABLE": "The account's shard cannot answer now; `applied` says whether the change may have happened.",
    "BUCKET_MOVING": "The account's bucket is just being moved to another shard.",
    "WRONG_BUCKET": "The worker that was asked does not own the account's bucket any more; ask for `route` again.",
    "TOO_MANY_CONNECTIONS": "The worker, or the caller's address, holds as many connections as are allowed.",
    "BUSY": "The worker has too much under way, or the connection asks too often; nothing was changed.",
    "UNKNOWN_BUCKET": "There is no bucket of this number.",
    "UNKNOWN_SHARD": "There is no shard of this number.",
    "BUCKET_PINNED": "The bucket is pinned; `unpin_bucket` lets it go.",
    "MOVE_REFUSED": "The bucket is there already, moves, or the shard is down or being drained.",
    "BACKUP_REFUSED": "A shard is down, or another backup is being taken; the message says which.",
    "INTERNAL": "A bug of the daemon; its log has the trace.",
}

METHODS_INTRODUCTION: Final = """# Every method

Made from the table that all doors are made of; a test holds this page to it. `billing methods NAME` prints the same
of the daemon that answers, and the procedure `methods` gives it to programs.

Over **MessagePack-RPC** and **Tarantool's protocol** the parameters are an array in this order; behind them one map
may follow with the options. Over **HTTP** what the path names stands in the path, all else in the JSON body or,
with GET, in the query; `Idempotency-Key` is the option `request_id`. Who may call a method is its **role**; `admin`
may call everything.

Beside the refusals that a method names, any method may be refused with {common}.
"""

REPLIES_INTRODUCTION: Final = """## Replies

A reply is a map with these fields at least; a later version may add some. Over HTTP every field of nanos has a
sibling in coins, a decimal text (`balance` beside `balance_nanos`), and times stay integers of nanoseconds.
"""

ERRORS_INTRODUCTION: Final = """## Refusals

Names and codes are stable; nobody has to read a message. *Again* says whether the same call may succeed later as it
is. Every refusal says `applied`: `"no"`, or `"unknown"` where a change may have happened. A repeat with the same
`request_id` is safe in both cases.

| name | code | again | meaning |
| --- | --- | --- | --- |
"""

CONFIGURATION_INTRODUCTION: Final = """# Every configuration key

Made from the schema that the daemon reads its configuration by; a test holds this page to it. `billing config
default` prints the same as a file to begin with. `BILLING_SECTION__KEY` in the environment overrides a key
(`BILLING_SHARDS__WORKERS=4`). Unknown keys, wrong types and impossible combinations are all reported at once,
before anything starts, with exit code 78. An empty text switches off what a key names; relative paths are relative
to the folder of the file.
"""


def methods_page() -> str:
    """docs/methods.md."""
    common = ", ".join(f"`{name}`" for name in COMMON_ERRORS)
    parts = [METHODS_INTRODUCTION.format(common=common)]
    for kind, title in TITLES.items():
        parts.append(f"## {title}\n")
        parts += [_method(row) for row in METHODS.values() if row.kind == kind]
    parts += [REPLIES_INTRODUCTION, *_shapes()]
    parts.append(ERRORS_INTRODUCTION + "".join(_refusals()))
    return "\n".join(parts)


def _refusals() -> Iterator[str]:
    for name, kind in KINDS.items():
        yield f"| `{name}` | {kind.code} | {'yes' if kind.retry else 'no'} | {MEANINGS[name]} |\n"


def _method(row: Method) -> str:
    lines = [f"### `{row.name}`", "", f"{_sentence(row.doc)} Role: `{row.role}`.{_routes_of(row)}", ""]
    fields = [_parameter(field, "") for field in row.required]
    fields += [_parameter(field, "option") for field in row.options]
    if fields:
        lines += ["| parameter | takes | |", "| --- | --- | --- |", *fields, ""]
    lines += _reply(row)
    own_errors = [name for name in row.errors if name not in COMMON_ERRORS]
    if own_errors:
        lines += ["Refusals of its own: " + ", ".join(f"`{name}`" for name in own_errors) + ".", ""]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _routes_of(row: Method) -> str:
    routes = [f"`{route.verb} {route.path}`" for route in ROUTES if route.method is row]
    return f" HTTP: {' and '.join(routes)}." if routes else ""


def _parameter(field: Parameter, role: str) -> str:
    description = field.describe()
    bounds = ", ".join(
        f"{key} {value}" for key, value in description.items() if key in ("min", "max") and value not in (0, INT64_MAX)
    )
    return f"| `{field.name}` | {_cell(str(description['type']))}{f' ({bounds})' if bounds else ''} | {role} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _reply(row: Method) -> list[str]:
    reply = row.reply
    if reply.shape is None:
        reply_type = {"text": "a text", "integer": "a whole number"}.get(reply.kind, "a value of its own")
        return [f"Answers {reply_type}.", ""]
    link = _linked(reply.shape)
    cursor, field = reply.cursor, reply.cursor_field
    page = f"; the next page is asked for with `{cursor}`, the last row's `{field}`" if reply.cursor else ""
    return [f"Answers {f'an array of {link}, a row each' if reply.many else link}{page}.", ""]


def _linked(shape: Shape) -> str:
    return f"[{shape.name}](#{shape.name.lower()})"


def _shapes() -> Iterator[str]:
    """Every shape that a reply has or holds, once, in order of first use."""
    shapes_left = [row.reply.shape for row in METHODS.values() if row.reply.shape is not None]
    names_seen = set()
    while shapes_left:
        shape = shapes_left.pop(0)
        if shape.name in names_seen:
            continue
        names_seen.add(shape.name)
        shapes_left += [field.shape for field in shape.fields if field.shape is not None]
        rows = [_field(field) for field in shape.fields]
        yield "\n".join([f"### {shape.name}", "", "| field | | |", "| --- | --- | --- |", *rows, ""])


def _field(field: Field) -> str:
    kind = listed([f'`"{choice}"`' for choice in field.choices]) or UNITS.get(field.kind, field.kind)
    if field.shape is not None:
        kind = _linked(field.shape)
    if field.many:
        kind = f"array of {kind}"
    flags = [text for flag, text in ((field.nullable, "may be nil"), (field.optional, "where it applies")) if flag]
    return f"| `{field.name}` | {kind} | {'; '.join([*filter(None, [_cell(field.doc)]), *flags])} |"


def configuration_page() -> str:
    """docs/configuration.md."""
    lines, last, standard = [CONFIGURATION_INTRODUCTION], "", Config()
    for name, declaration in declared():
        section, key = name.split(".")
        if section != last:
            lines += [
                f"\n## `[{section}]`\n",
                str(sections()[section].__doc__),
                "",
                "| key | default | takes | meaning |",
            ]
            lines.append("| --- | --- | --- | --- |")
            last = section
        value = f"`{value_text(standard, section, key)}`"
        lines.append(f"| `{name}` | {value} | {_cell(declaration.expected())} | {_cell(declaration.meaning)} |")
    lines += ["\n## `[cutoff.class.NAME]`\n", str(CutoffClass.__doc__), "", "| key | default | takes | meaning |"]
    lines.append("| --- | --- | --- | --- |")
    for key, declaration in keys_of(CutoffClass).items():
        value = "`0.0`" if key == "grace_s" else "as in `[cutoff]`"
        lines.append(f"| `{key}` | {value} | {_cell(declaration.expected())} | {_cell(declaration.meaning)} |")
    return "\n".join(lines) + "\n"


PAGES: Final = {"docs/methods.md": methods_page, "docs/configuration.md": configuration_page}


def main() -> None:
    """Writes the pages."""
    for name in PAGES:
        (REPOSITORY / name).write_text(text_of(name))
        print(name, file=sys.stderr)


def text_of(name: str) -> str:
    """A page as `main` writes it."""
    return re.sub(r"\n{3,}", "\n\n", PAGES[name]()).rstrip("\n") + "\n"


if __name__ == "__main__":
    main()
