"""The map's log where several hosts serve at once: who takes part, who comes too late, and who must not be there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from shards import exits
from shards.journal import Fenced, Unavailable, Unfit
from shards.moves.wanted import Wanted
from shards.supervisor.placement import GRACE_NS, Voice
from shards.supervisor.registry import SNAPSHOT_EVERY_RECORDS, Conflict, StandsBy
from shards.supervisor.standby import GRACE_NS as CLAIM_GRACE_NS
from shards.system.clock import Anchor, encode_anchor
from tests.shards.supervisor.hosts import BUCKETS, WANTED, HostRegistry, PartOf, part

__all__ = ["part"]


async def test_of_two_hosts_that_take_a_shard_one_learns_that_it_was_too_late(part: PartOf) -> None:
    a, b = part("a").joined(), part("b").joined()
    assert await a.registry.catch_up()
    assert {member.node for member in a.registry.shares.members.values()} == {"a", "b"}
    assert await b.take(1)
    assert not await a.take(1), "it decides by a map that has no owner yet"
    assert a.registry.shares.owns[1] == b.registry.shares.owns[1]
    assert (a.registry.shares.owns[1].node, a.registry.shares.owns[1].number) == ("b", 1)
    assert await a.take(1), "by the newest map it may"
    assert await b.registry.catch_up()
    assert (b.registry.shares.owns[1].node, b.registry.shares.owns[1].number) == ("a", 2)
    assert not await b.registry.catch_up(), "there is nothing new"


async def test_each_host_goes_on_from_an_anchor_of_its_own(part: PartOf) -> None:
    a, b = part("a").joined(), part("b").joined()
    for number, host in enumerate((a, b)):
        block = encode_anchor(Anchor(1, 100 + number, 0, 500), b"%016d" % number)
        await host.registry.record(host.registry.anchor_record(block))
    assert await a.registry.catch_up()
    for number, host in enumerate((a, b)):
        newest = host.registry.newest_anchor
        assert newest is not None
        assert newest[0].billing_ns == 100 + number
        assert host.registry.anchor is None, "that of a host that serves everything"


async def test_a_compacted_map_says_the_same(part: PartOf) -> None:
    a = part("a").joined()
    assert await a.take(2)
    await a.registry.record(
        ["drained", "a", True], a.registry.anchor_record(encode_anchor(Anchor(1, 2, 0, 9), b"b" * 16))
    )
    await a.registry.record(["wanted", 1, 2, 1], ["wanted", 2, 2, 1], ["unwanted", 2, 1, "shard 2 is down"])
    for _ in range(SNAPSHOT_EVERY_RECORDS):
        await a.registry.record(["pin", 1])
    late = part("b").joined()
    late_shares, shares = late.registry.shares, a.registry.shares
    assert late_shares.owns == shares.owns
    assert late_shares.drained == {"a"}
    assert late.registry.wanted.of == a.registry.wanted.of == {1: Wanted(2, 1), 2: Wanted(2, 1, "shard 2 is down")}
    assert a.registry.host_id in late_shares.members
    assert late.registry.map.encode() == a.registry.map.encode()


async def test_a_host_that_would_serve_everything_waits_for_those_that_serve_at_once(part: PartOf) -> None:
    a = part("a").joined()
    assert await a.take(1)
    alone = part("c", 0)
    alone.log.is_moving = True
    for _ in range(3):
        alone.machine.boot_ns += CLAIM_GRACE_NS
        with pytest.raises(StandsBy, match=r"a host with a cluster\.listen serves"):
            alone.registry.open(BUCKETS, WANTED)
    alone.log.is_moving = False
    alone.machine.boot_ns += CLAIM_GRACE_NS
    alone.registry.open(BUCKETS, WANTED)
    assert (alone.registry.claim.node, alone.registry.shares.is_used) == ("c", False)
    with pytest.raises(Fenced, match="c serves now"):
        await a.registry.catch_up()


async def test_hosts_that_would_serve_at_once_wait_for_one_that_serves_everything(part: PartOf) -> None:
    alone = part("c", 0).joined()
    a = part("a")
    a.log.is_moving = True
    with pytest.raises(StandsBy, match="c serves"):
        a.registry.open(BUCKETS, WANTED)
    a.machine.boot_ns += CLAIM_GRACE_NS
    with pytest.raises(StandsBy, match="c serves"):
        a.registry.open(BUCKETS, WANTED)
    a.log.is_moving = False
    a.machine.boot_ns += CLAIM_GRACE_NS
    a.joined()
    assert a.registry.shares.is_used
    assert await alone.registry.is_displaced()
    with pytest.raises(Fenced):
        await alone.registry.record(["pin", 1])


async def test_a_second_host_of_one_name_waits_as_long_as_the_first_is_heard_of(part: PartOf) -> None:
    assert await part("a").joined().take(1)
    namesake = part("a")
    namesake.log.is_moving = True
    for _ in range(3):
        namesake.machine.boot_ns += GRACE_NS
        with pytest.raises(StandsBy, match="another host of this name"):
            namesake.registry.open(BUCKETS, WANTED)


async def test_data_whose_buckets_were_moved_are_refused_and_nothing_is_changed(part: PartOf) -> None:
    alone = part("c", 0).joined()
    await alone.registry.record(["assign", 1, 2, 2])
    await alone.registry.give_back()
    with pytest.raises(Conflict, match="bucket 1 was moved from one shard to another"):
        part("a").joined()


async def test_what_a_host_records_after_the_others_is_applied_behind_theirs(part: PartOf) -> None:
    a, b = part("a").joined(), part("b").joined()
    records: list[Awaitable[None]] = [a.registry.record(["pin", 1]), b.registry.record(["pin", 2])]
    await asyncio.gather(*records, a.registry.record(["pin", 3]), b.registry.record(["pin", 4]))
    await a.registry.catch_up()
    await b.registry.catch_up()
    assert a.registry.map.pinned == b.registry.map.pinned == {1, 2, 3, 4}


async def moving(part: PartOf) -> tuple[HostRegistry, HostRegistry, dict[int, Voice]]:
    """Two hosts that serve a shard each, and whose word counts in a move from the first one's to the second one's."""
    a, b = part("a").joined(), part("b").joined()
    for host, shard in ((a, 1), (b, 2)):
        await host.registry.catch_up()
        assert await host.take(shard)
        await host.registry.record(["life", shard, 1, 1])
    await a.registry.catch_up()
    return a, b, {1: Voice(1, 1), 2: Voice(1, 1)}


async def test_a_move_is_decided_by_the_lives_that_gave_and_stored_the_bucket_and_other_hosts_are_told(
    part: PartOf,
) -> None:
    a, b, voices = await moving(part)
    assert await a.registry.commit(["assign", 1, 2, 2], voices)
    assert a.registry.map.owner_of(1) == (2, 2)
    assert await b.registry.catch_up()
    assert b.assigned == [(1, 2, 2)]


@pytest.mark.parametrize(
    "record", [["life", 2, 1, 2], ["own", 2, 2, "c", "c"], ["own", 1, 2, "c", "c"], ["assign", 1, 2, 2]]
)
async def test_what_another_host_has_recorded_before_makes_a_decision_impossible(
    part: PartOf, record: list[object]
) -> None:
    a, b, voices = await moving(part)
    await b.registry.record(record)
    is_decided = record[0] == "assign"
    assert await a.registry.commit(["assign", 1, 2, 2], voices) is is_decided, "whoever wrote it: it stands there"
    assert a.registry.map.owner_of(1) == ((2, 2) if is_decided else (1, 1))


async def test_a_host_that_stands_by_waits_where_the_log_lets_it_in_no_more(part: PartOf) -> None:
    """At the first look such a log is unfit, which ends the start."""
    a, alone = part("a").joined(), part("c", 0)
    assert await a.take(1)
    alone.log.is_moving = True
    with pytest.raises(StandsBy):
        alone.registry.open(BUCKETS, WANTED)
    log = alone.registry._log
    load, log.load = log.load, refusing  # type: ignore[method-assign]
    alone.log.refusal = Unfit("cluster.credentials_file: refuses the credentials")
    alone.registry.close()  # as where the log was out of reach
    for _ in range(3):
        with pytest.raises(Unavailable, match="let this host in"):
            alone.registry.open(BUCKETS, WANTED)
    log.load, alone.log.refusal = load, None  # type: ignore[method-assign]
    with pytest.raises(StandsBy):
        alone.registry.open(BUCKETS, WANTED)


def refusing(owner: str) -> tuple[int, list[bytes]]:
    raise Unavailable("they do not let this host in")


async def test_what_a_newer_version_wrote_ends_a_host_by_name_and_it_does_not_start_again(part: PartOf) -> None:
    a, b = part("a").joined(), part("b").joined()
    with pytest.raises(Conflict):
        await a.registry.record(["of tomorrow", 1])  # it is in the log now, as if a newer version had written it
    with pytest.raises(Conflict, match=r"\['of tomorrow', 1\], which this version does not know") as refused:
        await b.registry.catch_up()
    assert refused.value.ending.code == exits.CONFIG.code
    with pytest.raises(Conflict, match="a newer one wrote it"):
        part("c").joined()
