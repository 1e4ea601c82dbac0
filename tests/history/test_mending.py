"""A gap of a history file is filled with what other hosts have of it: all of it, once, checked, or not at all."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from billing.follower.store import Overtaken, ShardFile, connect, file_of
from billing.history import retention
from billing.history.batches import batch_of
from billing.history.gaps import Gap, Given, checksum_of, gaps_of, given_of
from billing.history.history_reader import MISSING, HistoryReader
from billing.history.mending import Mended, NotNow, mend
from billing.history.period import OPENING
from billing.history.restoring import Unlike
from billing.history.store import Store, open_store, rows_are_sound
from billing.history.tables import KIND
from shards.system.disk import RealDisk
from tests.history.shard_driver import ShardDriver, rows_in
from tests.history.test_store import NEWEST

SHARD = 1


class Host:
    """One host's file of the shard whose journal a driver holds."""

    def __init__(self, home: Path, driver: ShardDriver) -> None:
        home.mkdir(exist_ok=True)
        self.home, self.driver = home, driver

    def follow(self, first: int, last: int) -> Host:
        """Takes these batches, where the log has no others before them; as one life of a process."""
        file = ShardFile(str(self.home), SHARD, first, last, RealDisk())
        store, _ = open_store(file, suspect=False, is_shared=True)
        self.take(store, last)
        store.close()
        return self

    def take(self, store: Store, last: int) -> None:
        for position in range(store.position + 1, last + 1):
            store.take(position, self.driver.batches[position - 1])
            if not position % 3:
                store.flush()
        store.flush()

    def gaps(self) -> list[Gap]:
        with closing(connect(file_of(str(self.home), SHARD), KIND)) as db:
            return gaps_of(db)

    def behind(self) -> range:
        """The batches behind its end."""
        with closing(connect(file_of(str(self.home), SHARD), KIND)) as db:
            return range(db.execute("SELECT position FROM about").fetchone()[0] + 1, 31)

    def lacks(self) -> set[int]:
        """The batches that it does not have."""
        return {*self.behind(), *(at for gap in self.gaps() for at in range(gap.first, gap.last + 1))}

    def gives(self, after: int, rows: int, last: int, bytes_max: int) -> Given | None:
        with closing(connect(file_of(str(self.home), SHARD), KIND)) as db:
            return given_of(db, after, rows, last, bytes_max)

    def mended(self, *hosts: Host, bytes_max: int = 2000) -> Mended | None:
        """After it has asked these, in parts of so many bytes."""
        with ExitStack() as open_files:
            files = {host.home.name: file_of(str(host.home), SHARD) for host in hosts}
            by_name = {name: open_files.enter_context(closing(connect(file, KIND))) for name, file in files.items()}

            def ask(host: str, shard: int, after: int, rows: int, last: int, most: int) -> Given | None:
                assert shard == SHARD
                return given_of(by_name[host], after, rows, last, min(most, bytes_max))

            return mend(RealDisk(), str(self.home), SHARD, list(by_name), ask, lambda: None)

    def check(self) -> set[str]:
        """Every row that is there is one of the driver's, and in its place; the operations that were met."""
        path = file_of(str(self.home), SHARD)
        with closing(connect(path, KIND)) as db:
            assert rows_are_sound(db)
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with closing(sqlite3.connect(path)) as db:
            reader = HistoryReader(str(self.home), SHARD, db, RealDisk())
            met = set()
            for user in self.driver.users:
                wanted = {row["entry_id"]: row for row in self.driver.rows[user]}
                for row in reader.history(2, user, NEWEST, 10**6).rows:
                    met.add(row["operation"])
                    assert row["operation"] in (MISSING, OPENING) or row == wanted[row["entry_id"]]
            return met

    def is_whole(self) -> bool:
        store, _ = open_store(ShardFile(str(self.home), SHARD, 1, 10**6, RealDisk()), suspect=False, is_shared=True)
        reader = HistoryReader(str(self.home), SHARD, store.db, RealDisk())
        rows = [reader.history(2, user, NEWEST, 10**6).rows for user in self.driver.users]
        store.close()
        return rows == [self.driver.history(user, limit=10**6) for user in self.driver.users]


