"""What a storm is made of goes the fast way, and the plain way comes to the same bytes."""

from __future__ import annotations

import random

import pytest

from billing.ledger import commands as ops
from billing.ledger import fast_path
from billing.ledger.account import Account
from billing.ledger.commands import Command
from billing.ledger.entry import PENDING, event_id
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import INT64_MAX, NANO
from billing.ledger.views import next_cutoff

AT_NS = 1_727_000_000_000_000_000
BUCKET = 1
HOUR_NS = 3600 * 10**9


def command_of(op: int, user: bytes, a: int = 0, b: int = 0, c: int = 0, key: bytes = b"") -> Command:
    return (op, user, a, b, c, key, b"", b"", b"", b"")


class World:
    """A ledger, and what another one makes of its journal, which goes the plain way through time and reports."""

    def __init__(self, accrue: bool) -> None:
        rules = Rules(accrue, 10, False)
        self.ledger, self.again = (Ledger(rules, lambda ref, due_ns: due_ns) for _ in range(2))
        for ledger in (self.ledger, self.again):
            ledger.create(BUCKET)
        self.ledger.wake(BUCKET)
        self.book = self.ledger.books[BUCKET]

    def command(self, at_ns: int, command: Command) -> None:
        self.ledger.apply(BUCKET, at_ns, command)

    def account(self, user: bytes) -> Account:
        return Account(self.book, self.book.slots[user], user)

    def compare(self) -> None:
        for _, packed in self.ledger.records:
            self.again.replay(BUCKET, packed)
        self.again.replayed()
        self.ledger.records.clear()
        assert self.ledger.dump(BUCKET) == self.again.dump(BUCKET)
        assert list(self.ledger.owed_in(BUCKET)) == list(self.again.owed_in(BUCKET))
        for _, call in self.ledger.owed_in(BUCKET):
            assert call.attempts in (0, 1)


