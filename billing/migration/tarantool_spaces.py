"""Replays the rows of Tarantool's logs to the tuples of their spaces. Pure.

A snapshot's rows insert; a log's rows insert, replace, update, upsert and delete. Spaces and primary keys are read from
the system spaces `_space` (280) and `_index` (288), which every snapshot contains. A log alone, without the snapshot
that it follows, therefore defines only the spaces that were created within it, and rows of other spaces are counted as
unknown.

Rows of a log that the snapshot already includes, by the clock of its header, are skipped. Operations of updates: `=`
`+` `-` `&` `|` `^` `!` `#`; field numbers count from the index base in the row, names are those of the space's format.
"""

from __future__ import annotations

from typing import Any, Final

from billing.migration.tarantool_log import Log, LogError, Row

INSERT: Final = 2
REPLACE: Final = 3
UPDATE: Final = 4
DELETE: Final = 5
UPSERT: Final = 9

SPACE_ID: Final = 0x10
INDEX_BASE: Final = 0x15
KEY: Final = 0x20
TUPLE: Final = 0x21
OPERATIONS: Final = 0x28

SPACE_OF_SPACES: Final = 280
SPACE_OF_INDEXES: Final = 288

Tuple = list[Any]


class Space:
    """The tuples of one space by primary key."""

    def __init__(self, name: str, fields: list[str]) -> None:
        self.name = name
        self.fields = fields
        self.key_parts: tuple[int, ...] = (0,)
        self.tuples: dict[Any, Tuple] = {}

    def key_of(self, row: Tuple) -> Any:
        """Returns the primary key of a tuple, hashable."""
        return tuple(_hashable(row[part]) for part in self.key_parts)

    def field(self, wanted: int | str, base: int) -> int:
        """Returns the index of a field in a tuple. `wanted`: a name, or a number counted from `base`. Raises
        LogError.
        """
        if isinstance(wanted, str):
            if wanted not in self.fields:
                raise LogError(f"space {self.name} has no field {wanted!r}")
            return self.fields.index(wanted)
        return wanted - base if wanted >= 0 else wanted


class Spaces:
    """All spaces; `apply` takes rows in the order of the files, the snapshot first."""

    def __init__(self) -> None:
        self.by_id: dict[int, Space] = {}
        self.unknown_rows = 0
        self.clock: dict[int, int] = {}  # replica -> the newest row of it that was applied

    def named(self, name: str) -> Space | None:
        """Returns the space of this name; None where there is none."""
        return next((space for space in self.by_id.values() if space.name == name), None)

    def replay(self, log: Log) -> None:
        """Applies all rows of a file. Raises LogError."""
        if log.kind == "SNAP":
            for row in log.rows():
                self.apply(row)
            self.clock.update(log.clock)
            return
        for row in log.rows():
            if row.lsn > self.clock.get(row.replica_id, 0):
                self.clock[row.replica_id] = row.lsn
                self.apply(row)

    def apply(self, row: Row) -> None:
        """Applies one row."""
        space_id = row.body.get(SPACE_ID)
        if space_id == SPACE_OF_SPACES:
            self._define_space(row)
        elif space_id == SPACE_OF_INDEXES:
            self._define_index(row)
        elif isinstance(space_id, int) and space_id > SPACE_OF_INDEXES + 200:
            space = self.by_id.get(space_id)
            if space is None:
                self.unknown_rows += 1
            else:
                _apply(space, row)

    def _define_space(self, row: Row) -> None:
        defined = row.body.get(TUPLE)
        if row.kind in (INSERT, REPLACE) and defined:
            fields = [part["name"] for part in (defined[6] if len(defined) > 6 else []) if "name" in part]
            space = self.by_id.get(defined[0])
            if space is None:
                self.by_id[defined[0]] = Space(defined[2], fields)
            else:
                space.name, space.fields = defined[2], fields
        elif row.kind == DELETE:
            self.by_id.pop(row.body[KEY][0], None)
        elif row.kind == UPDATE and (space := self.by_id.get(row.body[KEY][0])) is not None:
            for operation in row.body[TUPLE]:
                if operation[1] in (6 + row.body.get(INDEX_BASE, 0), "format"):
                    space.fields = [part["name"] for part in operation[2] if "name" in part]

    def _define_index(self, row: Row) -> None:
        defined = row.body.get(TUPLE)
        if row.kind not in (INSERT, REPLACE) or not defined or defined[1] != 0:
            return
        space = self.by_id.get(defined[0])
        if space is not None:
            parts = defined[5]
            space.key_parts = tuple(part["field"] if isinstance(part, dict) else part[0] for part in parts)


def _apply(space: Space, row: Row) -> None:
    body = row.body
    base = body.get(INDEX_BASE, 0)
    if row.kind in (INSERT, REPLACE):
        space.tuples[space.key_of(body[TUPLE])] = body[TUPLE]
    elif row.kind == DELETE:
        space.tuples.pop(tuple(map(_hashable, body[KEY])), None)
    elif row.kind == UPDATE:
        old_row = space.tuples.get(tuple(map(_hashable, body[KEY])))
        if old_row is not None:
            space.tuples[space.key_of(old_row)] = updated(space, old_row, body[TUPLE], base)
    elif row.kind == UPSERT:
        key = space.key_of(body[TUPLE])
        old_row = space.tuples.get(key)
        space.tuples[key] = body[TUPLE] if old_row is None else updated(space, old_row, body[OPERATIONS], base)


def updated(space: Space, row: Tuple, operations: list[list[Any]], base: int) -> Tuple:
    """Returns a tuple after the operations of an update. Raises LogError for an unknown operation."""
    changed = list(row)
    for sign, field, *arguments in operations:
        at = space.field(field, base)
        argument: Any = arguments[0] if arguments else None
        if sign == "=":
            if at == len(changed):
                changed.append(argument)
            else:
                changed[at] = argument
        elif sign == "+":
            changed[at] += argument
        elif sign == "-":
            changed[at] -= argument
        elif sign == "&":
            changed[at] &= argument
        elif sign == "|":
            changed[at] |= argument
        elif sign == "^":
            changed[at] ^= argument
        elif sign == "!":
            changed.insert(at if at >= 0 else len(changed) + at + 1, argument)
        elif sign == "#":
            del changed[at : at + argument]
        else:
            raise LogError(f"space {space.name}: an update with the operation {sign!r} is not known")
    return changed


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
