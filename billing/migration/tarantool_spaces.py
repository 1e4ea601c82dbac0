"""Replays the rows of Tarantool's logs to the tuples of their spaces. Pure.

A snapshot's rows insert; a log's rows insert, replace, update, upsert and delete. Spaces and primary keys are read from
the system spaces `_space` (280) and `_index` (288), which every snapshot contains, and `_truncate` (330) empties a
space. A log alone, without the snapshot that it follows, therefore defines only the spaces that were created within it,
and rows of other spaces are counted as unknown.

A snapshot replaces all that was replayed before it. Rows of a log that the snapshot already includes, by the clock of
its header, are skipped, and a log that begins later than what was replayed ends is refused: a file between them is
missing. What a synchronous space has logged, and a ROLLBACK takes back, is taken back.

Operations of updates: `=` `+` `-` `&` `|` `^` `!` `#`; field numbers count from the index base in the row, names are
those of the space's format. A tuple with an update that is not known here, such as one within a field, is in
`Space.unreadable` until it is replaced.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact
from typing import Any, Final, NamedTuple

from billing.migration.tarantool_log import LSN, REPLICA_ID, Log, LogError, Row

INSERT: Final = 2
REPLACE: Final = 3
UPDATE: Final = 4
DELETE: Final = 5
UPSERT: Final = 9
CONFIRM: Final = 40
ROLLBACK: Final = 41

SPACE_ID: Final = 0x10
INDEX_BASE: Final = 0x15
KEY: Final = 0x20
TUPLE: Final = 0x21
OPERATIONS: Final = 0x28

SPACE_OF_SPACES: Final = 280
SPACE_OF_INDEXES: Final = 288
SPACE_OF_TRUNCATIONS: Final = 330
SYSTEM_SPACES_END: Final = 511

Tuple = list[Any]

_EXACTLY: Final = Context(prec=100, traps=[Inexact])


class Space:
    """The tuples of one space by primary key. `definition`: its tuple in `_space`. `unreadable`: for the keys of tuples
    with an update that could not be replayed, the reason.
    """

    def __init__(self, definition: Tuple) -> None:
        self.definition = definition
        self.key_parts: tuple[int, ...] = (0,)
        self._is_key_within = False
        self.tuples: dict[Any, Tuple] = {}
        self.unreadable: dict[Any, str] = {}

    @property
    def name(self) -> str:
        return str(self.definition[2])

    @property
    def fields(self) -> list[str]:
        """The names of its format; empty where it has none."""
        return [part["name"] for part in self._defined(6, list) if isinstance(part, dict) and "name" in part]

    @property
    def why_not(self) -> str:
        """The reason why its tuples are not known from snapshots and logs; empty where they are."""
        if self._defined(3, str) == "vinyl":
            return "its engine is vinyl, whose tuples are in no snapshot; copy them into a space of memtx first"
        return "its primary key is part of a field" if self._is_key_within else ""

    @property
    def is_synchronous(self) -> bool:
        return bool(self._defined(5, dict).get("is_sync"))

    def _defined(self, at: int, kind: type) -> Any:
        value = self.definition[at] if len(self.definition) > at else None
        return value if isinstance(value, kind) else kind()

    def key_of(self, row: Tuple) -> Any:
        """Returns the primary key of a tuple, hashable."""
        return tuple(_hashable(row[part]) for part in self.key_parts)

    def set_key(self, parts: list[Any]) -> None:
        """Changes what the primary key is: each part is a map, or a list that begins with the field."""
        self._is_key_within = any(isinstance(part, dict) and "path" in part for part in parts)
        fields = tuple(part["field"] if isinstance(part, dict) else part[0] for part in parts)
        if fields != self.key_parts:
            self.key_parts = fields
            self.unreadable = {self.key_of(self.tuples[key]): reason for key, reason in self.unreadable.items()}
            self.tuples = {self.key_of(row): row for row in self.tuples.values()}

    def field(self, wanted: int | str, base: int) -> int:
        """Returns the index of a field in a tuple. `wanted`: a name, or a number counted from `base`. Raises
        LogError.
        """
        if isinstance(wanted, str):
            if wanted not in self.fields:
                raise LogError(f"space {self.name} has no field {wanted!r}")
            return self.fields.index(wanted)
        return wanted - base if wanted >= 0 else wanted

    def put(self, key: Any, row: Tuple | None, reason: str = "") -> None:
        """Sets the tuple of a key, and the reason why it is unreadable, if it is; None removes it."""
        self.tuples.pop(key, None)
        self.unreadable.pop(key, None)
        if row is not None:
            self.tuples[key] = row
        if reason:
            self.unreadable[key] = reason

    def empty(self) -> None:
        """Forgets all tuples."""
        self.tuples = {}
        self.unreadable = {}


class _Undo(NamedTuple):
    """What a row that no CONFIRM has followed yet replaced. `old_row`: None where there was no tuple. `reason`: why
    that was unreadable; empty where it was not.
    """

    replica_id: int
    lsn: int
    space: Space
    key: Any
    old_row: Tuple | None
    reason: str


class Spaces:
    """All spaces; `replay` takes the files in their order."""

    def __init__(self) -> None:
        self.by_id: dict[int, Space] = {}
        self.unknown_rows = 0
        self.clock: dict[int, int] = {}  # replica -> the newest row of it that was applied
        self._unconfirmed: list[_Undo] = []  # empty while no space is synchronous

    def named(self, name: str) -> Space | None:
        """Returns the space of this name; None where there is none."""
        return next((space for space in self.by_id.values() if space.name == name), None)

    def replay(self, log: Log) -> None:
        """Applies all rows of a file. Raises LogError."""
        if log.kind == "SNAP":
            self.by_id, self.unknown_rows, self._unconfirmed = {}, 0, []
            for row in log.rows():
                self.apply(row)
            if not log.is_whole:
                raise LogError(f"{log.name} has no end: it is part of a snapshot only; copy it again")
            self.clock = dict(log.clock)
            return
        for replica_id, lsn in log.clock.items():
            if lsn > (known := self.clock.get(replica_id, 0)):
                raise LogError(
                    f"{log.name} begins behind row {lsn}, and what was read before it ends with row {known}: "
                    "a snapshot or log between them is missing"
                )
        for row in log.rows():
            if row.lsn > self.clock.get(row.replica_id, 0):
                self.clock[row.replica_id] = row.lsn
                self.apply(row)

    def apply(self, row: Row) -> None:
        """Applies one row. Raises LogError."""
        if row.kind in (CONFIRM, ROLLBACK):
            self._decide(row)
            return
        space_id = row.body.get(SPACE_ID)
        try:
            if space_id == SPACE_OF_SPACES:
                self._define_space(row)
            elif space_id == SPACE_OF_INDEXES:
                self._define_index(row)
            elif space_id == SPACE_OF_TRUNCATIONS:
                self._truncate(row)
            elif isinstance(space_id, int) and space_id > SYSTEM_SPACES_END:
                if (space := self.by_id.get(space_id)) is None:
                    self.unknown_rows += 1
                else:
                    self._apply_to(space, row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise LogError(f"row {row.lsn} of space {space_id} cannot be read: {error!r}") from None

    def _define_space(self, row: Row) -> None:
        if row.kind in (INSERT, REPLACE):
            definition = row.body[TUPLE]
            if (space := self.by_id.get(definition[0])) is None:
                self.by_id[definition[0]] = Space(definition)
            else:
                space.definition = definition
        elif row.kind == DELETE:
            self.by_id.pop(row.body[KEY][0], None)
        elif row.kind == UPDATE and (space := self.by_id.get(row.body[KEY][0])) is not None:
            base, places = row.body.get(INDEX_BASE, 0), {"name": 2, "flags": 5, "format": 6}
            for sign, field, *values in row.body[TUPLE]:
                at: int = places.get(field, 0) if isinstance(field, str) else field - base
                if sign == "=" and at in places.values():
                    space.definition = [*space.definition[:at], *values, *space.definition[at + 1 :]]

    def _define_index(self, row: Row) -> None:
        defined = row.body.get(TUPLE)
        if row.kind not in (INSERT, REPLACE) or not defined or defined[1] != 0:
            return
        if (space := self.by_id.get(defined[0])) is not None:
            space.set_key(defined[5])

    def _truncate(self, row: Row) -> None:
        """A snapshot has a row for each space that was ever emptied, before its tuples; a log, one for each time."""
        if row.kind in (INSERT, REPLACE, UPSERT) and (space := self.by_id.get(row.body[TUPLE][0])) is not None:
            space.empty()

    def _apply_to(self, space: Space, row: Row) -> None:
        replaced = _apply(space, row)
        if space.is_synchronous or self._unconfirmed:
            self._unconfirmed.append(_Undo(row.replica_id, row.lsn, space, *replaced))

    def _decide(self, row: Row) -> None:
        """Rows of a synchronous space, and all that waited behind them, are confirmed up to a row, or taken back from
        it on.
        """
        replica_id, lsn = row.body.get(REPLICA_ID, row.replica_id), row.body.get(LSN, 0)
        if row.kind == ROLLBACK:
            for undo in reversed(self._unconfirmed):
                if undo.replica_id == replica_id and undo.lsn >= lsn:
                    undo.space.put(undo.key, undo.old_row, undo.reason)
        self._unconfirmed = [
            undo
            for undo in self._unconfirmed
            if undo.replica_id != replica_id or (undo.lsn < lsn if row.kind == ROLLBACK else undo.lsn > lsn)
        ]


def _apply(space: Space, row: Row) -> tuple[Any, Tuple | None, str]:
    """Returns the key, the tuple that the row found there, and the reason why that was unreadable, if it was."""
    body = row.body
    base = body.get(INDEX_BASE, 0)
    if row.kind in (UPDATE, DELETE):
        key = tuple(map(_hashable, body[KEY]))
    else:
        key = space.key_of(body[TUPLE])
    old_row, reason = space.tuples.get(key), space.unreadable.get(key, "")
    if row.kind == DELETE:
        space.put(key, None)
    elif row.kind in (INSERT, REPLACE) or (row.kind == UPSERT and old_row is None):
        space.put(key, body[TUPLE])
    elif old_row is not None and row.kind in (UPDATE, UPSERT):
        try:
            space.tuples[key] = updated(space, old_row, body[TUPLE if row.kind == UPDATE else OPERATIONS], base)
        except (LogError, IndexError, TypeError, ValueError, ArithmeticError) as error:
            space.unreadable[key] = str(error)
    return key, old_row, reason


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
            changed[at] = _sum(changed[at], argument)
        elif sign == "-":
            changed[at] = _sum(changed[at], -argument)
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


def _sum(number: Any, more: Any) -> Any:
    """Raises TypeError where one of them is no number, ArithmeticError where the sum would be rounded."""
    if isinstance(number, int | Decimal) and isinstance(more, int | Decimal):
        whole = isinstance(number, int) and isinstance(more, int)
        return number + more if whole else _EXACTLY.add(Decimal(number), Decimal(more))
    if isinstance(number, int | float) and isinstance(more, int | float):
        return number + more
    raise TypeError(f"a sum of {number!r} and {more!r}")


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return repr(value) if isinstance(value, dict) else value
