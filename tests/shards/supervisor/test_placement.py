"""Which host takes a shard, and when: only what nobody may serve any more, and never back and forth."""

from __future__ import annotations

import asyncio
import itertools
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shards.exits import Exit
from shards.journal import LastSign
from shards.supervisor.placement import (
    AWAITED_NS,
    DRAINED_WAIT_NS,
    GRACE_NS,
    STEADY_NS,
    Own,
    Placement,
    Shares,
    Take,
    Wish,
)
from shards.supervisor.registry import Conflict
from shards.supervisor.sharing import Sharing
from shards.worker.recover import exit_code_of

GRANT_NS = 2_000_000_000
SECOND = 1_000_000_000
SHARDS = range(1, 5)
A, B, C = ("a", "id-a"), ("b", "id-b"), ("c", "id-c")


def placement(host: tuple[str, str] = B, workers: int = 4) -> Placement:
    return Placement(*host, workers, GRANT_NS)


def shares(**owners: tuple[str, str]) -> Shares:
    """Members a, b and c with four workers each; `s1=A`: a owns shard 1, and serves it."""
    shares_made = Shares()
    for node, host_id in (A, B, C):
        shares_made.apply(["host", host_id, node, 4])
    for name, owner in owners.items():
        shard = int(name[1:])
        shares_made.apply(["own", shard, 1, *owner])
        shares_made.apply(["at", shard, 1, f"{owner[0]}:1", ""])
    return shares_made


def signs(*sequences: int, given_up: bool = False, epoch: int = 1) -> dict[int, LastSign]:
    return {shard: LastSign(sequence, given_up, epoch) for shard, sequence in enumerate(sequences, 1)}


def test_what_nobody_owns_is_taken_at_once_and_what_is_heard_of_never() -> None:
    rule, shares_known = placement(), shares(s2=A)
    for second in range(60):
        rule.hear(shares_known, signs(0, second + 1), second * SECOND)
        assert rule.next_step(shares_known, set(), set(), second * SECOND) == Take(1)
        assert rule.next_step(shares_known, {1}, set(), second * SECOND) is None


def test_an_owner_that_is_silent_for_a_grant_is_followed_and_the_other_shards_are_left() -> None:
    rule, shares_known = placement(), shares(s1=A, s2=A)
    for second in range(4):
        rule.hear(shares_known, signs(second, second), second * SECOND)
    for tenth in range(60):
        now_ns = 3 * SECOND + tenth * SECOND // 10
        rule.hear(shares_known, signs(3, 4 + tenth), now_ns)
        expected = Take(1) if tenth >= 21 else None
        assert rule.next_step(shares_known, set(), set(), now_ns) == expected, tenth


@pytest.mark.parametrize("given_up", [False, True])
def test_a_new_owner_has_time_for_its_first_record_whatever_the_one_before_it_left(given_up: bool) -> None:
    rule, shares_known = placement(), shares(s1=A)
    shares_known.apply(["own", 1, 2, *A])
    last_signs = signs(7, given_up=given_up)
    rule.hear(shares_known, last_signs, 0)
    rule.hear(shares_known, last_signs, GRACE_NS - 1)
    assert rule.next_step(shares_known, set(), set(), GRACE_NS - 1) is None
    rule.hear(shares_known, last_signs, GRACE_NS)
    assert rule.next_step(shares_known, set(), set(), GRACE_NS) == Take(1)


def test_an_owner_that_has_served_is_followed_also_by_a_host_that_has_just_begun_or_woken_up() -> None:
    """It hears nothing of the owner, and reads in the map that this one had got as far as to say where it serves."""
    rule, shares_known = placement(), shares(s1=A)
    for tenth in range(40):
        now_ns = tenth * SECOND // 10
        rule.hear(shares_known, signs(7), now_ns)
        assert rule.next_step(shares_known, set(), set(), now_ns) == (Take(1) if tenth >= 21 else None), tenth
    rule, shares_known = placement(), shares(s1=A)
    rule.hear(shares_known, signs(7, given_up=True), 0)
    assert rule.next_step(shares_known, set(), set(), 0) == Take(1), "it has given the shard back"


