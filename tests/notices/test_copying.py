"""A backup's copy of owed notices: as of one instant, and no notice falls between the files of two shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.follower.store import ShardFile, file_of
from billing.ledger.ledger import Ledger
from billing.notices.copying import BackupCut, Copied, CutShard, copy_notices
from billing.notices.opening import ensure_file, open_store
from billing.notices.store import Store
from shards.batch import LEAVE, RECEIVED
from shards.journal import Retained
from tests.history.test_store import batch_of
from tests.notices.names import numbered
from tests.notices.test_store import NOW_NS, Shard, ledger, top_up
from tests.shards.system.unsynced import UnsyncedDisk

__all__ = ["ledger"]


class LogInMemory:
    """A log of batches in memory, of which some at the beginning may be gone."""

    def __init__(self, batches: list[bytes], first: int = 1) -> None:
        self.first = first
        self._batches = batches

    @property
    def head(self) -> int:
        return len(self._batches)

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        assert start >= self.first
        return iter(list(enumerate(self._batches, 1))[start - 1 :])

    def snapshots(self) -> list[Retained]:
        return []

    def chunks(self, position: int) -> Iterator[bytes]:
        raise AssertionError("there is no snapshot")

    def close(self) -> None:
        pass


class Recorded(Shard):
    """A shard whose batches are kept."""

    def __init__(self, home: Path, shard: int, generation: int = 1) -> None:
        self.batches: list[bytes] = []
        super().__init__(home, shard, generation)

    def take(self, *records: tuple[int, int, int, bytes]) -> None:
        self.batches.append(batch_of(*records))
        super().take(*records)


def recorded_elsewhere(tmp_path: Path, ledger: Ledger, number: int, top_ups: int) -> Recorded:
    """A shard of another host, whose file is not here, with so many batches."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    shard = Recorded(elsewhere, number)
    for _ in range(top_ups):
        top_up(ledger, shard)
    shard.store.close()
    return shard


def copied(
    source: Path,
    target: Path,
    shards: list[CutShard],
    logs: dict[int, LogInMemory],
    meanwhile: Callable[[], None] = lambda: None,
    *,
    is_apart: bool = False,
) -> list[Copied]:
    cut = BackupCut(NOW_NS, shards, logs.__getitem__, is_apart)
    return copy_notices(UnsyncedDisk(), str(source), str(target), cut, lambda: 300, meanwhile)


def owed(store: Store) -> list[str]:
    return [numbered(row[5]) for row in store.after(0, 1000)]


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Path, Path]:
    """The directory of a daemon, and where its copy is made."""
    tmp_path.chmod(0o700)
    source = tmp_path / "source"
    source.mkdir(mode=0o700)
    return source, tmp_path / "copy"


@pytest.mark.parametrize("cut", [0, 2, 4, 6])
def test_a_copy_ends_at_the_cut_wherever_its_notifier_is(homes: tuple[Path, Path], ledger: Ledger, cut: int) -> None:
    shard = Recorded(homes[0], 1)
    for _ in range(4):
        top_up(ledger, shard)
    shard.store.acknowledge(1)
    shard.store.flush()
    for _ in range(2):  # taken, and not committed: the notifier is behind
        top_up(ledger, shard)
    (result,) = copied(*homes, [CutShard(1, cut, True, -1)], {1: LogInMemory(shard.batches)})
    wanted = [f"{entry}:account-topped_up" for entry in range(2, cut + 1)]
    assert result == Copied(1, len(wanted), 1 if wanted else cut, ["shard-1.sqlite", "begun-1"], [])
    store = Store(str(homes[1]), 1, UnsyncedDisk())
    assert (store.position, owed(store)) == (cut, wanted)
    store.close()
    shard.store.flush()
    assert len(owed(shard.store)) == 5, "nothing was changed where it came from"


def test_what_is_taken_over_while_files_are_copied_is_in_one_of_them(homes: tuple[Path, Path], ledger: Ledger) -> None:
    """The taker, which is copied first, has it only afterwards, and the giver would delete it before it is copied."""
    giver, taker = Recorded(homes[0], 2), Recorded(homes[0], 1, generation=2)
    for _ in range(2):
        top_up(ledger, giver)
    giver.take((LEAVE, 1, 1, b""))
    giver.store.flush()
    taker.take((RECEIVED, 1, 2, b""))
    top_up(ledger, taker)
    taker.store.flush()
    deleted = []

    def meanwhile() -> None:
        if taker.store.pending:
            assert taker.store.claim(1)
        if taker.store.checkpoint():
            taker.store.publish_claims()
        deleted.append(giver.store.delete_claimed())

    shards = [CutShard(1, 2, True, -1), CutShard(2, 3, True, -1)]
    copied(*homes, shards, {1: LogInMemory(taker.batches), 2: LogInMemory(giver.batches)}, meanwhile)
    assert deleted
    assert not any(deleted)
    meanwhile()
    assert deleted.pop() == 2, "afterwards it goes on"
    restored = Store(str(homes[1]), 1, UnsyncedDisk())
    assert restored.claim(1)
    assert owed(restored) == [f"{entry}:account-topped_up" for entry in (1, 2, 3)]
    restored.close()


