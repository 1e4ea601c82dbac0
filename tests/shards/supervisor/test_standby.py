"""When a host may take over from another one: only from one that gave everything back, or that is heard of no more."""

from __future__ import annotations

import pytest

from shards.journal import LastSign
from shards.supervisor.standby import GRACE_NS, Claim, Standby

GRANT_NS = 2_000_000_000
OTHER = Claim("a", "id-a", 7)
SECOND = 1_000_000_000


def standby() -> Standby:
    return Standby("b", "id-b", GRANT_NS)


def signs(*sequences: int, given_up: bool = False) -> dict[int, LastSign]:
    return {shard: LastSign(sequence, given_up) for shard, sequence in enumerate(sequences, 1)}


@pytest.mark.parametrize("claim", [Claim(), Claim("", "", 9), Claim("b", "id-b", 3)])
def test_what_nobody_serves_is_taken_at_once(claim: Claim) -> None:
    one = standby()
    assert one.why_not(claim, signs(5, 5), 0) == ""
    assert one.next_claim(claim) == Claim("b", "id-b", claim.number + 1)


def test_an_owner_that_is_not_heard_of_for_a_grant_is_followed() -> None:
    one = standby()
    one.why_not(OTHER, signs(1, 1), 0)
    assert one.why_not(OTHER, signs(2, 2), GRACE_NS) == "a serves"
    assert one.why_not(OTHER, signs(2, 2), GRACE_NS + GRANT_NS) == "a serves", "its clock may run behind ours"
    assert one.why_not(OTHER, signs(2, 2), GRACE_NS + GRANT_NS * 102 // 100) == ""


def test_one_shard_that_is_heard_of_speaks_for_its_host() -> None:
    one = standby()
    for second in range(60):
        assert one.why_not(OTHER, signs(1, second), second * SECOND) == "a serves"


def test_shards_that_were_given_back_are_not_waited_for() -> None:
    one = standby()
    one.why_not(OTHER, signs(1, 1), 0)
    assert one.why_not(OTHER, signs(2, 2, given_up=True), GRACE_NS) == ""


def test_a_host_that_has_just_claimed_is_given_time_for_its_first_record() -> None:
    one = standby()
    one.why_not(OTHER, signs(2, 2, given_up=True), 0)
    newer = OTHER._replace(node="c", host_id="id-c", number=8)
    at_ns = GRACE_NS + SECOND
    assert one.why_not(newer, signs(2, 2, given_up=True), at_ns) == "c serves"
    assert one.why_not(newer, signs(2, 2, given_up=True), at_ns + GRACE_NS - 1) == "c serves"
    assert one.why_not(newer, signs(2, 2, given_up=True), at_ns + GRACE_NS) == ""


def test_another_host_of_the_same_name_is_named() -> None:
    one = standby()
    reason = one.why_not(Claim("b", "id-of-another", 1), signs(1), 0)
    assert "another host of this name" in reason
    assert "cluster.node" in reason