def test_an_owner_that_was_heard_of_and_gives_its_shard_back_is_followed_at_once() -> None:
    rule, shares_known = placement(), shares(s1=A)
    rule.hear(shares_known, signs(7), 0)
    rule.hear(shares_known, signs(8, epoch=2), SECOND)
    rule.hear(shares_known, signs(9, given_up=True, epoch=2), SECOND + 1)
    assert rule.next_step(shares_known, set(), set(), SECOND + 1) == Take(1)


def test_an_own_of_nobody_is_taken_without_any_sign() -> None:
    rule, shares_known = placement(), shares(s1=A)
    shares_known.apply(["own", 1, 2, "", ""])
    rule.hear(shares_known, signs(7), 0)
    assert rule.next_step(shares_known, set(), set(), 0) == Take(1)


def test_a_host_takes_back_what_its_earlier_life_owned_without_waiting_for_its_turn() -> None:
    rule, shares_known = placement(), shares(s1=B, s2=B)
    rule.hear(shares_known, signs(7, 7), 0)
    assert rule.next_step(shares_known, set(), set(), 0) == Take(1)
    assert rule.next_step(shares_known, {1}, set(), 0) == Take(2)


def test_of_two_hosts_the_one_that_serves_less_is_first_and_a_drained_one_last() -> None:
    idle, busy, drained = placement(A), placement(B), placement(C)
    shares_known = shares(s2=B, s3=B)
    shares_known.apply(["drained", "c", True])
    for rule in (idle, busy, drained):
        rule.hear(shares_known, signs(0, 1, 1), 0)
    assert idle.next_step(shares_known, set(), set(), 0) == Take(1)
    assert busy.next_step(shares_known, {2, 3}, set(), 0) is None
    assert drained.next_step(shares_known, set(), set(), DRAINED_WAIT_NS - 1) is None
    assert drained.next_step(shares_known, set(), set(), DRAINED_WAIT_NS) == Take(1)


def test_a_host_takes_no_more_than_it_has_workers_for_and_nothing_that_failed_here() -> None:
    rule, shares_known = placement(workers=1), Shares()
    rule.hear(shares_known, signs(0, 0), 0)
    assert rule.next_step(shares_known, set(), {1}, SECOND) == Take(2)
    assert rule.next_step(shares_known, {2}, set(), SECOND) is None


def test_a_shard_that_does_not_come_is_not_looked_for_without_pause() -> None:
    rule, shares_known = placement(workers=2), shares(s2=A)
    rule.hear(shares_known, signs(0, 1), 0)
    assert rule.is_awaiting(shares_known, set(), set(), 0)
    assert not rule.is_awaiting(shares_known, set(), {1}, 0), "it failed here"
    assert not rule.is_awaiting(shares_known, {3, 4}, set(), 0), "all workers are in use"
    assert rule.is_awaiting(shares_known, {3}, set(), AWAITED_NS - 1)
    assert not rule.is_awaiting(shares_known, {3}, set(), AWAITED_NS)
    rule, shares_known = placement(), shares(s1=A, s2=A)
    for second in range(6):
        rule.hear(shares_known, signs(second, second), second * SECOND)
    assert not rule.is_awaiting(shares_known, set(), set(), 5 * SECOND)
    assert rule.next_step(shares_known, set(), set(), 5 * SECOND) == Wish(2)
    shares_known.apply(["wish", 2, 1, "id-b"])
    rule.hear(shares_known, signs(5, 5), 5 * SECOND)
    assert rule.is_awaiting(shares_known, set(), set(), 5 * SECOND + AWAITED_NS - 1)
    rule.hear(shares_known, signs(6, 6), 6 * SECOND)
    assert not rule.is_awaiting(shares_known, set(), set(), 5 * SECOND + AWAITED_NS), "its owner does not hear"