@pytest.fixture(scope="module")
def driver() -> ShardDriver:
    """All tests read it."""
    scene_made = ShardDriver(3, users=6)
    for _ in range(30):
        scene_made.batch()
    return scene_made


@pytest.fixture
def complete(tmp_path: Path, driver: ShardDriver) -> Host:
    """A host that was always there."""
    return Host(tmp_path / "other", driver).follow(1, 30)


@pytest.mark.parametrize("bytes_max", [1, 700, 1 << 20])
def test_a_host_that_was_away_has_all_again(
    tmp_path: Path, driver: ShardDriver, complete: Host, bytes_max: int
) -> None:
    away = Host(tmp_path / "away", driver).follow(1, 10).follow(18, 25).follow(28, 30)
    assert away.gaps() == [Gap(11, 17), Gap(26, 27)]
    assert MISSING in away.check()
    mended = away.mended(complete, bytes_max=bytes_max)
    assert mended is not None
    assert (mended.filled, mended.left, mended.hosts) == ([Gap(11, 17), Gap(26, 27)], [], ["other"])
    assert MISSING not in away.check()
    assert away.is_whole()
    assert away.gaps() == []
    assert complete.is_whole()


def test_a_new_host_has_what_was_before_it(tmp_path: Path, driver: ShardDriver, complete: Host) -> None:
    new = Host(tmp_path / "new", driver).follow(21, 30)
    assert new.gaps() == [Gap(1, 20)]
    mended = new.mended(complete)
    assert mended is not None
    assert mended.filled == [Gap(1, 20)]
    assert new.is_whole()
    assert Host(tmp_path / "newer", driver).follow(29, 30).mended(new) is not None, "and gives it on"


def test_two_hosts_with_gaps_give_each_other_what_they_have_and_the_rest_stays_missing(
    tmp_path: Path, driver: ShardDriver
) -> None:
    first = Host(tmp_path / "one", driver).follow(1, 8).follow(20, 30)  # lacks 9 to 19
    two = Host(tmp_path / "two", driver).follow(4, 12).follow(16, 25).follow(28, 30)  # 1 to 3, 13 to 15, 26 to 27
    mended = first.mended(two)
    assert mended is not None
    assert mended.filled == [Gap(9, 12), Gap(16, 19)]
    assert mended.left == [Gap(13, 15)]
    assert first.gaps() == [Gap(13, 15)]
    assert MISSING in first.check()
    assert first.mended(two) is None, "nobody has the rest"
    mended = two.mended(first)
    assert mended is not None
    assert (mended.filled, mended.left) == ([Gap(1, 3), Gap(26, 27)], [Gap(13, 15)])
    assert two.gaps() == [Gap(13, 15)]
    third = Host(tmp_path / "whole", driver).follow(1, 30)
    assert first.mended(two, third) is not None, "until somebody comes back who has it"
    assert first.is_whole()
    assert two.mended(first) is not None
    assert two.is_whole()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_hosts_lack_they_have_together_what_one_of_them_has(
    tmp_path: Path, driver: ShardDriver, seed: int
) -> None:
    rng = random.Random(seed)
    hosts = []
    for number in range(3):
        host = Host(tmp_path / f"host-{number}", driver)
        at = rng.choice([1, rng.randrange(1, 20)])
        while at <= 30:
            end = min(30, at + rng.randrange(12))
            host.follow(at, end)
            at = end + rng.randrange(1, 6)
        hosts.append(host)
    nobody = set.intersection(*(host.lacks() for host in hosts))
    for _ in range(2):
        for host in hosts:
            host.mended(*(peer for peer in hosts if peer is not host), bytes_max=rng.choice([1, 300, 10**6]))
            host.check()
    for host in hosts:
        assert host.lacks() == {*nobody, *host.behind()}, "what lies behind its end is the log's to give"


