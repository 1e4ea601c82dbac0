"""The shard without I/O: sync, then speak; what time caused may speak earlier; replay makes the same shard."""

from __future__ import annotations

from typing import Any

import pytest

from shards.batch import LEAVE, BatchCorrupt, join_batch, split_batch
from shards.buckets import HASH_NAME, BucketMap
from shards.replies import WrongBucket
from shards.shard import BATCH_RECORDS_MAX, RIDING_MAX, Shard
from shards.worker.recover import Damaged, check_ownership
from tests.shards.counters import Counters


class RecordingCaller:
    """A caller that notes what it is told and when it is let go."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, Any]] = []

    def answer(self, token: object, reply: object) -> None:
        self.heard.append((token, reply))

    def flush(self) -> None:
        """Nothing is held back here."""

    def refuse(self, token: object, reply: object) -> None:
        self.answer(token, reply)


def new_shard(*bucket_ids: int) -> Shard:
    shard = Shard(1, Counters())
    shard.serve(0)
    for bucket_id in bucket_ids:
        shard.adopt(bucket_id, 1)
    ready = shard.take_ready()
    if ready is not None:
        shard.synced(ready)
    return shard


def test_a_reply_comes_with_the_batch_that_holds_its_record() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    shard.receive(caller, "a", 7, ("add", "x", 5), 100)
    ready = shard.take_ready()
    assert ready is not None
    assert ready.replies == [(caller, "a", 5)]
    assert [body for _, _, _, body in split_batch(ready.payload)] == [b'[100, ["add", "x", 5], 5]']


def test_one_batch_is_out_at_a_time_and_all_that_came_meanwhile_is_in_the_next() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    shard.receive(caller, 1, 7, ("add", "x", 1), 100)
    first = shard.take_ready()
    assert first is not None
    for token in (2, 3, 4):
        shard.receive(caller, token, 7, ("add", "x", 1), 101)
    assert shard.take_ready() is None
    shard.synced(first)
    second = shard.take_ready()
    assert second is not None
    assert [token for _, token, _ in second.replies] == [2, 3, 4]
    assert second.records == 3


def test_a_read_leaves_no_earlier_than_what_it_may_have_seen() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    shard.receive(caller, "write", 7, ("add", "x", 1), 100)
    ready = shard.take_ready()
    assert ready is not None
    shard.read(caller, "read", 7, ("get", "x"), 100)
    assert shard.take_ready() is None  # the write it saw is not durable
    shard.synced(ready)
    later = shard.take_ready()
    assert later is not None
    assert later.payload == b""
    assert later.replies == [(caller, "read", 1)]


def test_a_bucket_of_another_shard_is_refused_and_nothing_is_recorded() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    shard.receive(caller, "a", 8, ("add", "x", 5), 100)
    ready = shard.take_ready()
    assert ready is not None
    assert ready.payload == b""
    assert ready.replies == [(caller, "a", WrongBucket(8, 1))]


def test_nobody_waits_for_a_report_and_no_instant_depends_on_it() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    shard.receive(caller, "a", 7, ("at", "x", 500), 100)
    ready = shard.take_ready()
    assert ready is not None
    shard.synced(ready)
    shard.report([(7, ("add", "y", 1))], 300)
    assert shard.has_more()
    assert not shard.is_awaited()
    shard.tick(500, 10)
    assert shard.is_awaited(), "a notice waits until it was taken"
    assert [notice[0] for notice in shard.take_early()], "the report that is not durable does not hold it up"
    assert not shard.is_awaited()
    shard.apply(7, ("add", "y", 1), 600)
    shard.read(caller, "read", 7, ("get", "y"), 600)
    assert shard.is_awaited()


def test_as_many_records_as_are_worth_a_batch_are_awaited() -> None:
    shard = new_shard(7)
    for _ in range(RIDING_MAX - 1):
        shard.report([(7, ("add", "y", 1))], 300)
    assert not shard.is_awaited()
    shard.report([(7, ("add", "y", 1))], 300)
    assert shard.is_awaited()


def test_what_time_caused_leaves_without_a_sync_once_its_cause_is_durable() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    shard.receive(caller, "a", 7, ("at", "x", 500), 100)
    ready = shard.take_ready()
    assert ready is not None
    shard.synced(ready)
    shard.tick(500, 10)
    assert shard.take_early() == [("fired", 100, 7, "x")]
    record = shard.take_ready()
    assert record is not None
    assert record.notices == []


def test_what_time_caused_waits_while_its_cause_is_not_durable() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    shard.receive(caller, "a", 7, ("at", "x", 500), 100)
    ready = shard.take_ready()
    assert ready is not None
    shard.tick(500, 10)
    assert shard.take_early() == []
    shard.synced(ready)
    assert shard.take_early() == [("fired", 100, 7, "x")]


def test_another_users_command_in_flight_does_not_hold_it_back() -> None:
    shard, caller = new_shard(7, 8), RecordingCaller()
    shard.receive(caller, "a", 7, ("at", "x", 500), 100)
    ready = shard.take_ready()
    assert ready is not None
    shard.synced(ready)
    shard.receive(caller, "b", 8, ("add", "y", 1), 400)
    assert shard.take_ready() is not None
    shard.tick(500, 10)
    assert shard.take_early() == [("fired", 100, 7, "x")]


def test_a_notice_that_a_command_caused_waits_for_the_commands_sync() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    shard.receive(caller, "a", 7, ("tell", "x"), 100)
    assert shard.take_early() == []
    ready = shard.take_ready()
    assert ready is not None
    assert ready.notices == [("told", 100, 7, "x")]


def test_a_batch_is_closed_at_its_limit() -> None:
    shard, caller = new_shard(7), RecordingCaller()
    for token in range(BATCH_RECORDS_MAX + 10):
        shard.receive(caller, token, 7, ("add", "x", 1), 100)
    sizes = []
    while (ready := shard.take_ready()) is not None:
        sizes.append((ready.records, len(ready.replies)))
        shard.synced(ready)
    assert sizes == [(BATCH_RECORDS_MAX, BATCH_RECORDS_MAX), (10, 10)]


def test_a_batch_that_decides_who_owns_a_bucket_says_so() -> None:
    """The map is synced in every mode; so what it was told of must be."""
    shard, caller = new_shard(7), RecordingCaller()
    decisions = []
    for step in (
        lambda: shard.receive(caller, 1, 7, ("add", "x", 1), 100),
        lambda: shard.adopt(8, 1),
        lambda: shard.take_in(9, 2, b"{}"),
        lambda: shard.receive(caller, 2, 7, ("add", "x", 1), 101),
        lambda: shard.leave(8),
    ):
        step()
        ready = shard.take_ready()
        assert ready is not None
        decisions.append(ready.decides)
        shard.synced(ready)
    assert decisions == [False, True, True, False, True]


def test_replay_of_the_batches_makes_the_same_shard() -> None:
    shard, caller, journal = Shard(1, Counters()), RecordingCaller(), []
    shard.serve(0)
    for bucket_id in (3, 4):
        shard.adopt(bucket_id, 1)
    for step in range(50):
        shard.receive(caller, step, 3 + step % 2, ("add", f"n{step % 5}", step), step)
        ready = shard.take_ready()
        assert ready is not None
        journal.append(ready.payload)
        shard.synced(ready)
    again = Shard(1, Counters())
    assert sum(again.replay(position, payload) for position, payload in enumerate(journal, 1)) == 52
    assert again.held == shard.held
    for bucket_id in (3, 4):
        assert again.machine.dump(bucket_id) == shard.machine.dump(bucket_id)


def test_a_part_of_a_snapshot_skips_the_records_that_it_holds() -> None:
    shard, caller, journal = Shard(1, Counters()), RecordingCaller(), []
    shard.serve(0)
    for bucket_id in (3, 4):
        shard.adopt(bucket_id, 1)
    parts = []
    for step in range(20):
        shard.receive(caller, step, 3 + step % 2, ("add", "n", 1), step)
        ready = shard.take_ready()
        assert ready is not None
        journal.append(ready.payload)
        if step == 9:
            parts.append(shard.dump(3, len(journal)))
        if step == 14:
            parts.append(shard.dump(4, len(journal)))
        shard.synced(ready)
    again = Shard(1, Counters())
    assert [again.load(part) for part in parts] == [3, 4]
    for position in range(10, 21):
        again.replay(position, journal[position - 1])
    for bucket_id in (3, 4):
        assert again.machine.dump(bucket_id) == shard.machine.dump(bucket_id)


def test_a_snapshot_begun_in_the_middle_of_a_move_holds_the_bucket_on_either_side() -> None:
    source, target, caller = new_shard(7), Shard(2, Counters()), RecordingCaller()
    target.serve(0)
    source.receive(caller, 1, 7, ("add", "x", 5), 100)
    ready = source.take_ready()
    assert ready is not None
    source.synced(ready)
    source.freeze(7)
    target.take_in(7, 2, source.machine.dump(7))
    ready = target.take_ready()
    assert ready is not None
    target.synced(ready)
    for shard, generation in ((source, 1), (target, 2)):
        assert shard.present() == {7: generation}
        again = Shard(shard.shard_id, Counters())
        assert again.load(shard.dump(7, 1)) == 7
        assert again.held == {7: generation}
        assert again.machine.dump(7) == shard.machine.dump(7)


def stored_copy() -> tuple[Shard, list[bytes]]:
    """A target with a copy that no move was decided for yet, and its journal."""
    source, target = new_shard(7), Shard(2, Counters())
    target.serve(0)
    source.freeze(7)
    target.take_in(7, 2, source.machine.dump(7))
    ready = target.take_ready()
    assert ready is not None
    target.synced(ready)
    return target, [ready.payload]


def recovered(journal: list[bytes], *parts: bytes) -> Shard:
    shard = Shard(2, Counters())
    for part in parts:
        shard.load(part)
    for position, payload in enumerate(journal, 1):
        shard.replay(position, payload)
    return shard


def given_to_another() -> BucketMap:
    """Bucket 7 is shard 1's at generation 2, by a move from shard 3."""
    bucket_map = BucketMap()
    for record in (["create", 7, HASH_NAME, [3]], ["weight", 1, 1], ["assign", 7, 1, 2]):
        bucket_map.apply(record)
    return bucket_map