def test_a_host_that_ends_names_who_looks_out_for_each_of_its_shards() -> None:
    """The least loaded first, and nobody who is drained; that one takes what is given back before the others do."""
    rule, shares_known = placement(A), shares(s1=A, s2=A, s3=B)
    assert rule.heirs(shares_known) == {1: "id-c", 2: "id-b"}
    shares_known.apply(["drained", "c", True])
    assert rule.heirs(shares_known) == {1: "id-b", 2: "id-b"}
    shares_known.apply(["drained", "b", True])
    assert rule.heirs(shares_known) == {}
    assert placement(C).heirs(shares_known) == {}, "it serves nothing"
    shares_known.apply(["wish", 1, 1, "id-b"])
    heir, bystander = placement(B), placement(C)
    for taker in (heir, bystander):
        taker.hear(shares_known, signs(1, 1, 1), 0)
        taker.hear(shares_known, signs(2, 2, 2, epoch=2), SECOND)
    assert heir.is_awaiting(shares_known, {3}, set(), SECOND)
    assert not bystander.is_awaiting(shares_known, set(), set(), SECOND)
    assert heir.next_step(shares_known, {3}, set(), SECOND) is None, "its owner lives"
    given_up = {1: LastSign(3, True, 2), 2: LastSign(3, False, 2), 3: LastSign(3, False, 2)}
    for taker in (heir, bystander):
        taker.hear(shares_known, given_up, SECOND + 1)
    assert heir.next_step(shares_known, {3}, set(), SECOND + 1) == Take(1)
    assert bystander.next_step(shares_known, {4}, set(), SECOND + 1) is None


def test_a_wish_waits_until_this_host_is_steady_and_nothing_is_on_its_way() -> None:
    rule, shares_known = placement(), shares(s1=A, s2=A)
    for second in range(10):
        rule.hear(shares_known, signs(second, second), second * SECOND)
        expected = Wish(2) if second * SECOND >= STEADY_NS else None
        assert rule.next_step(shares_known, set(), set(), second * SECOND) == expected
    now_ns = 9 * SECOND
    assert rule.next_step(shares_known, set(), {4}, now_ns) is None, "what failed here would fail again"
    shares_known.apply(["wish", 1, 1, "id-c"])
    assert rule.next_step(shares_known, set(), set(), now_ns) is None
    shares_known.apply(["own", 1, 2, *C])
    rule.hear(shares_known, signs(10, 10), now_ns)
    assert rule.next_step(shares_known, set(), set(), now_ns + SECOND) is None, "c is on its way to shard 1"
    shares_known.apply(["at", 1, 2, "c:1", ""])
    assert rule.next_step(shares_known, set(), set(), now_ns + SECOND) is None, "one each: no step makes that more even"
    rule.disturbed(now_ns + SECOND)
    assert rule.next_step(shares(s1=A, s2=A), set(), set(), now_ns + 2 * SECOND) is None


def test_a_drained_host_is_asked_for_all_that_it_has_and_asks_for_nothing() -> None:
    rule, drained_rule = placement(B), placement(A)
    shares_known = shares(s1=A, s2=B, s3=B, s4=B)
    shares_known.apply(["drained", "a", True])
    for second in range(10):
        for each in (rule, drained_rule):
            each.hear(shares_known, signs(*[second] * 4), second * SECOND)
    assert rule.next_step(shares_known, {2, 3, 4}, set(), 9 * SECOND) == Wish(1)
    assert drained_rule.next_step(shares_known, {1}, set(), 9 * SECOND) is None


def test_what_is_said_of_an_older_ownership_changes_nothing() -> None:
    shares_known = shares(s1=A)
    shares_known.apply(["own", 1, 2, *B])
    for late in (["at", 1, 1, "a:9", "a:8"], ["wish", 1, 1, "id-c"]):
        assert shares_known.apply(late)
    assert shares_known.owns[1] == Own(2, *B)


def test_records_stand_for_all_that_was_said() -> None:
    shares_known = shares(s1=A, s3=C)
    shares_known.apply(["wish", 3, 1, "id-b"])
    shares_known.apply(["drained", "b", True])
    shares_known.apply(["own", 4, 7, "", ""])
    again = Shares()
    assert all(again.apply(record) for record in shares_known.records())
    assert vars(again) == vars(shares_known)
    assert not again.apply(["pin", 3])


