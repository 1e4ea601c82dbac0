"""Hosts that die, pause, are cut off and drained: the rule of placement holds, and each faulty one is caught."""

from __future__ import annotations

import pytest

from shards.journal import LastSign
from shards.supervisor.placement import Own, Placement, Shares, Take, Wish
from tests.shards.supervisor.placement_world import MS, SHARDS, Fault, InvariantBroken, World

FAULTS = 4


@pytest.mark.parametrize("seed", range(5))
def test_shards_are_served_and_nobody_is_robbed_whatever_happens_to_hosts(seed: int) -> None:
    world = World(seed)
    world.run(world.faults(FAULTS))


@pytest.mark.parametrize("seed", range(2))
def test_hosts_with_room_for_their_part_alone_serve_what_they_can(seed: int) -> None:
    world = World(seed, workers=SHARDS // 2)
    world.run(world.faults(FAULTS))


def test_a_host_that_is_drained_for_good_ends_with_nothing() -> None:
    world = World(1)
    world.run([Fault(20_000 * MS, "drain", "b")])
    assert world.shares.drained == {"b"}


class Hasty(Placement):
    """Gives a new owner no time for its first record."""

    def _is_free(self, own: Own | None, shard: int, sign: LastSign, now_ns: int) -> bool:
        self._heard.add(shard)
        return super()._is_free(own, shard, sign, now_ns)


class Impatient(Placement):
    """Takes a beat that is a little late for a death."""

    def __init__(self, node: str, host_id: str, workers: int, grant_ns: int) -> None:
        super().__init__(node, host_id, workers, grant_ns // 8)


class Deaf(Placement):
    """Follows nobody who has not given the shard back."""

    def _is_free(self, own: Own | None, shard: int, sign: LastSign, now_ns: int) -> bool:
        is_mine = own is None or not own.node or own.host_id == self.host_id
        return is_mine or (sign.is_given_up and super()._is_free(own, shard, sign, now_ns))


class Forgetful(Placement):
    """Does not take back what its earlier life owned."""

    def _is_free(self, own: Own | None, shard: int, sign: LastSign, now_ns: int) -> bool:
        is_mine = own is not None and own.host_id == self.host_id
        return not is_mine and super()._is_free(own, shard, sign, now_ns)


class Content(Placement):
    """Wishes for nothing."""

    def _wish(self, shares: Shares, served: set[int], now_ns: int) -> Wish | None:
        return None


class Envious(Placement):
    """Wishes for a shard also where that makes nothing more even."""

    def _wish(self, shares: Shares, served: set[int], now_ns: int) -> Wish | None:
        if any(own.wish or not own.links for own in shares.owns.values()):
            return None
        elsewhere = [shard for shard, own in shares.owns.items() if own.host_id != self.host_id]
        return Wish(elsewhere[0]) if len(elsewhere) >= len(served) > 0 else super()._wish(shares, served, now_ns)


class Shameless(Placement):
    """Takes its part although it is drained."""

    def next_step(self, shares: Shares, served: set[int], failed: set[int], now_ns: int) -> Take | Wish | None:
        undrained = Shares()
        undrained.owns, undrained.members = shares.owns, shares.members
        return super().next_step(undrained, served, failed, now_ns)


class Kept(Placement):
    """Does not see that the others are to take the shards of a drained host."""

    def _wish(self, shares: Shares, served: set[int], now_ns: int) -> Wish | None:
        undrained = Shares()
        undrained.owns, undrained.members = shares.owns, shares.members
        return super()._wish(undrained, served, now_ns)


@pytest.mark.parametrize(
    ("rule", "caught"),
    [
        (Hasty, "robbed"),
        (Impatient, "robbed"),
        (Deaf, "unserved"),
        (Forgetful, "unserved"),
        (Content, "uneven"),
        (Envious, "restless|uneven"),
        (Shameless, "uneven|restless"),
        (Kept, "uneven"),
    ],
)
def test_a_faulty_rule_is_caught(rule: type[Placement], caught: str) -> None:
    def runs() -> None:
        World(0, rule).run([Fault(20_000 * MS, "kill", "a", 40_000 * MS), Fault(60_000 * MS, "start", "a")])
        World(1, rule).run([Fault(20_000 * MS, "drain", "b")])
        for seed in range(5):
            world = World(seed, rule)
            world.run(world.faults(FAULTS))

    with pytest.raises(InvariantBroken, match=f"^({caught})"):
        runs()