def test_whoever_writes_to_the_file_meanwhile_loses_nothing_and_opens_the_new_one(
    tmp_path: Path, driver: ShardDriver, complete: Host
) -> None:
    away = Host(tmp_path / "away", driver).follow(1, 10).follow(15, 20)
    store, _ = open_store(ShardFile(str(away.home), SHARD, 15, 20, RealDisk()), suspect=False, is_shared=True)

    def ask(host: str, shard: int, after: int, rows: int, last: int, most: int) -> Given | None:
        away.take(store, min(store.position + 1, 28))
        return complete.gives(after, rows, last, 500)

    assert mend(RealDisk(), str(away.home), SHARD, ["other"], ask, lambda: away.take(store, 29)) is not None
    with pytest.raises(Overtaken, match="was replaced while it was in use"):
        away.take(store, 30)
    again, _ = open_store(ShardFile(str(away.home), SHARD, 30, 30, RealDisk()), suspect=False, is_shared=True)
    assert again.position == 29
    away.take(again, 30)
    again.close()
    store.db.close()
    assert away.is_whole()


def damaged(gift: Given, rng: random.Random) -> Given:
    position, payload = gift.batches[-1]
    at = rng.randrange(len(payload))
    payload = payload[:at] + bytes([payload[at] ^ 1 << rng.randrange(8)]) + payload[at + 1 :]
    return gift._replace(batches=[*gift.batches[:-1], (position, payload)])


def unlike(gift: Given, rng: random.Random) -> Given:
    """Whole batches of a shard of another daemon, with right checksums."""
    another_scene = ShardDriver(99, users=6)
    some = [(position, another_scene.batch()) for position, _ in gift.batches]
    return gift._replace(batches=some, checksum=checksum_of(some))


def shortened(gift: Given, rng: random.Random) -> Given:
    some = gift.batches[1:]
    return gift._replace(batches=some, checksum=checksum_of(some))


def disordered(gift: Given, rng: random.Random) -> Given:
    some = gift.batches[::-1]
    return gift._replace(batches=some, checksum=checksum_of(some))


@pytest.mark.parametrize("broken", [damaged, unlike, shortened, disordered])
def test_what_is_not_what_came_then_is_refused_and_nothing_is_changed(
    tmp_path: Path, driver: ShardDriver, complete: Host, broken: Callable[[Given, random.Random], Given]
) -> None:
    away = Host(tmp_path / "away", driver).follow(1, 10).follow(18, 30)
    path = Path(file_of(str(away.home), SHARD))
    before, rng = path.read_bytes(), random.Random(1)

    def ask(host: str, shard: int, after: int, rows: int, last: int, most: int) -> Given | None:
        gift = complete.gives(after, rows, last, most)
        return broken(gift, rng) if gift is not None and most > 1 else gift

    for _ in range(10):
        with pytest.raises(Unlike) as refused:
            mend(RealDisk(), str(away.home), SHARD, ["other"], ask, lambda: None)
        assert " account " not in str(refused.value), "the log hides users behind user_id= alone"
        assert path.read_bytes() == before
        assert not list(away.home.glob("*.mended*"))
    assert away.mended(complete) is not None


def test_where_one_host_is_wrong_another_one_is_asked(tmp_path: Path, driver: ShardDriver, complete: Host) -> None:
    away = Host(tmp_path / "away", driver).follow(1, 10).follow(18, 30)
    rng = random.Random(1)

    def ask(host: str, shard: int, after: int, rows: int, last: int, most: int) -> Given | None:
        gift = complete.gives(after, rows, last, most)
        return unlike(gift, rng) if gift is not None and most > 1 and host == "wrong" else gift

    mended = mend(RealDisk(), str(away.home), SHARD, ["wrong", "other"], ask, lambda: None)
    assert mended is not None
    assert mended.hosts == ["other"]
    assert away.is_whole()


def pruned(host: Host, before: int) -> None:
    """Deletes what `history.keep_days` would, if the batches before this one were older."""
    store, _ = open_store(ShardFile(str(host.home), SHARD, 1, 10**6, RealDisk()), suspect=False, is_shared=True)
    reader = HistoryReader(str(host.home), SHARD, store.db, RealDisk())
    limit_ns = min(row["at_ns"] for _, row in rows_in(host.driver.batches[before - 1]))
    for _ in retention.prune(store, reader, limit_ns):
        continue
    reader.close()
    store.close()