def test_what_was_taken_over_behind_the_cut_is_kept(homes: tuple[Path, Path], ledger: Ledger) -> None:
    """No bucket moves during a backup, but what was owed of one that had may be taken over."""
    giver, taker = Recorded(homes[0], 2), Recorded(homes[0], 1, generation=2)
    top_up(ledger, giver)
    giver.take((LEAVE, 1, 1, b""))
    giver.store.flush()
    taker.take((RECEIVED, 1, 2, b""))
    top_up(ledger, taker)
    top_up(ledger, taker)  # behind the cut
    taker.store.flush()
    assert taker.store.claim(1)
    assert taker.store.checkpoint()
    taker.store.publish_claims()
    assert giver.store.delete_claimed() == 1
    shards = [CutShard(1, 2, True, -1), CutShard(2, 2, True, -1)]
    results = copied(*homes, shards, {1: LogInMemory(taker.batches), 2: LogInMemory(giver.batches)})
    assert [result.owed for result in results] == [2, 0]
    restored, _ = open_store(ShardFile(str(homes[1]), 1, 1, 2, UnsyncedDisk()), suspect=False, file_id=1, now_ns=NOW_NS)
    assert owed(restored) == ["1:account-topped_up", "2:account-topped_up"]
    restored.close()


def test_of_a_shard_of_another_host_everything_since_it_had_settled_all_is_owed(
    homes: tuple[Path, Path], tmp_path: Path, ledger: Ledger
) -> None:
    shard = recorded_elsewhere(tmp_path, ledger, 1, 5)
    results = copied(*homes, [CutShard(1, 4, False, 2)], {1: LogInMemory(shard.batches)}, is_apart=True)
    assert [(result.owed, result.settled, result.remarks) for result in results] == [(2, 2, [])]
    store = Store(str(homes[1]), 1, UnsyncedDisk())
    assert owed(store) == ["3:account-topped_up", "4:account-topped_up"]
    store.close()


def test_of_a_shard_of_another_host_of_which_nothing_is_known_all_is_owed_where_notices_are_told(
    homes: tuple[Path, Path], tmp_path: Path, ledger: Ledger
) -> None:
    """As of one that has just begun to be served: what it owes may not be missing in a backup."""
    here = Recorded(homes[0], 1)
    there = recorded_elsewhere(tmp_path, ledger, 2, 3)
    here.store.close()
    shards = [CutShard(1, 0, True, -1), CutShard(2, 2, False, -1)]
    results = copied(*homes, shards, {1: LogInMemory([]), 2: LogInMemory(there.batches)}, is_apart=True)
    assert [(result.shard, result.owed, result.settled) for result in results] == [(1, 0, 0), (2, 2, 0)]
    store = Store(str(homes[1]), 2, UnsyncedDisk())
    assert owed(store) == ["1:account-topped_up", "2:account-topped_up"]
    store.close()


def test_what_the_log_of_another_host_has_no_more_is_said(
    homes: tuple[Path, Path], ledger: Ledger, tmp_path: Path
) -> None:
    shard = recorded_elsewhere(tmp_path, ledger, 1, 5)
    (result,) = copied(*homes, [CutShard(1, 5, False, 1)], {1: LogInMemory(shard.batches, first=4)}, is_apart=True)
    assert result.owed == 2
    assert result.remarks == ["in neither file nor journal, so that nobody is told of it: 2 batches"]


def test_where_nobody_is_told_of_anything_nothing_is_copied(homes: tuple[Path, Path]) -> None:
    shards = [CutShard(1, 5, True, -1), CutShard(2, 5, False, -1)]
    assert copied(*homes, shards, {}) == []
    assert not homes[1].exists()
    ensure_file(ShardFile(str(homes[0]), 1, 1, 5, UnsyncedDisk()), 7, NOW_NS)
    assert Path(file_of(str(homes[0]), 1)).exists()
    (result,) = copied(*homes, shards[:1], {1: LogInMemory([b""] * 5)})
    assert (result.owed, result.settled) == (0, 5), "it had begun there"
