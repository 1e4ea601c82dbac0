"""The window: bounded, in order, and nothing passed over, whatever order answers come in."""

from __future__ import annotations

import random

import pytest

from billing.notices.window import Row, Window


def row(seq: int, user: int, bucket_id: int = 1) -> Row:
    return (seq, bucket_id, 1, b"u%d" % user, seq, f"{seq}:x", b"body")


@pytest.mark.parametrize("seed", range(20))
def test_every_notice_comes_once_in_order_per_user_and_memory_is_bounded(seed: int) -> None:
    rng = random.Random(seed)
    rows = [row(seq, rng.randrange(30)) for seq in range(1, 800)]
    window = Window(users_max=7, each_max=3)
    delivered: list[tuple[bytes, int]] = []
    while len(delivered) < len(rows):
        for owed in rows[window.cursor : window.cursor + 5]:
            if window.has_room:
                window.put(owed)
        assert len(window.queues) <= 7
        assert sum(len(queue.waiting) for queue in window.queues.values()) <= 7 * 3
        user = rng.choice(sorted(window.queues))
        first = window.first(1, user)
        assert first is not None
        delivered.append((user, first.seq))
        queue = window.done(user, first.seq)
        if queue is not None:
            behind = [r for r in rows if r[3] == user and queue.last_seq < r[0] <= window.cursor]
            window.refill(user, behind[: window.each_max], window.each_max)
    assert sorted(seq for _, seq in delivered) == [r[0] for r in rows]
    for user in {user for user, _ in delivered}:
        seqs = [seq for told_user, seq in delivered if told_user == user]
        assert seqs == sorted(seqs)


def test_a_bucket_that_left_is_gone_and_an_answer_that_comes_late_is_nothing() -> None:
    window = Window()
    window.put(row(1, 1, bucket_id=4))
    window.put(row(2, 2, bucket_id=5))
    window.drop(4)
    assert window.first(4, b"u1") is None
    assert window.done(b"u1", 1) is None
    assert window.first(5, b"u2") is not None
    assert window.first(4, b"u2") is None


@pytest.mark.parametrize("seed", range(20))
def test_users_who_are_unloaded_take_no_place_and_lose_nothing(seed: int) -> None:
    rng = random.Random(seed)
    rows = [row(seq, rng.randrange(60)) for seq in range(1, 800)]
    gone = {r[0] for r in rows if rng.random() < 0.1}  # not to be sent from here
    window = Window(users_max=7, each_max=3, failing_max=20)
    delivered: list[tuple[bytes, int]] = []

    def refill(user: bytes, limit: int) -> None:
        is_to_go_on = True
        while is_to_go_on:
            last_seq = window.queues[user].last_seq
            behind = [r for r in rows if r[3] == user and last_seq < r[0] <= window.cursor]
            is_to_go_on = window.refill(user, behind[:limit], limit, lambda r: r[0] not in gone)

    while len(delivered) < len(rows) - len(gone):
        for owed in rows[window.cursor : window.cursor + 5]:
            if owed[0] in gone:
                window.skip(owed[0])
            elif window.has_room:
                window.put(owed)
            else:
                break
        assert len(window.queues) <= 7 + 20
        assert sum(len(queue.waiting) for queue in window.queues.values()) <= 7 * 3 + 20
        user = rng.choice(sorted(window.queues))
        if window.is_unloaded(user):
            assert window.first(1, user) is None
            refill(user, 1)
        if (first := window.first(1, user)) is None:
            continue  # only what is not to be sent from here was left
        if rng.random() < 0.6:
            window.unload(user, first.seq)
            continue
        delivered.append((user, first.seq))
        had_room = window.has_room
        if window.done(user, first.seq) is not None:
            refill(user, window.each_max if had_room else 1)
    assert sorted(seq for _, seq in delivered) == [r[0] for r in rows if r[0] not in gone]
    for user in {user for user, _ in delivered}:
        seqs = [seq for told_user, seq in delivered if told_user == user]
        assert seqs == sorted(seqs)


def test_an_unloaded_user_whose_bucket_leaves_takes_no_place() -> None:
    window = Window(users_max=1, failing_max=1)
    for number in range(3):
        assert window.has_room
        window.put(row(number + 1, number, bucket_id=number))
        window.unload(b"u%d" % number, number + 1)
        window.drop(number)
    window.put(row(4, 4))
    assert not window.has_room
