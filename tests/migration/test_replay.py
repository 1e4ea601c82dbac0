"""Rows of Tarantool's logs that are written seldom, in files that are made here; and by Tarantool, if installed."""

from __future__ import annotations

import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import pytest
from crc32c import crc32c

from billing.migration.mapping import Mapping
from billing.migration.sources import Account, Item, NotTaken, from_tarantool
from billing.migration.tarantool_log import LogError
from billing.migration.tarantool_spaces import SPACE_OF_INDEXES, SPACE_OF_SPACES, SPACE_OF_TRUNCATIONS

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tarantool"
COINS = 10**9
BALANCE, OTHER = 512, 513
INSERT, REPLACE, UPDATE, DELETE, UPSERT, NOP, CONFIRM, ROLLBACK = 2, 3, 4, 5, 9, 12, 40, 41
FORMAT = [{"name": "username"}, {"name": "coins"}]

Entry = tuple[int, dict[int, Any] | None]  # request type, body


def insert(space: int, *fields: Any) -> Entry:
    return INSERT, {0x10: space, 0x21: list(fields)}


def update(space: int, key: Any, *operations: Any) -> Entry:
    return UPDATE, {0x10: space, 0x15: 1, 0x20: [key], 0x21: list(operations)}


def space(number: int, name: str, engine: str = "memtx", **flags: Any) -> list[Entry]:
    return [
        insert(SPACE_OF_SPACES, number, 1, name, engine, 0, flags, FORMAT),
        insert(SPACE_OF_INDEXES, number, 0, "p", "tree", {}, [[0, "string"]]),
    ]


SPACES = [*space(BALANCE, "balance"), *space(OTHER, "other")]


def file(kind: str, entries: list[Entry], first_lsn: int = 1, behind: int = 0, instance: str = "one") -> bytes:
    """A file of one block, in the numbering of replica 1."""
    rows = b""
    for lsn, (request, body) in enumerate(entries, start=first_lsn):
        rows += msgpack.packb({0x00: request, 0x02: 0 if kind == "SNAP" else 1, 0x03: lsn})
        rows += b"" if body is None else msgpack.packb(body)
    head: bytes = msgpack.packb(len(rows)) + b"\x00" + msgpack.packb(crc32c(rows, 0xFFFFFFFF) ^ 0xFFFFFFFF)
    padding = 15 - len(head)
    head += bytes([0xA0 + padding - 1]) + bytes(padding - 1) if padding else b""
    clock = f"{{1: {behind}}}" if behind else "{}"
    text = f"{kind}\n0.13\nVersion: 2.6.0\nInstance: {instance}\nVClock: {clock}\n\n"
    return text.encode() + b"\xd5\xba\x0b\xab" + head + rows + b"\xd5\x10\xad\xed"


def items_of(*files: bytes, name: str = "balance") -> list[Item]:
    numbered = [(f"file {number}", data) for number, data in enumerate(files, start=1)]
    return list(from_tarantool(numbered, Mapping(space=name)))


def balances(*files: bytes) -> dict[str, Decimal]:
    return {item.user_id: Decimal(item.balance_nanos) / COINS for item in items_of(*files) if isinstance(item, Account)}


def test_rows_without_a_body_hide_no_row_behind_them() -> None:
    rows = [
        *SPACES,
        insert(BALANCE, "u", 100),
        (NOP, None),
        update(BALANCE, "u", ["+", 2, 50]),
        (NOP, None),
        insert(BALANCE, "v", 7),
    ]
    assert balances(file("XLOG", rows)) == {"u": 150, "v": 7}


def test_a_space_that_was_emptied_is_empty() -> None:
    log = [(UPSERT, {0x10: SPACE_OF_TRUNCATIONS, 0x21: [BALANCE, 1], 0x28: [["+", 1, 1]]}), insert(BALANCE, "v", 7)]
    snapshot = file("SNAP", [*SPACES, insert(BALANCE, "u", 100)])
    assert balances(snapshot, file("XLOG", log)) == {"v": 7}
    emptied_once = file("SNAP", [*SPACES, insert(SPACE_OF_TRUNCATIONS, BALANCE, 1), insert(BALANCE, "u", 100)])
    assert balances(emptied_once) == {"u": 100}


def test_the_newest_of_several_snapshots_is_the_state() -> None:
    older = file("SNAP", [*SPACES, insert(BALANCE, "gone", 100), insert(BALANCE, "u", 100)])
    newer = file("SNAP", [*SPACES, insert(BALANCE, "u", 60)], behind=2)
    logs = file("XLOG", [(DELETE, {0x10: BALANCE, 0x20: ["gone"]}), update(BALANCE, "u", ["-", 2, 40])])
    assert balances(older, newer, logs) == balances(older, logs) == {"u": 60}
    assert balances(newer, file("XLOG", [update(BALANCE, "u", ["-", 2, 5])], 3, 2)) == {"u": 55}


def test_a_missing_log_or_the_end_of_a_snapshot_is_refused() -> None:
    snapshot = file("SNAP", [*SPACES, insert(BALANCE, "u", 100)], behind=4)
    with pytest.raises(LogError, match=r"file 2 begins behind row 6, and what was read before it ends with row 4: "):
        items_of(snapshot, file("XLOG", [update(BALANCE, "u", ["-", 2, 5])], 7, 6))
    with pytest.raises(LogError, match="file 1 has no end: it is part of a snapshot only"):
        items_of(snapshot[:-4])