def populated(world: World, draw: random.Random, count: int) -> list[bytes]:
    """Accounts that run out sometime: of plain rows, with a limit, a hold without an end, named lines, all kinds of
    rates, and such as have been cut off before.
    """
    users = [b"user.%d" % number for number in range(count)]
    for user in users:
        world.command(AT_NS, command_of(ops.TOP_UP, user, draw.choice((1, 7 * NANO, draw.randrange(1, 10**15)))))
        if draw.random() < 0.3:
            world.command(AT_NS, command_of(ops.SET_CREDIT_LIMIT, user, draw.randrange(10**12)))
        if draw.random() < 0.3 and world.account(user).available > NANO:
            world.command(AT_NS, command_of(ops.HOLD, user, 1, key=b"reserved"))
        resource = draw.choice((b"", b"vm-1"))
        rate = draw.choice((1, 36 * NANO, draw.randrange(1, 10**14), INT64_MAX // 2))
        world.command(AT_NS, command_of(ops.SET_RATE, user, rate, -1, -1, resource))
        if draw.random() < 0.3:  # it runs out once, is cut off, and comes back
            gone_ns = world.account(user).runs_out_ns()
            if gone_ns < AT_NS + HOUR_NS:
                world.ledger.tick([BUCKET << 32 | world.book.slots[user]], gone_ns)
                if draw.random() < 0.5:
                    for op in (ops.CUTOFF_STARTED, ops.CUTOFF_DELIVERED):
                        world.ledger.report(BUCKET, gone_ns, command_of(op, user, 1))
                world.command(gone_ns, command_of(ops.TOP_UP, user, 10**15))
    world.ledger.notices.clear()
    return users


@pytest.mark.parametrize("accrue", [False, True])
def test_running_out_and_its_reports_are_made_again_the_plain_way(accrue: bool) -> None:
    for seed in range(20):
        draw, world = random.Random(seed), World(accrue)
        users = populated(world, draw, 40)
        for user in users:
            slot, due_ns = world.book.slots[user], world.account(user).runs_out_ns()
            coming = next_cutoff(world.book, slot)
            if due_ns > INT64_MAX:
                assert coming is None or coming[3] == due_ns
                continue
            seq = world.account(user).exhaustion_seq + 1
            assert coming == (user, event_id(user, seq, due_ns), seq, due_ns), "what is prepared for it"
            settled_ns = world.account(user).settled_ns
            assert not fast_path.run_out(world.ledger._posting, world.book, slot, due_ns - 1)
            assert fast_path.run_out(world.ledger._posting, world.book, slot, due_ns), (seed, user)
            gone = world.account(user)
            assert (gone.settled_ns, gone.exhausted, gone.accruing) == (due_ns, True, accrue)
            assert gone.exhaustion_seq == seq
            assert world.ledger.notices[-1] == ("cutoff", settled_ns, BUCKET, user, seq)
            cutoffs = world.book.extras[slot].cutoffs
            assert [(cutoff.seq, cutoff.status, cutoff.exhausted_at_ns) for cutoff in cutoffs] == [
                (seq, PENDING, due_ns)
            ]
            if draw.random() < 0.3:
                world.command(due_ns, command_of(ops.SET_RATE, user, 0, -1, -1, b"vm-1"))
            for op in (ops.CUTOFF_STARTED, ops.CUTOFF_DELIVERED):
                now_ns = due_ns + draw.randrange(-5, 10**9)
                assert fast_path.report(world.ledger._posting, world.book, now_ns, command_of(op, user, seq))
                assert not fast_path.report(world.ledger._posting, world.book, now_ns, command_of(op, user, seq + 1))
        world.compare()


def test_what_time_has_more_in_store_for_is_left_to_the_plain_way() -> None:
    world = World(accrue=False)
    kinds: dict[bytes, Command] = {
        b"threshold": command_of(ops.SET_THRESHOLDS, b"threshold", 1, key=ops.pack_thresholds([(0, 5)])),
        b"hold": command_of(ops.HOLD, b"hold", 1, HOUR_NS, key=b"ends"),
        b"nothing spent": command_of(ops.DEBIT, b"nothing spent", 1),
        b"gone": command_of(ops.ADJUST, b"gone", -NANO),
    }
    for user, command in kinds.items():
        world.command(AT_NS, command_of(ops.TOP_UP, user, NANO))
        if user != b"nothing spent":
            world.command(AT_NS, command_of(ops.SET_RATE, user, 1, -1, -1))
        world.command(AT_NS, command)
        before = world.book.rows[:], len(world.ledger.records)
        assert not fast_path.run_out(world.ledger._posting, world.book, world.book.slots[user], INT64_MAX)
        assert (world.book.rows, len(world.ledger.records)) == before
    world.compare()


def test_reports_that_are_not_of_every_storm_are_left_to_the_plain_way() -> None:
    world = World(accrue=False)
    world.command(AT_NS, command_of(ops.TOP_UP, b"u", NANO))
    world.command(AT_NS, command_of(ops.SET_RATE, b"u", NANO, -1, -1))

    def takes(op: int, unbegun: int = 0) -> bool:
        return fast_path.report(world.ledger._posting, world.book, AT_NS, command_of(op, b"u", 1, unbegun))

    assert not takes(ops.CUTOFF_STARTED), "it is active"
    world.ledger.tick([BUCKET << 32 | world.book.slots[b"u"]], AT_NS + HOUR_NS)
    assert not takes(ops.CUTOFF_DELIVERED), "no attempt began"
    assert not takes(ops.CUTOFF_FAILED, 1), "it failed"
    assert takes(ops.CUTOFF_STARTED)
    assert takes(ops.CUTOFF_DELIVERED)
    assert not takes(ops.CUTOFF_DELIVERED), "it was delivered"
    assert not takes(ops.CUTOFF_STARTED), "it was delivered"
    assert world.book.pending_cutoffs == 0
    world.compare()
