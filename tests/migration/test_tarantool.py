"""Files that Tarantool 2.6 wrote: `tests/fixtures/tarantool`, made by its `make.lua`; and new ones, if installed."""

from __future__ import annotations

import shutil
import subprocess
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from billing.migration.mapping import Mapping, mapping_of
from billing.migration.sources import Account, LeftOut, NotTaken, from_tarantool
from billing.migration.tarantool_log import PART_BYTES, Log, LogError, decompressed

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tarantool"
SNAPSHOT, LOG = (FIXTURES / f"00000000000000000313.{kind}" for kind in ("snap", "xlog"))
COINS = 10**9

# What make.lua leaves: an update by number, one by name, a replace, two upserts, an insert, a delete, a transaction.
EXPECTED = {"user_01": 99, "user_02": 250, "user_03": 750, "user_04": 402, "пользователь": 7, "zero": 0}
EXPECTED |= {f"bulk_{i:04}": i * 1000 if i <= 200 else i for i in range(1, 300)}


def balances(*files: Path) -> dict[str, int]:
    items = list(from_tarantool([(path.name, path.read_bytes()) for path in files], Mapping()))
    return {item.user_id: item.balance_nanos // COINS for item in items if isinstance(item, Account)}


def test_a_snapshot_and_the_log_behind_it_are_the_balances() -> None:
    assert balances(SNAPSHOT, LOG) == EXPECTED


def test_a_log_that_the_snapshot_holds_changes_nothing() -> None:
    assert balances(SNAPSHOT, LOG, LOG) == EXPECTED


def test_a_snapshot_alone_is_the_state_at_its_instant() -> None:
    alone = balances(SNAPSHOT)
    assert (alone["user_01"], alone["user_03"], alone["bulk_0300"]) == (100, 50, 300)
    assert "user_04" not in alone


def test_other_spaces_are_mapped_by_name_or_number() -> None:
    files = [(SNAPSHOT.name, SNAPSHOT.read_bytes())]
    by_number = list(from_tarantool(files, Mapping("billing", "3", "balance_after")))
    assert by_number == [Account("billing[user_01]", "user_01", 100 * COINS, None, ()), LeftOut("balance", 304)]
    with pytest.raises(ValueError, match=r"no space 'money'; those there are: .*balance"):
        list(from_tarantool(files, Mapping("money")))
    with pytest.raises(ValueError, match="no field 'cash'; its fields: username, coins"):
        list(from_tarantool(files, Mapping(coins="cash")))


def test_a_mapping_file_names_spaces_units_and_a_history_that_is_held_against_the_balances() -> None:
    files = [(path.name, path.read_bytes()) for path in (SNAPSHOT, LOG)]
    mapping = mapping_of('[balance]\nunit = "0.01"\n[history]\nspace = "billing"\n', "map.toml")
    items = list(from_tarantool(files, mapping))
    in_hundredths = {user: coins * COINS // 100 for user, coins in EXPECTED.items()}
    assert {item.user_id: item.balance_nanos for item in items if isinstance(item, Account)} == in_hundredths
    reason = "billing left 100 in its newest row of this user, balance has 99; what balance has was taken"
    assert [item for item in items if isinstance(item, NotTaken)] == [NotTaken("billing[user_01]", reason)]
    assert [item for item in items if isinstance(item, LeftOut)] == [LeftOut("billing", 2)]
    alone = list(from_tarantool(files[:1], mapping))
    assert [item for item in alone if isinstance(item, NotTaken)] == [], "in the snapshot both agree"
    with pytest.raises(ValueError, match="there is no space 'payments' for the history"):
        list(from_tarantool(files, mapping._replace(history_space="payments")))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[balance", "map.toml is not TOML"),
        ('[money]\nspace = "m"', "money: expected the tables balance and history"),
        ("balance = 1", "balance: expected the tables balance and history"),
        ('[balance]\nfield = "x"', "balance.field: expected one of space, user, coins, unit"),
        ("[balance]\ncoins = 2", "balance.coins: expected a text"),
        *((f'[balance]\nunit = "{unit}"', "balance.unit: expected a decimal") for unit in ("0", "-1", "NaN", "cent")),
    ],
)
def test_a_mapping_file_that_says_something_else_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        mapping_of(text, "map.toml")


def test_a_log_without_its_end_is_read_as_far_as_it_goes() -> None:
    cut = LOG.read_bytes()[:-4]
    items = list(from_tarantool([("s.snap", SNAPSHOT.read_bytes()), ("l.xlog", cut)], Mapping()))
    assert [item.location for item in items if isinstance(item, NotTaken)] == ["l.xlog"]
    assert {item.user_id: item.balance_nanos // COINS for item in items if isinstance(item, Account)} == EXPECTED


def test_no_flipped_bit_is_taken_for_good() -> None:
    """Each byte of the first blocks: an error, or a block that ends nothing; never other balances."""
    data = SNAPSHOT.read_bytes()
    good = [row for row in Log(data).rows()]
    start = data.index(b"\n\n") + 2
    for at in range(start, start + 400):
        broken = bytearray(data)
        broken[at] ^= 1
        try:
            rows = [row for row in Log(bytes(broken)).rows()]
        except LogError:
            continue
        assert rows == good[: len(rows)], at


@pytest.mark.parametrize("data", [b"", b"SNAP", b"SNAP\n9.9\n\n", b"<html>\n\n", b"\x00" * 100])
def test_another_file_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(LogError, match=r"x\.snap"):
        list(from_tarantool([("x.snap", data)], Mapping()))


def test_a_block_that_unpacks_to_too_much_is_not_unpacked_any_further() -> None:
    block = zstandard.ZstdCompressor().compress(bytes(200 * PART_BYTES))
    assert decompressed(block, 200 * PART_BYTES) == bytes(200 * PART_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(LogError, match="more than 1000 bytes"):
            decompressed(block, 1000)
        assert tracemalloc.get_traced_memory()[1] < 20 * PART_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(shutil.which("tarantool") is None, reason="the Debian package tarantool is not installed")
def test_what_tarantool_writes_today_is_read(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    command = ["tarantool", str(FIXTURES / "make.lua")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    files = sorted((tmp_path / "d").glob("*.snap"))[-1:]
    files += [path for path in sorted((tmp_path / "d").glob("*.xlog")) if path.stem >= files[0].stem]
    assert balances(*files) == EXPECTED