def test_files_of_two_instances_are_refused() -> None:
    snapshot = file("SNAP", [*SPACES, insert(BALANCE, "u", 100)])
    with pytest.raises(LogError, match=r"file 2 and file 1 were written by two instances of Tarantool \(two and one\)"):
        items_of(snapshot, file("XLOG", [insert(BALANCE, "v", 1)], instance="two"))


def test_an_update_that_is_not_known_concerns_only_its_tuple() -> None:
    odd = [[":", 2, 1, 1, "zz"], ["=", "coins.paid", 5], ["+", 2, "text"], ["+", 9, 1]]
    for operation in odd:
        rows = [
            *SPACES,
            insert(OTHER, "x", "abc"),
            update(OTHER, "x", operation),
            insert(BALANCE, "u", 100),
            insert(BALANCE, "v", 1),
            update(BALANCE, "v", operation),
            insert(BALANCE, "w", 1),
            update(BALANCE, "w", operation),
            (REPLACE, {0x10: BALANCE, 0x21: ["w", 3]}),
        ]
        items = items_of(file("XLOG", rows))
        assert {item.user_id: item.balance_nanos for item in items if isinstance(item, Account)} == {
            "u": 100 * COINS,
            "w": 3 * COINS,
        }
        (refused,) = [item for item in items if isinstance(item, NotTaken)]
        assert (refused.location, refused.reason[:38]) == ("balance[v]", "an update of the tuple cannot be repla")


def test_what_a_synchronous_space_rolled_back_is_no_money() -> None:
    rows = [
        *space(BALANCE, "balance", is_sync=True),
        insert(BALANCE, "u", 100),  # row 3
        (CONFIRM, {0x02: 1, 0x03: 3}),
        update(BALANCE, "u", ["+", 2, 5]),  # row 5
        insert(BALANCE, "v", 7),  # row 6
        (ROLLBACK, {0x02: 1, 0x03: 5}),
        update(BALANCE, "u", ["+", 2, 1]),
        (CONFIRM, {0x02: 1, 0x03: 8}),
    ]
    assert balances(file("XLOG", rows)) == {"u": 101}


def test_what_is_unreadable_stays_so_over_a_rollback_and_another_key() -> None:
    unknown = [":", 2, 1, 0, "x"]  # a splice
    rows = [
        *space(BALANCE, "balance", is_sync=True),
        insert(BALANCE, "u", 100),
        update(BALANCE, "u", unknown),  # row 4
        insert(BALANCE, "v", 7),  # row 5
        (CONFIRM, {0x02: 1, 0x03: 5}),
        (REPLACE, {0x10: BALANCE, 0x21: ["u", 1]}),  # row 7
        update(BALANCE, "v", unknown),
        (ROLLBACK, {0x02: 1, 0x03: 7}),
    ]
    assert balances(file("XLOG", rows)) == {"v": 7}
    rows = [*SPACES, insert(BALANCE, "u", 100), update(BALANCE, "u", unknown)]
    other_key = REPLACE, {0x10: SPACE_OF_INDEXES, 0x21: [BALANCE, 0, "p", "tree", {}, [[0, "string"], [1, "unsigned"]]]}
    assert balances(file("XLOG", [*rows, other_key])) == {}


def test_decimals_are_exact_and_a_space_without_its_tuples_in_the_snapshot_is_refused() -> None:
    def decimal(scale: int, digits: str) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb(scale) + bytes.fromhex(digits))

    rows = [
        *SPACES,
        insert(BALANCE, "u", decimal(9, "1000000000000000001c")),
        update(BALANCE, "u", ["+", 2, 1], ["-", 2, decimal(1, "5c")]),
        insert(BALANCE, "v", decimal(-1, "2c")),
        insert(BALANCE, "w", 5),
        update(BALANCE, "w", ["+", 2, decimal(0, "3d")]),
    ]
    assert balances(file("XLOG", rows)) == {"u": Decimal("1000000000.500000001"), "v": 20, "w": 2}
    with pytest.raises(ValueError, match="space balance cannot be imported: its engine is vinyl"):
        items_of(file("SNAP", space(BALANCE, "balance", "vinyl")))


def test_a_space_that_was_renamed_is_found_by_its_name() -> None:
    rows = [*space(BALANCE, "money"), insert(BALANCE, "u", 3), update(SPACE_OF_SPACES, BALANCE, ["=", 3, "balance"])]
    assert balances(file("XLOG", rows)) == {"u": 3}


@pytest.mark.skipif(shutil.which("tarantool") is None, reason="the Debian package tarantool is not installed")
def test_what_tarantool_has_after_unusual_rows_is_read(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    command = ["tarantool", str(FIXTURES / "unusual.lua")]
    told = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120, text=True).stdout
    files = [path.read_bytes() for kind in ("snap", "xlog") for path in sorted((tmp_path / "d").glob(f"*.{kind}"))]
    for name, lines in (("balance", told.splitlines()[:3]), ("synced", told.splitlines()[3:])):
        expected = dict(line.split("\t") for line in lines)
        accounts = [item for item in items_of(*files, name=name) if isinstance(item, Account)]
        assert {item.user_id: Decimal(item.balance_nanos) / COINS for item in accounts} == {
            user: Decimal(coins) for user, coins in expected.items()
        }