def test_another_living_host_of_the_same_name_is_named_and_one_that_is_gone_is_replaced() -> None:
    newcomer, shares_known = Placement("a", "id-new", 4, GRANT_NS), shares(s1=A)
    newcomer.hear(shares_known, signs(1), 0)
    assert "another host of this name" in newcomer.why_not_join(shares_known)
    newcomer.hear(shares_known, signs(1), GRACE_NS)
    assert newcomer.why_not_join(shares_known) == ""
    shares_known.apply(["host", "id-new", "a", 4])
    assert [member.node for member in shares_known.members.values()].count("a") == 1


async def test_a_host_that_served_nothing_ends_when_another_one_of_its_name_has_joined() -> None:
    """The newcomer heard nothing of it. Two of one name would be drained, counted and named as one."""

    async def nothing() -> None:
        pass

    shares_known, first = shares(s1=B), placement(A)
    assert first.why_to_go(shares_known) == ""
    shares_known.apply(["host", "id-new", "a", 4])
    assert placement(B).why_to_go(shares_known) == ""
    registry = SimpleNamespace(placement=first, shares=shares_known, catch_up=nothing)
    nobody, processes = cast("Any", None), cast("Any", SimpleNamespace(by_shard={}))
    sharing = Sharing(cast("Any", registry), nobody, processes, nobody, nothing, nobody, asyncio.Event(), lambda: 0)
    with pytest.raises(Conflict, match="a has joined, another host of this name"):
        await sharing.run()
    assert exit_code_of(Conflict(""), None) == Exit.CONFIG


@pytest.mark.parametrize("seed", range(6))
def test_hosts_that_come_and_go_end_with_an_even_load_and_each_shard_once(seed: int) -> None:
    """Three hosts by the rule, over one map: whoever is asked hands over; a host may die, and come back."""
    rng, shares_known, numbers = random.Random(seed), Shares(), itertools.count(1)
    hosts = {host: placement(host, 12) for host in (A, B, C)}
    epochs = dict.fromkeys(range(1, 13), 0)
    written = dict.fromkeys(range(1, 13), 0)
    dead: set[tuple[str, str]] = set()
    given_back: set[int] = set()
    for node, host_id in hosts:
        shares_known.apply(["host", host_id, node, 12])
    moves = 0
    for step in range(3000):
        now_ns = step * SECOND // 10
        if step == 800:
            dead = {rng.choice(list(hosts))}
        elif step == 1600:
            for host in dead:
                hosts[host] = placement(host, 12)
            dead, moves = set(), 0
        for shard, own in shares_known.owns.items():
            if own.node and (own.node, own.host_id) not in dead and own.links:
                written[shard] = next(numbers)
        heard = {
            shard_id: LastSign(written[shard_id], shard_id in given_back, epochs[shard_id]) for shard_id in written
        }
        for host, rule in hosts.items():
            if host in dead:
                continue
            for shard in [shard_id for shard_id in shares_known.served_by(host[1]) if shares_known.owns[shard_id].wish]:
                wisher = shares_known.owns[shard].wish
                shares_known.apply(shares_known.next_own(shard, shares_known.members[wisher].node, wisher))
            rule.hear(shares_known, heard, now_ns)
            mine = {shard_id for shard_id in shares_known.served_by(host[1]) if shares_known.owns[shard_id].links}
            todo = rule.next_step(shares_known, mine, set(), now_ns)
            if isinstance(todo, Take):
                moves += 1
                shares_known.apply(shares_known.next_own(todo.shard, *host))
                epochs[todo.shard] += 1
                shares_known.apply(["at", todo.shard, shares_known.owns[todo.shard].number, f"{host[0]}:1", ""])
            elif isinstance(todo, Wish):
                shares_known.apply(["wish", todo.shard, shares_known.owns[todo.shard].number, host[1]])
    assert sorted(len(shares_known.served_by(host[1])) for host in hosts) == [4, 4, 4]
    assert all(shares_known.owns[shard].links for shard in written)
    assert moves <= 8, "the host that came back was given its part, and nothing went back and forth"