def test_a_copy_whose_generation_another_target_was_given_is_an_orphan_where_nothing_happened_to_it() -> None:
    """The move to this one came to nothing while it was down, and the bucket went elsewhere, before it was up again."""
    target, journal = stored_copy()
    elsewhere = given_to_another()
    assert check_ownership(recovered(journal), elsewhere, True, False) == [7]
    part = target.dump(7, 1)  # and the same out of a snapshot, of this life and of the next
    once = recovered([], part)
    assert check_ownership(once, elsewhere, True, False) == [7]
    once.serve(0, [7])
    again = recovered([], once.dump(7, 1))
    assert check_ownership(again, elsewhere, True, False) == [7]
    again.serve(0, [7])
    again.forget(7)
    ready = again.take_ready()
    assert ready is not None
    forgotten = recovered([*journal, ready.payload])
    assert check_ownership(forgotten, elsewhere, True, False) == []


def test_a_copy_that_was_served_at_a_generation_of_anothers_is_damage() -> None:
    """Something was answered here: one of the two is an older backup, and nobody throws an answer away."""
    target, journal = stored_copy()
    target.activate(7, 0)
    target.receive(RecordingCaller(), 1, 7, ("add", "x", 5), 100)
    ready = target.take_ready()
    assert ready is not None
    target.synced(ready)
    journal.append(ready.payload)
    for shard in (recovered(journal), recovered(journal[1:], target.dump(7, 1))):
        with pytest.raises(Damaged, match="one of the two is an older backup"):
            check_ownership(shard, given_to_another(), True, False)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x01\x00\x00\x00",
        b"\x01\x00\x00\x00\x03\x00\x00\x00abc",
        b"\x00\x00\x00\x00x",
        b"\x01\x00\x00\x00\x07\x00\x00\x00\x63\x01\x00\x01\x00\x00\x00",
        b"\x01\x00\x00\x00\x07\x00\x00\x00\x01\x01\x00\x01\x00\x00\x00",
    ],
)
def test_a_batch_that_does_not_parse_is_damage(payload: bytes) -> None:
    with pytest.raises(BatchCorrupt):
        Shard(1, Counters()).replay(1, payload)


def test_a_bucket_that_left_while_a_snapshot_began_is_not_missed_at_the_next_start() -> None:
    """Its leaving was not durable when the snapshot chose its buckets, so that holds neither it nor its leaving."""
    replayed = Shard(1, Counters())
    assert replayed.replay(9, join_batch([(LEAVE, 61, 4, b"")], [], {})) == 1
    assert replayed.held == {}
