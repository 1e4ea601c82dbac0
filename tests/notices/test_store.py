"""The file of owed notices: what it owes follows from the batches, through crashes, cuts and moves."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from billing.follower.store import Ahead, Damaged, ShardFile, StoreError, _has_lost_its_end, file_of
from billing.ledger import commands as ops
from billing.ledger.ledger import Ledger, Rules
from billing.notices.link import settled_untold
from billing.notices.opening import abandon, begun_of, ensure_file, open_store, skip
from billing.notices.store import KIND, Store
from shards.batch import CAME_TO_NOTHING, ENTRY, LEAVE, RECEIVED
from tests.history.test_store import batch_of
from tests.notices.names import numbered
from tests.shards.system.unsynced import UnsyncedDisk

COIN = 10**9
PAGE_BYTES = 4096
NOW_NS = 1_700_000_000 * COIN


class Shard:
    """A ledger of bucket 1 and the file of its shard."""

    def __init__(self, home: Path, shard: int, generation: int = 1, head: int = 0) -> None:
        self.home, self.shard, self.generation = home, shard, generation
        self.position = head
        ensure_file(ShardFile(str(home), shard, 1, head, UnsyncedDisk()), 100 + shard, NOW_NS)
        self.open()

    def open(self) -> None:
        file = ShardFile(str(self.home), self.shard, 1, self.position, UnsyncedDisk())
        self.store, _ = open_store(file, suspect=False, file_id=200, now_ns=NOW_NS)

    def take(self, *records: tuple[int, int, int, bytes]) -> None:
        self.position += 1
        self.store.take(self.position, batch_of(*records), NOW_NS)

    def names(self) -> list[str]:
        self.store.flush()
        gone = self.store.departed
        return [numbered(row[5]) for row in self.store.after(0, 1000) if (row[1], row[2]) not in gone]


@pytest.fixture
def ledger() -> Ledger:
    ledger_made = Ledger(Rules(accrue=False, request_ids_per_bucket=10, restore=False), lambda ref, due_ns: due_ns)
    ledger_made.create(1)
    ledger_made.wake(1)
    return ledger_made


def top_up(ledger: Ledger, shard: Shard, user: bytes = b"u") -> None:
    ledger.apply(1, 1, (ops.TOP_UP, user, COIN, 0, 0, b"", b"", b"", b"", b""))
    shard.take(*((ENTRY, bucket, shard.generation, body) for bucket, body in ledger.records))
    ledger.records.clear()


def test_what_is_not_acknowledged_is_owed_over_any_end(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    shard = Shard(tmp_path, 0)
    for _ in range(3):
        top_up(ledger, shard)
    assert shard.names() == [f"{entry}:account-topped_up" for entry in (1, 2, 3)]
    shard.store.acknowledge(1)
    shard.store.flush()
    shard.store.acknowledge(2)  # and the end comes before it is recorded
    shard.store.db.close()
    shard.open()
    assert shard.names() == ["2:account-topped_up", "3:account-topped_up"]
    assert shard.store.owed() == 2
    assert shard.store.oldest_ns() == 1


def test_a_log_that_lost_its_end_on_the_medium_brings_no_older_page_back(tmp_path: Path, ledger: Ledger) -> None:
    (there := tmp_path / "there").mkdir(mode=0o700)
    shard = Shard(there, 0)
    for _ in range(40):
        top_up(ledger, shard)
        shard.store.flush()
    assert shard.store.checkpoint()
    names, log = shard.names(), Path(f"{file_of(str(there), 0)}-wal").read_bytes()
    frame_bytes, said = 24 + 4096, set()
    for frames in range((len(log) - 32) // frame_bytes):
        home = tmp_path / f"{frames}-frames"
        home.mkdir(mode=0o700)
        shutil.copy(file_of(str(there), 0), home)
        shutil.copy(begun_of(str(there), 0), home)
        kept = 32 + frames * frame_bytes
        Path(f"{file_of(str(home), 0)}-wal").write_bytes(log[:kept] + bytes(len(log) - kept))
        file = ShardFile(str(home), 0, 41, 40, UnsyncedDisk())  # the journal is trimmed as far as that was proved
        store, remarks = open_store(file, suspect=False, file_id=200, now_ns=NOW_NS)
        assert store.position == 40
        said |= {remark.split(" up to")[0] for remark in remarks}
        assert [numbered(row[5]) for row in store.after(0, 1000)] == names
        store.close()
    assert said == {"it was damaged, and is made anew of 40 owed notices"}  # and never that anything was lost
    shard.store.close()


def test_a_log_that_cannot_be_read_now_has_lost_nothing(tmp_path: Path, ledger: Ledger) -> None:
    """As on a disk that fails or is full: leaving the log out would lose what it holds."""
    tmp_path.chmod(0o700)
    shard = Shard(tmp_path, 0)
    top_up(ledger, shard)
    shard.store.flush()
    assert shard.store.checkpoint()
    shard.store.close()
    path = file_of(str(tmp_path), 0)
    (log := Path(f"{path}-wal")).mkdir()  # no bytes can be read of it
    with pytest.raises(sqlite3.OperationalError):
        _has_lost_its_end(path, KIND)
    log.rmdir()
    assert not _has_lost_its_end(path, KIND)


def test_it_begins_where_it_is_founded_and_is_founded_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    shard = Shard(tmp_path, 3, head=17)
    assert shard.store.position == 17
    shard.store.close()
    ensure_file(ShardFile(str(tmp_path), 3, 1, 99, UnsyncedDisk()), 7, NOW_NS)
    assert Store(str(tmp_path), 3, UnsyncedDisk()).position == 17
    (tmp_path / "shard-4.sqlite").write_bytes(Path(file_of(str(tmp_path), 3)).read_bytes())
    with pytest.raises(StoreError, match="of shard 3"):
        Store(str(tmp_path), 4, UnsyncedDisk())
    assert abandon(str(tmp_path), 3, UnsyncedDisk())
    assert not abandon(str(tmp_path), 3, UnsyncedDisk())


def test_what_another_host_has_told_is_not_told_again(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    shard = Shard(tmp_path, 0)
    top_up(ledger, shard)
    shard.store.flush()
    shard.store.close()
    home, disk = str(tmp_path), UnsyncedDisk()
    assert not skip(home, 0, shard.position, disk), "it is as far as that itself"
    assert not skip(home, 0, -1, disk), "nothing is known of other hosts"
    assert skip(home, 0, 40, disk)
    assert ensure_file(ShardFile(home, 0, 1, 40, disk), 5, NOW_NS) == ""
    store = Store(home, 0, disk)
    assert (store.position, store.owed(), store.settled()) == (40, 0, 40)
    store.close()


def test_while_nobody_is_told_what_is_settled_goes_on_with_the_journal(tmp_path: Path, ledger: Ledger) -> None:
    """So a host that takes over, once a URL is named again, tells what happens from then on, and nothing of before."""
    tmp_path.chmod(0o700)
    shard = Shard(tmp_path, 0)
    top_up(ledger, shard)
    shard.store.flush()
    before = shard.store.settled()
    shard.store.close()
    assert settled_untold(-1, 50) == -1, "no host has ever told anything: there is nothing to record"
    assert skip(str(tmp_path), 0, settled_untold(before, 50), UnsyncedDisk()), "what this host still owed is of before"
    ensure_file(ShardFile(str(tmp_path), 0, 1, settled_untold(before, 50), UnsyncedDisk()), 300, NOW_NS)
    store = Store(str(tmp_path), 0, UnsyncedDisk())
    assert (store.position, store.owed()) == (50, 0)
    store.close()


def test_what_is_settled_ends_before_the_oldest_that_is_owed(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    shard = Shard(tmp_path, 0)
    for _ in range(3):
        top_up(ledger, shard)
    shard.store.flush()
    settled = []
    for seq in (1, 2, 3):
        settled.append(shard.store.settled())
        shard.store.acknowledge(seq)
        shard.store.flush()
    assert [*settled, shard.store.settled()] == [0, 1, 2, 3]
    shard.store.close()


def test_what_a_claim_put_behind_later_notices_is_not_settled_before_it_is_told(tmp_path: Path, ledger: Ledger) -> None:
    """Else a host that takes over would begin behind it, and nobody would ever tell it."""
    tmp_path.chmod(0o700)
    source, target = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    top_up(ledger, source)
    source.take((LEAVE, 1, 1, b""))
    target.take((RECEIVED, 1, 2, b""))  # batch 1
    top_up(ledger, target)  # batch 2, of the bucket that came
    ledger.apply(1, 1, (ops.TOP_UP, b"v", COIN, 0, 0, b"", b"", b"", b"", b""))
    target.take(*((ENTRY, 3, 1, body) for _, body in ledger.records))  # batch 3, of a bucket that was always here
    target.store.flush()
    source.store.flush()
    assert target.store.claim(1)
    taken_over = [seq for seq, bucket_id, generation, *_ in target.store.after(0, 10) if bucket_id == 1]
    assert target.store.settled() == -1, "what came from elsewhere is in no batch of this journal"
    target.store.acknowledge(taken_over[0])
    target.store.flush()
    assert target.store.settled() == 1, "batch 2 is still to be told, though batch 3 comes before it"
    target.take((LEAVE, 1, 2, b""))
    target.store.flush()
    assert target.store.settled() == 1, "also once its bucket has left, as long as nobody has taken it over"
    target.store.acknowledge(taken_over[1])
    target.store.flush()
    assert target.store.settled() == 2
    target.store.close()


def test_a_file_ahead_of_its_journal_is_cut_back_and_one_behind_it_says_what_is_missing(
    tmp_path: Path, ledger: Ledger
) -> None:
    tmp_path.chmod(0o700)
    shard = Shard(tmp_path, 0)
    for _ in range(4):
        top_up(ledger, shard)
    shard.store.close()
    store = Store(str(tmp_path), 0, UnsyncedDisk())
    with pytest.raises(Ahead, match="up to batch 4, its journal only up to 2"):
        store.settle(1, 2)
    assert "keeps what it was" in store.settle(1, 2, accept_loss=True)[0]
    assert [numbered(row[5]) for row in store.after(0, 10)] == ["1:account-topped_up", "2:account-topped_up"]
    assert store.position == 2
    assert "5 batches" in store.settle(8, 20)[0]
    assert store.position == 7


def test_a_bucket_takes_along_what_it_owes_once_its_departure_is_on_record(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    source, target = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    for _ in range(2):
        top_up(ledger, source)
    source.store.flush()
    target.take((RECEIVED, 1, 2, b""))
    top_up(ledger, target)
    target.store.flush()
    assert target.store.pending == {1: 2}
    assert not target.store.claim(1)
    source.take((LEAVE, 1, 1, b""))
    assert source.names() == []
    assert target.store.claim(1)
    assert target.names() == [f"{entry}:account-topped_up" for entry in (1, 2, 3)]
    assert source.store.delete_claimed() == 0, "nobody has proved yet that it is there"
    assert target.store.checkpoint()
    target.store.publish_claims()
    assert source.store.has_departed()
    assert source.store.delete_claimed() == 2
    assert source.store.after(0, 10) == []
    assert not source.store.has_departed()
    assert target.store.pending == {}
    target.store.db.close()
    target.open()
    assert target.names() == [f"{entry}:account-topped_up" for entry in (1, 2, 3)]


def test_what_was_told_before_its_bucket_was_taken_over_is_not_owed_again_by_a_file_that_was_set_back(
    tmp_path: Path, ledger: Ledger
) -> None:
    """Else nobody would tell it or delete it, and a shard that is to go never would."""
    tmp_path.chmod(0o700)
    source, target = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    for _ in range(2):
        top_up(ledger, source)
    source.store.flush()
    assert source.store.checkpoint()
    path = Path(file_of(str(tmp_path), 0))
    before, position = path.read_bytes(), source.position
    for seq in (1, 2):
        source.store.acknowledge(seq)
    source.take((LEAVE, 1, 1, b""))
    source.store.flush()
    target.take((RECEIVED, 1, 2, b""))
    target.store.flush()
    assert target.store.claim(1)
    assert target.names() == []
    source.store.db.close()
    path.write_bytes(before)
    source.position = position
    source.open()
    assert source.store.owed() == 2
    assert source.store.delete_claimed() == 0, "the bucket has not left again yet"
    source.take((LEAVE, 1, 1, b""))
    source.store.flush()
    made_ns, source.store.made_ns = source.store.made_ns, NOW_NS + 1
    assert source.store.delete_claimed() == 0, "of a file that was made since, nobody knows what was told"
    source.store.made_ns = made_ns
    assert source.store.delete_claimed() == 2
    assert source.store.owed() == 0


def test_there_and_back_before_anything_was_claimed(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    home, away = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    top_up(ledger, home)
    home.take((LEAVE, 1, 1, b""))
    away.take((RECEIVED, 1, 2, b""))
    top_up(ledger, away)
    away.take((LEAVE, 1, 2, b""))
    away.store.flush()
    home.generation = 3
    home.take((RECEIVED, 1, 3, b""))
    top_up(ledger, home)
    home.store.flush()
    assert home.store.claim(1)
    assert home.names() == [f"{entry}:account-topped_up" for entry in (1, 2, 3)]
    assert home.store.checkpoint()
    home.store.publish_claims()
    assert away.store.delete_claimed() == 1
    assert away.store.after(0, 10) == []


def test_what_was_claimed_is_claimed_once_whoever_dies_before_it_is_deleted(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    source, target, third = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2), Shard(tmp_path, 2, generation=3)
    top_up(ledger, source)
    source.take((LEAVE, 1, 1, b""))
    source.store.flush()
    target.take((RECEIVED, 1, 2, b""))
    target.store.flush()
    assert target.store.claim(1)
    target.store.acknowledge(target.store.after(0, 10)[0][0])  # told, and gone
    top_up(ledger, target)
    target.take((LEAVE, 1, 2, b""))
    target.store.flush()
    third.take((RECEIVED, 1, 3, b""))
    top_up(ledger, third)
    third.store.flush()
    assert third.store.claim(1)
    assert third.names() == ["2:account-topped_up", "3:account-topped_up"]


def test_the_target_waits_for_all_who_owe_however_slow_they_are(tmp_path: Path, ledger: Ledger) -> None:
    """A bucket goes on before its shard has taken over what the first one owes: the third one waits for both."""
    tmp_path.chmod(0o700)
    source, target, third = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2), Shard(tmp_path, 2, generation=3)
    top_up(ledger, source)
    target.take((RECEIVED, 1, 2, b""))
    top_up(ledger, target)
    target.take((LEAVE, 1, 2, b""))
    target.store.flush()
    third.take((RECEIVED, 1, 3, b""))
    top_up(ledger, third)
    third.store.flush()
    assert not third.store.claim(1), "the first one has not recorded the departure, and may owe more"
    source.take((LEAVE, 1, 1, b""))
    source.store.flush()
    assert third.store.claim(1)
    assert third.names() == [f"{entry}:account-topped_up" for entry in (1, 2, 3)]


def test_a_departure_that_is_lost_with_its_file_is_not_waited_for(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    source, target = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    top_up(ledger, source)
    source.store.close()
    target.take((RECEIVED, 1, 2, b""))
    target.store.flush()
    assert not target.store.claim(1)
    Path(file_of(str(tmp_path), 0)).unlink()
    remark = ensure_file(ShardFile(str(tmp_path), 0, 5, 9, UnsyncedDisk()), 300, NOW_NS + 1)
    assert "made anew from batch 5" in remark
    assert target.store.claim(1)


def test_a_wait_that_was_given_up_is_over_and_what_comes_later_is_taken_over_all_the_same(
    tmp_path: Path, ledger: Ledger
) -> None:
    tmp_path.chmod(0o700)
    source, target = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    top_up(ledger, source)
    source.store.flush()
    top_up(ledger, source)  # which stands in the journal, and not yet in the file
    target.take((RECEIVED, 1, 2, b""))
    top_up(ledger, target)
    target.store.flush()
    assert not target.store.claim(1)
    target.store.give_up(1)
    assert target.names() == ["1:account-topped_up", "3:account-topped_up"], "what is on record comes first"
    assert not target.store.pending
    target.store.close()
    target.open()
    assert target.store.given_up == {1: 2}, "and that outlives the process"
    assert not target.store.claim(1)
    source.take((LEAVE, 1, 1, b""))
    source.store.flush()
    assert target.store.claim(1)
    assert target.names() == ["2:account-topped_up", "1:account-topped_up", "3:account-topped_up"]
    assert not target.store.given_up
    target.store.checkpoint()
    target.store.publish_claims()
    assert source.store.delete_claimed() == 2
    assert source.store.owed() == 0


def test_a_wait_beside_a_damaged_file_of_another_shard_is_given_up_too(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    source, target = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    source.store.close()
    Path(file_of(str(tmp_path), 0)).write_bytes(b"damaged" * 1000)
    target.take((RECEIVED, 1, 2, b""))
    top_up(ledger, target)
    target.store.flush()
    assert not target.store.claim(1)
    target.store.give_up(1)
    assert target.names() == ["1:account-topped_up"]
    assert target.store.given_up == {1: 2}


def test_what_was_given_up_is_on_record_as_not_taken_over_when_the_bucket_goes_on(
    tmp_path: Path, ledger: Ledger
) -> None:
    """So the next shard waits for the first one as well."""
    tmp_path.chmod(0o700)
    source, target, third = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2), Shard(tmp_path, 2, generation=3)
    target.take((RECEIVED, 1, 2, b""))
    target.store.flush()
    target.store.give_up(1)
    target.take((LEAVE, 1, 2, b""))
    target.store.flush()
    assert not target.store.given_up
    third.take((RECEIVED, 1, 3, b""))
    third.store.flush()
    assert not third.store.claim(1)
    source.take((LEAVE, 1, 1, b""))
    source.store.flush()
    assert third.store.claim(1)


def test_a_file_that_is_gone_is_made_anew_as_far_as_the_journal_reaches(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    shard = Shard(tmp_path, 0)
    top_up(ledger, shard)
    shard.store.close()
    Path(file_of(str(tmp_path), 0)).unlink()
    assert "made anew from batch 1" in ensure_file(ShardFile(str(tmp_path), 0, 1, 1, UnsyncedDisk()), 300, NOW_NS)
    assert Store(str(tmp_path), 0, UnsyncedDisk()).position == 0
    Path(begun_of(str(tmp_path), 0)).unlink()
    Path(file_of(str(tmp_path), 0)).unlink()
    assert ensure_file(ShardFile(str(tmp_path), 0, 1, 1, UnsyncedDisk()), 300, NOW_NS) == ""
    assert Store(str(tmp_path), 0, UnsyncedDisk()).position == 1, "there never were any"


def test_a_move_that_came_to_nothing_leaves_no_mark(tmp_path: Path, ledger: Ledger) -> None:
    tmp_path.chmod(0o700)
    source, target = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    top_up(ledger, source)
    target.take((RECEIVED, 1, 2, b""))
    target.take((LEAVE, 1, 2, CAME_TO_NOTHING))
    target.store.flush()
    assert target.store.here == {}
    assert target.store.departed == set()
    target.take((RECEIVED, 1, 2, b""))
    source.take((LEAVE, 1, 1, b""))
    source.store.flush()
    top_up(ledger, target)
    target.store.flush()
    assert target.store.claim(1)
    assert target.names() == ["1:account-topped_up", "2:account-topped_up"]


def test_a_notice_that_is_not_what_was_written_is_never_taken_up(tmp_path: Path, ledger: Ledger) -> None:
    shard = Shard(tmp_path, 0)
    for _ in range(3):
        top_up(ledger, shard)
    assert len(shard.names()) == 3
    shard.store.db.execute("UPDATE owed SET body = replace(body, '1', '2') WHERE seq = 2")
    with pytest.raises(Damaged, match="notice 2 is not what was written"):
        shard.store.after(0, 10)
    with pytest.raises(Damaged, match="notice 2"):
        shard.store.of_user(b"u", 0, 10, 10)


def test_a_damaged_file_of_another_shard_is_waited_for_and_ends_nobody(tmp_path: Path, ledger: Ledger) -> None:
    former, present = Shard(tmp_path, 0), Shard(tmp_path, 1)
    top_up(ledger, former)
    former.take((LEAVE, 1, 1, b""))
    former.store.flush()
    former.store.checkpoint()
    present.take((RECEIVED, 1, 2, b""))
    present.store.flush()
    path = Path(file_of(str(tmp_path), 0))
    intact = path.read_bytes()
    path.write_bytes(intact[:100] + bytes(len(intact) - 100))
    assert not present.store.claim(1)
    assert present.store.delete_claimed() == 0
    assert present.store.pending == {1: 2}
    path.write_bytes(intact)
    assert present.store.claim(1)
    assert [numbered(row[5]) for row in present.store.after(0, 10)] == ["1:account-topped_up"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE owed SET body = replace(body, '1', '2')",
        "UPDATE departures SET pending = 'x'",
        "INSERT INTO claims VALUES (1, 100, 'x', 1, 0)",
        "INSERT INTO claims VALUES (1, 100, 5, 1, 0)",
        "UPDATE about SET file_id = 'x'",
    ],
)
def test_damaged_values_in_the_file_of_another_shard_are_waited_for(
    tmp_path: Path, ledger: Ledger, damage: str
) -> None:
    """Of the type that was written or of another one: nothing of it is taken over, and nobody but its shard ends."""
    former, present = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    top_up(ledger, former)
    former.take((LEAVE, 1, 1, b""))
    former.store.flush()
    present.take((RECEIVED, 1, 2, b""))
    present.store.flush()
    former.store.db.execute(damage)
    assert not present.store.claim(1)
    assert present.store.delete_claimed() == 0
    assert present.store.pending == {1: 2}


def test_a_damaged_notice_that_another_shard_is_to_take_over_is_found_by_its_own_process(
    tmp_path: Path, ledger: Ledger
) -> None:
    former = Shard(tmp_path, 0)
    top_up(ledger, former)
    former.take((LEAVE, 1, 1, b""))
    former.store.flush()
    assert former.store.delete_claimed() == 0
    former.store.db.execute("UPDATE owed SET body = replace(body, '1', '2')")
    with pytest.raises(Damaged, match="notice 1 is not what was written"):
        former.store.delete_claimed()


def test_a_damaged_notice_gets_no_new_checksum_with_its_new_number(tmp_path: Path, ledger: Ledger) -> None:
    former, present = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    former.take((LEAVE, 1, 1, b""))
    former.store.flush()
    present.take((RECEIVED, 1, 2, b""))
    top_up(ledger, present)
    present.store.flush()
    present.store.db.execute("UPDATE owed SET body = replace(body, '1', '2')")
    with pytest.raises(Damaged, match="notice 1 is not what was written"):
        present.store.claim(1)


def moved(tmp_path: Path, ledger: Ledger) -> Shard:
    """A shard that owes a notice, gave its bucket away and was given another; its file is not open."""
    shard = Shard(tmp_path, 0)
    top_up(ledger, shard)
    shard.take((LEAVE, 1, 1, b""))
    shard.take((RECEIVED, 2, 2, b""))
    shard.store.close()
    return shard


def changed(shard: Shard, *statements: str) -> None:
    """Carries these out on the file."""
    db = sqlite3.connect(file_of(str(shard.home), shard.shard), isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE about SET position = 2",
        "UPDATE about SET seq = 0",
        "UPDATE about SET made_ns = 5",
        "UPDATE departures SET pending = 1",
        "UPDATE arrivals SET pending = 0",
        "UPDATE arrivals SET bucket_id = 3",
    ],
)
def test_a_changed_row_is_seen_and_the_file_is_made_anew(tmp_path: Path, ledger: Ledger, damage: str) -> None:
    """Else a batch would be left out, or an order be broken, and nobody could tell."""
    shard = moved(tmp_path, ledger)
    changed(shard, damage)
    with pytest.raises(Damaged, match="a row is not what was written"):
        shard.open()
    store, remarks = open_store(
        ShardFile(str(tmp_path), 0, 1, 3, UnsyncedDisk()), suspect=True, file_id=300, now_ns=NOW_NS
    )
    assert "it was damaged" in remarks[0]
    assert store.position == 0, "it is fed from the beginning of the journal"


def test_a_page_that_cannot_be_read_takes_no_row_of_other_pages_along(tmp_path: Path, ledger: Ledger) -> None:
    """The journal does not have them any more, and nobody would miss them: those that were told are gone, too. The row
    before the page had been lost, and every row behind it.
    """
    shard = Shard(tmp_path, 0)
    for _ in range(40):
        top_up(ledger, shard)
    shard.store.flush()
    rows = list(shard.store.after(0, 1000))
    shard.store.close()
    file = Path(file_of(str(tmp_path), 0))
    data = bytearray(file.read_bytes())
    page_of = {row[0]: data.index(row[5].encode()) // PAGE_BYTES for row in rows}
    damaged = page_of[20]
    data[damaged * PAGE_BYTES : (damaged + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)
    file.write_bytes(data)
    behind = ShardFile(str(tmp_path), 0, shard.position + 1, shard.position, UnsyncedDisk())
    store, remarks = open_store(behind, suspect=True, file_id=300, now_ns=NOW_NS)
    sound = [row for row in rows if page_of[row[0]] != damaged]
    assert 30 < len(sound) < 40
    assert list(store.after(0, 1000)) == sound
    assert f"is made anew of {len(sound)} owed notices up to batch 40" in remarks[0]


def test_a_file_of_the_version_without_checksums_is_converted(tmp_path: Path, ledger: Ledger) -> None:
    shard = moved(tmp_path, ledger)
    tables = ("about", "departures", "arrivals", "claims")
    changed(shard, *(f"ALTER TABLE {table} DROP COLUMN checksum" for table in tables), "PRAGMA user_version = 2")
    shard.open()
    store = shard.store
    assert (store.position, store.departed, store.pending) == (3, {(1, 1)}, {2: 2})
    assert [numbered(row[5]) for row in store.after(0, 10)] == ["1:account-topped_up"]
    ((_, _, seq, *_),) = store.db.execute("SELECT * FROM about")
    assert seq == 1, "the highest number that was given, also before the next commit"


def test_where_the_files_are_on_several_hosts_each_shard_tells_what_its_own_journal_holds(
    tmp_path: Path, ledger: Ledger
) -> None:
    tmp_path.chmod(0o700)
    source, target = Shard(tmp_path, 0), Shard(tmp_path, 1, generation=2)
    for shard in (source, target):
        shard.store.is_apart = True
    for _ in range(2):
        top_up(ledger, source)
    target.take((RECEIVED, 1, 2, b""))
    top_up(ledger, target)
    source.take((LEAVE, 1, 1, b""))
    assert source.names() == [f"{entry}:account-topped_up" for entry in (1, 2)], (
        "whoever takes this shard over tells it"
    )
    assert source.store.settled() == 0
    assert target.names() == ["3:account-topped_up"]
    assert target.store.pending == {}
    assert not source.store.has_departed()
    assert source.store.delete_claimed() == 0
