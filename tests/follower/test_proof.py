"""A follower's word is worth what the medium holds: lost write-backs, stale logs, flipped bytes, older files.

`Medium` is the operating system's disk on which write-back can fail: from then on reads see what was written, and the
medium keeps what it had. That is what Linux leaves behind a failed sync, to every process that opens the file later.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest

from billing.follower.proof import Unproved
from billing.follower.store import Damaged, ShardFile, StoreError, code_of, file_of, refuse_ahead
from billing.history.history_reader import MISSING, HistoryReader
from billing.history.page import Page
from billing.history.store import Store, open_store, rows_are_sound
from billing.history.tables import KIND, ends_agree
from shards.exits import Exit
from shards.journal import Corrupt
from shards.system.disk import Readers, RealDisk
from tests.history import tampering
from tests.history.shard_driver import ShardDriver

NEWEST = 2**63 - 1
STEPS = 5


class Medium(RealDisk):
    """A disk whose write-back fails for some files, after `fail`, without a word."""

    def __init__(self) -> None:
        self.stable: dict[str, bytes] = {}  # path -> what the medium has, where that is not what reads see

    def fail(self, *paths: str) -> None:
        for path in paths:
            self.stable[path] = Path(path).read_bytes() if os.path.exists(path) else b""

    def read_medium(self, path: str, offset: int, length: int) -> bytes:
        if path in self.stable:
            return self.stable[path][offset : offset + length]
        return super().read_medium(path, offset, length)

    def lose_power(self, directory: Path, after: Path) -> None:
        """Makes `after` of what is on the medium of `directory`: what was only in memory is gone."""
        after.mkdir(0o700)
        for path in directory.iterdir():
            content = self.stable.get(str(path), path.read_bytes() if path.is_file() else b"")
            if content and not path.name.endswith("-shm"):
                (after / path.name).write_bytes(content)


SINCE_VERSION_2 = {
    *("resource", "line_rate_nanos_per_hour", "rate_nanos_per_hour", "value_nanos", "thresholds", "actor"),
}


def opened(directory: Path, disk: RealDisk, *, first: int = 1, head: int, suspect: bool = False) -> Store:
    store, _ = open_store(ShardFile(str(directory), 0, first, head, disk), suspect=suspect)
    return store


def feed(store: Store, driver: ShardDriver, head: int) -> None:
    for position in range(store.position + 1, head + 1):
        store.take(position, driver.batches[position - 1])
    store.flush()


def answers(directory: Path, store: Store, driver: ShardDriver) -> dict[bytes, list[dict[str, object]]]:
    reader = HistoryReader(str(directory), 0, store.db, RealDisk())
    return {user: reader.history(1, user, NEWEST, 10**6).rows for user in driver.users}


def all_right(directory: Path, store: Store, driver: ShardDriver) -> None:
    for user, rows in answers(directory, store, driver).items():
        assert rows == driver.history(user, limit=10**6)


def as_before(row: dict[str, object]) -> dict[str, object]:
    """A row without the columns that version 1 did not keep."""
    return {name: value for name, value in row.items() if name not in SINCE_VERSION_2}


def dropped(store: Store) -> None:
    """The process is killed: nothing is written any more."""
    store.db.execute("PRAGMA query_only = 1")  # closing would let SQLite write


def test_what_the_medium_does_not_hold_is_not_durable_and_ends_the_store(data_dir: Path) -> None:
    disk, driver = Medium(), ShardDriver()
    store = opened(data_dir, disk, head=0)
    for _ in range(4):
        driver.batch(STEPS)
    feed(store, driver, 2)
    assert store.checkpoint()
    assert store.durable == 2
    disk.fail(store.path)
    feed(store, driver, 4)
    with pytest.raises(Unproved, match="the medium does not hold it"):
        store.checkpoint()
    assert store.durable == 2


@pytest.mark.parametrize("seed", range(12))
def test_the_journal_is_trimmed_only_for_what_survives_the_loss_of_power(data_dir: Path, seed: int) -> None:
    """Write-back fails at a random instant, of the file alone or of its log too; then the power goes."""
    rng, disk, driver = random.Random(seed), Medium(), ShardDriver(seed=seed)
    store = opened(data_dir, disk, head=0)
    durable = head = 0
    for step in range(60):
        driver.batch(rng.randrange(12, 20))
        head += 1
        feed(store, driver, head) if rng.random() < 0.6 else None
        if step == 20 + seed:
            disk.fail(store.path, *([f"{store.path}-wal"] if rng.random() < 0.5 else []))
        if rng.random() < 0.3:
            try:
                store.checkpoint()
            except Unproved:
                break
            durable = max(durable, store.durable)
    disk.lose_power(data_dir, data_dir / "after")
    again = opened(data_dir / "after", RealDisk(), first=durable + 1, head=head)
    assert again.position >= durable
    assert again.db.execute("SELECT * FROM losses").fetchall() == []
    feed(again, driver, head)
    all_right(data_dir / "after", again, driver)
    assert again.checkpoint()


def test_the_successor_of_a_store_whose_sync_failed_works_on_what_the_medium_holds(data_dir: Path) -> None:
    disk, driver = Medium(), ShardDriver()
    store = opened(data_dir, disk, head=0)
    for _ in range(6):
        driver.batch(STEPS)
    feed(store, driver, 3)
    assert store.checkpoint()
    feed(store, driver, 4)
    disk.fail(store.path, f"{store.path}-wal")
    feed(store, driver, 5)
    with pytest.raises(Unproved):
        store.checkpoint()
    dropped(store)
    successor = opened(data_dir, disk, head=6)  # the log in memory is not the log on the medium: nobody need say so
    assert successor.position in (3, 4)
    disk.stable.clear()  # the disk is sound again, and what it lost stays lost
    feed(successor, driver, 6)
    all_right(data_dir, successor, driver)
    assert successor.checkpoint()
    assert successor.durable == 6


@pytest.mark.parametrize("moved", ["file", "file and shm"])
def test_what_a_file_that_was_moved_away_leaves_beside_does_not_harm_the_new_one(data_dir: Path, moved: str) -> None:
    driver = ShardDriver()
    store = opened(data_dir, RealDisk(), head=0)
    for _ in range(6):
        driver.batch(STEPS)
    feed(store, driver, 6)  # in the log alone
    path = Path(store.path)
    assert Path(f"{path}-wal").stat().st_size > 0
    path.rename(data_dir / "elsewhere")
    if moved == "file and shm":
        Path(f"{path}-shm").rename(data_dir / "elsewhere-shm")
    again = opened(data_dir, RealDisk(), head=6)
    assert again.position == 0
    feed(again, driver, 6)
    again.close()
    again = opened(data_dir, RealDisk(), head=6)
    assert again.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    all_right(data_dir, again, driver)


def never_silent(directory: Path, driver: ShardDriver, first: int, head: int) -> int:
    """Opens, feeds and asks as the processes do, again after damage; how many answers say that something is missing."""
    for suspect in (False, True, True):
        try:
            store = opened(directory, RealDisk(), first=first, head=head, suspect=suspect)
            feed(store, driver, head)
            rows_of_user = answers(directory, store, driver)
        except (Damaged, sqlite3.DatabaseError):
            continue
        silent = 0
        for user, rows in rows_of_user.items():
            expected = driver.history(user, limit=10**6)
            if rows != expected:
                assert [row for row in rows if row["operation"] != MISSING] == [row for row in expected if row in rows]
                assert any(row["operation"] == MISSING for row in rows), "an answer lacks rows and does not say so"
                silent += 1
        return silent
    raise AssertionError("a damaged file is damaged still after it was made anew")


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_byte_is_never_in_an_answer(data_dir: Path, seed: int) -> None:
    """Any byte of the file: each answer is right, or says what is missing."""
    rng, driver = random.Random(seed), ShardDriver(seed=4, users=8)
    store = opened(data_dir, RealDisk(), head=0)
    for _ in range(30):
        driver.batch(STEPS)
    feed(store, driver, 20)
    store.close()
    path = Path(file_of(str(data_dir), 0))
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    never_silent(data_dir, driver, 15, 30)


def test_a_header_that_lets_nobody_write_is_damage_and_the_file_is_made_anew(data_dir: Path) -> None:
    driver = ShardDriver(users=8)
    store = opened(data_dir, RealDisk(), head=0)
    for _ in range(4):
        driver.batch(STEPS)
    feed(store, driver, 3)
    store.close()
    path = Path(file_of(str(data_dir), 0))
    data = bytearray(path.read_bytes())
    data[18] |= 4  # SQLite's write version: readers go on, writers are refused
    path.write_bytes(data)
    store = opened(data_dir, RealDisk(), head=4)
    with pytest.raises(sqlite3.OperationalError) as refused:
        feed(store, driver, 4)
    assert code_of(refused.value) == Exit.DAMAGED
    dropped(store)
    store = opened(data_dir, RealDisk(), head=4, suspect=True)
    feed(store, driver, 4)
    all_right(data_dir, store, driver)
    assert (data_dir / "damaged-1-shard-0.sqlite").exists()


def test_a_damaged_file_is_made_anew_wholly_where_the_journal_reaches_back(data_dir: Path) -> None:
    driver = ShardDriver(users=8)
    store = opened(data_dir, RealDisk(), head=0)
    for _ in range(30):
        driver.batch(STEPS)
    feed(store, driver, 30)
    store.close()
    path = Path(file_of(str(data_dir), 0))
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    assert never_silent(data_dir, driver, 1, 30) == 0
    assert (data_dir / "damaged-1-shard-0.sqlite").read_bytes() == bytes(data)


def test_only_what_is_damaged_before_the_journal_is_lost_and_each_answer_says_which(data_dir: Path) -> None:
    driver = ShardDriver(users=8)
    store = opened(data_dir, RealDisk(), head=0)
    for _ in range(40):
        driver.batch(STEPS)
    for head in range(1, 31):
        feed(store, driver, head)
    page = Page._make(store.db.execute("SELECT * FROM pages WHERE first <= 20 ORDER BY first DESC").fetchone())
    lost = Counter(row.user_id for row in page.open().rows())
    wrong = bytes((page.packed[9] ^ 1,))  # and its checksum as it was
    damaged = page.packed[:9] + wrong + page.packed[10:]
    store.db.execute("UPDATE pages SET packed = ? WHERE first = ?", (damaged, page.first))
    store.close()
    assert never_silent(data_dir, driver, 21, 40) == len(lost)
    store = opened(data_dir, RealDisk(), first=21, head=40)
    rows_of_user = answers(data_dir, store, driver)
    for user in lost:
        (gap,) = [row for row in rows_of_user[user] if row["operation"] == MISSING]
        assert gap["entry_id"] == min(row.entry_id for row in page.open().rows() if row.user_id == user)
    assert store.db.execute("SELECT count(*) FROM losses").fetchone() == (1,)


VERSION_1 = (
    "PRAGMA application_id = 1112033619",
    "PRAGMA user_version = 1",
    "PRAGMA journal_mode = WAL",
    "CREATE TABLE about (shard INTEGER NOT NULL, begins INTEGER NOT NULL, position INTEGER NOT NULL)",
    "CREATE TABLE users (number INTEGER PRIMARY KEY, user_id BLOB NOT NULL UNIQUE)",
    "CREATE TABLE heads (number INTEGER PRIMARY KEY, newest INTEGER NOT NULL)",
    """CREATE TABLE entries (
        seq INTEGER PRIMARY KEY, older INTEGER NOT NULL, number INTEGER NOT NULL, entry_id INTEGER NOT NULL,
        at_ns INTEGER NOT NULL, operation INTEGER NOT NULL, amount INTEGER NOT NULL, accrued INTEGER NOT NULL,
        balance INTEGER NOT NULL, message BLOB, request_id BLOB)""",
    """CREATE TABLE marks (number INTEGER NOT NULL, entry_id INTEGER NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (number, entry_id)) WITHOUT ROWID""",
    """CREATE TABLE departures (bucket_id INTEGER NOT NULL, generation INTEGER NOT NULL, position INTEGER NOT NULL,
        PRIMARY KEY (bucket_id, generation)) WITHOUT ROWID""",
    "CREATE TABLE groups (slot INTEGER PRIMARY KEY, position INTEGER NOT NULL, seq INTEGER NOT NULL)",
)


def test_a_file_of_version_1_is_converted_and_lacks_nothing(data_dir: Path) -> None:
    driver = ShardDriver(users=6)
    for _ in range(30):
        driver.batch(STEPS)
    new_directory = data_dir / "made"
    new_directory.mkdir(0o700)
    store = opened(new_directory, RealDisk(), head=0)
    feed(store, driver, 20)
    store.close()
    old = sqlite3.connect(file_of(str(data_dir), 0), isolation_level=None)
    for statement in VERSION_1:
        old.execute(statement)
    old.execute("ATTACH ? AS new", (file_of(str(new_directory), 0),))
    old.execute("INSERT INTO main.about SELECT shard, begins, position FROM new.about")
    for table in ("users", "marks", "departures", "groups"):
        old.execute(f"INSERT INTO main.{table} SELECT * FROM new.{table}")
    of_user = {user_id: number for number, user_id in old.execute("SELECT number, user_id FROM users")}
    with closing(sqlite3.connect(file_of(str(new_directory), 0))) as db:
        for row in tampering.rows(db):
            facts = row.seq, row.older, of_user[row.user_id], *row[3:9], row.message or None, row.request_id or None
            old.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", facts)
    old.execute("INSERT INTO heads SELECT number, max(seq) FROM entries GROUP BY number")
    old.close()
    store = opened(data_dir, RealDisk(), first=15, head=30)
    assert store.position >= 14
    feed(store, driver, 30)
    for user, rows in answers(data_dir, store, driver).items():
        expected = driver.history(user, limit=10**6)
        assert [as_before(row) for row in rows] == [as_before(row) for row in expected]
        assert rows[0] == expected[0], "what came behind the conversion has every column"
    assert store.db.execute("PRAGMA user_version").fetchone() == (KIND.version,)
    assert rows_are_sound(store.db)
    assert not list(data_dir.glob("damaged-*"))


def test_a_file_that_is_replaced_under_its_writer_ends_the_writer(data_dir: Path) -> None:
    driver = ShardDriver()
    store = opened(data_dir, RealDisk(), head=0)
    driver.batch(STEPS)
    feed(store, driver, 1)
    path = Path(store.path)
    replacement = data_dir / "other"
    replacement.write_bytes(path.read_bytes())
    replacement.rename(path)
    with pytest.raises(StoreError, match="was replaced while it was in use"):
        store.checkpoint()
    assert store.durable == 0


def test_a_file_ahead_of_its_journal_proves_a_loss_only_where_it_agrees_with_itself(data_dir: Path) -> None:
    """A changed position is damage of the file: the shard is not held for it, and the file is made anew."""
    driver, path = ShardDriver(), file_of(str(data_dir), 0)
    driver.batch(20)
    store = opened(data_dir, RealDisk(), head=1)
    feed(store, driver, 1)
    store.close()
    with pytest.raises(Corrupt, match="goes up to batch 1, the journal only up to batch 0"):
        refuse_ahead(path, KIND, 0, ends_agree)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE about SET position = 65537")
    refuse_ahead(path, KIND, 1, ends_agree)
    with pytest.raises(Damaged):
        opened(data_dir, RealDisk(), head=1)
    assert opened(data_dir, RealDisk(), head=1, suspect=True).position < 1


def test_a_process_that_closes_the_file_takes_no_log_away_from_its_writer(data_dir: Path) -> None:
    """Two writers are open for a moment where one is about to take the other's place."""
    driver, path = ShardDriver(), file_of(str(data_dir), 0)
    for _ in range(4):
        driver.batch(STEPS)
    store = opened(data_dir, RealDisk(), head=0)
    feed(store, driver, 2)
    assert store.checkpoint(), "which reads the file past the page cache"
    leave = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM about'); db.close()"
    subprocess.run([sys.executable, "-c", leave, path], check=True)
    assert os.path.exists(f"{path}-wal")
    feed(store, driver, 4)
    assert store.checkpoint()
    all_right(data_dir, store, driver)
    store.close()


def test_what_a_thread_reads_past_the_page_cache_stays_open_until_it_has_read(data_dir: Path) -> None:
    """Others tidy up meanwhile: the handle's number would be that of another file."""
    readers = Readers()
    for name in ("read", "next", "last"):
        (data_dir / name).write_bytes(name.encode())
    with readers.of(str(data_dir / "read"), 0) as handle:
        (data_dir / "read").unlink()
        with readers.of(str(data_dir / "next"), 0) as other:
            assert other != handle
        assert os.pread(handle, 9, 0) == b"read"
        assert f"{data_dir}/read (deleted)" in open_files()
    with readers.of(str(data_dir / "last"), 0) as last:
        assert os.pread(last, 9, 0) == b"last"
    assert f"{data_dir}/read (deleted)" not in open_files()
    assert f"{data_dir}/next" in open_files()


def open_files() -> set[str]:
    """The names of the files that this process has open."""
    names = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            names.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return names