def test_a_file_of_which_rows_were_deleted_is_filled_and_says_so_still(
    tmp_path: Path, driver: ShardDriver, complete: Host
) -> None:
    away = Host(tmp_path / "away", driver).follow(1, 6).follow(14, 30)
    pruned(away, 20)
    with closing(connect(file_of(str(away.home), SHARD), KIND)) as db:
        before = [HistoryReader(str(away.home), SHARD, db, RealDisk()).openings(1, user) for user in driver.users]
    assert any(before)
    mended = away.mended(complete)
    assert mended is not None
    assert mended.filled == [Gap(7, 13)]
    away.check()
    with closing(connect(file_of(str(away.home), SHARD), KIND)) as db:
        reader = HistoryReader(str(away.home), SHARD, db, RealDisk())
        assert [reader.openings(1, user) for user in driver.users] == before, "the lines behind the oldest row kept"
        (cut,) = db.execute("SELECT max(seq) FROM cuts").fetchone()
        assert batch_of(db, cut) >= 19, "whoever has not had these rows is told"
    pruned(away, 20)
    away.check()


def test_a_host_gives_nothing_from_before_what_it_has_deleted(
    tmp_path: Path, driver: ShardDriver, complete: Host
) -> None:
    pruned(complete, 15)
    away = Host(tmp_path / "away", driver).follow(1, 5).follow(25, 30)
    mended = away.mended(complete)
    assert mended is not None
    (filled,) = mended.filled
    assert 6 < filled.first <= 15
    assert filled.last == 24
    assert away.gaps() == mended.left == [Gap(6, filled.first - 1)]
    assert MISSING in away.check()


def test_a_host_whose_pages_are_damaged_gives_nothing_of_them(
    tmp_path: Path, driver: ShardDriver, complete: Host
) -> None:
    with closing(sqlite3.connect(file_of(str(complete.home), SHARD))) as db:
        db.execute("UPDATE pages SET packed = zeroblob(20) WHERE first = (SELECT min(first) FROM pages)")
        db.commit()
    with pytest.raises(Exception, match="is not what was written"):
        complete.gives(0, 0, 30, 1 << 20)


def test_a_host_that_stops_answering_leaves_the_file_as_it_was(
    tmp_path: Path, driver: ShardDriver, complete: Host
) -> None:
    away = Host(tmp_path / "away", driver).follow(1, 5).follow(25, 30)
    answers_left = [4]

    def ask(host: str, shard: int, after: int, rows: int, last: int, most: int) -> Given | None:
        answers_left[0] -= 1
        return complete.gives(after, rows, last, 300) if answers_left[0] > 0 else None

    with pytest.raises(NotNow, match="does not give on"):
        mend(RealDisk(), str(away.home), SHARD, ["other"], ask, lambda: None)
    assert away.gaps() == [Gap(6, 24)]
    assert away.mended(complete) is not None
    assert away.is_whole()


class Dying(RealDisk):
    """A disk that lets so many calls that change something pass, and then none."""

    def __init__(self, writes_left: int) -> None:
        self.writes_left = writes_left

    def _pass(self) -> None:
        self.writes_left -= 1
        if self.writes_left < 0:
            raise OSError(5, "the machine is off")

    def create(self, path: str) -> int:
        self._pass()
        return super().create(path)

    def fsync(self, handle: int) -> None:
        self._pass()
        super().fsync(handle)

    def fsync_dir(self, path: str) -> None:
        self._pass()
        super().fsync_dir(path)

    def rename(self, source: str, target: str) -> None:
        self._pass()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._pass()
        super().unlink(path)

    def read_medium(self, path: str, offset: int, length: int) -> bytes:
        self._pass()
        return super().read_medium(path, offset, length)


def test_wherever_it_is_broken_off_the_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, driver: ShardDriver, complete: Host
) -> None:
    met: set[bool] = set()
    for calls in range(1000):
        away = Host(tmp_path / f"away-{calls}", driver).follow(1, 10).follow(18, 30)
        disk = Dying(calls)

        def ask(host: str, shard: int, after: int, rows: int, last: int, most: int) -> Given | None:
            return complete.gives(after, rows, last, most)

        try:
            mend(disk, str(away.home), SHARD, ["other"], ask, lambda: None)
        except OSError:
            met.add(away.gaps() == [])
            away.check()
            assert away.gaps() in ([], [Gap(11, 17)])
            assert away.mended(complete) is not None or not away.gaps()
            assert away.is_whole()
        else:
            break
    assert met == {True, False}
    assert disk.writes_left == 0
