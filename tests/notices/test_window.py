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
            window.refill(user, behind[: window.each_max])
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
