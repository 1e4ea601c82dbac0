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


def signs(*sequences: int, given_up: bool = False, epoch: int = 0) -> dict[int, LastSign]:
    return {shard: LastSign(sequence, given_up, epoch) for shard, sequence in enumerate(sequences, 1)}


@pytest.mark.parametrize("claim", [Claim(), Claim("", "", 9), Claim("b", "id-b", 3)])
def test_what_nobody_serves_is_taken_at_once(claim: Claim) -> None:
    rule = standby()
    assert rule.why_not(claim, signs(5, 5), 0) == ""
    assert rule.next_claim(claim) == Claim("b", "id-b", claim.number + 1)


def test_an_owner_that_is_not_heard_of_for_a_grant_is_followed() -> None:
    rule = standby()
    rule.why_not(OTHER, signs(1, 1), 0)
    assert rule.why_not(OTHER, signs(2, 2), GRACE_NS) == "a serves"
    assert rule.why_not(OTHER, signs(2, 2), GRACE_NS + GRANT_NS) == "a serves", "its clock may run behind ours"
    assert rule.why_not(OTHER, signs(2, 2), GRACE_NS + GRANT_NS * 102 // 100) == ""


def test_one_shard_that_is_heard_of_speaks_for_its_host() -> None:
    rule = standby()
    for second in range(60):
        assert rule.why_not(OTHER, signs(1, second), second * SECOND) == "a serves"


def test_shards_that_were_given_back_are_not_waited_for() -> None:
    rule = standby()
    rule.why_not(OTHER, signs(1, 1), 0)
    assert rule.why_not(OTHER, signs(2, 2, given_up=True), GRACE_NS) == ""


def test_a_host_that_has_just_claimed_is_given_time_for_its_first_record() -> None:
    rule = standby()
    rule.why_not(OTHER, signs(2, 2, given_up=True), 0)
    newer = OTHER._replace(node="c", host_id="id-c", number=8)
    at_ns = GRACE_NS + SECOND
    assert rule.why_not(newer, signs(2, 2, given_up=True), at_ns) == "c serves"
    assert rule.why_not(newer, signs(2, 2, given_up=True), at_ns + GRACE_NS - 1) == "c serves"
    assert rule.why_not(newer, signs(2, 2, given_up=True), at_ns + GRACE_NS) == ""


def test_a_host_that_was_heard_of_since_it_claimed_is_followed_as_any_other() -> None:
    rule = standby()
    rule.why_not(OTHER, signs(2, 2, epoch=7), 0)
    newer = Claim("c", "id-c", 8, 7)
    assert rule.why_not(newer, signs(2, 3, epoch=7), SECOND) == "c serves", "a word of the older owner"
    assert rule.why_not(newer, signs(2, 3, epoch=7), 5 * SECOND) == "c serves"
    assert rule.why_not(newer, signs(2, 4, epoch=8), 6 * SECOND) == "c serves"
    assert rule.why_not(newer, signs(2, 4, epoch=8), 6 * SECOND + GRANT_NS) == "c serves"
    assert rule.why_not(newer, signs(2, 4, epoch=8), 6 * SECOND + GRANT_NS * 102 // 100) == ""


def test_a_host_that_starts_late_need_not_have_seen_the_claim_being_made() -> None:
    rule, claim = standby(), OTHER._replace(epoch=7)
    for tenth in range(26):  # a record every half second
        assert rule.why_not(claim, signs(1, tenth // 5, epoch=7), tenth * SECOND // 10) == "a serves"
    assert rule.why_not(claim, signs(1, 5, epoch=7), 4 * SECOND) == "a serves"
    assert rule.why_not(claim, signs(1, 5, epoch=7), 5 * SECOND) == "", "two seconds and a half after its last record"


def test_a_host_that_dies_as_soon_as_another_one_has_started_is_followed_after_a_grant() -> None:
    rule, claim = standby(), OTHER._replace(epoch=6)
    assert rule.why_not(claim, signs(9, 9, epoch=7), 0) == "a serves", "its record is the newest: it may be alive"
    assert rule.why_not(claim, signs(9, 9, epoch=7), GRANT_NS) == "a serves"
    assert rule.why_not(claim, signs(9, 9, epoch=7), GRANT_NS * 102 // 100) == ""


def test_a_claim_names_the_newest_epoch_that_was_there_before_it() -> None:
    rule = standby()
    rule.why_not(OTHER, {1: LastSign(5, False, 12), 2: LastSign(5, False, 3)}, 0)
    assert rule.next_claim(OTHER) == Claim("b", "id-b", 8, 12)


def test_of_the_time_that_was_granted_only_so_much_has_passed_as_the_owner_was_not_heard_of() -> None:
    rule, granted = standby(), LastSign(5, False, 1, 100 * SECOND)
    assert rule.passed_ns(1, granted, 0) == 98 * SECOND, "it may have been granted just now"
    rule.why_not(OTHER, {1: granted}, 7 * SECOND)
    assert rule.passed_ns(1, granted, 8 * SECOND) == 99 * SECOND
    assert rule.passed_ns(1, granted, 60 * SECOND) == 100 * SECOND
    assert rule.passed_ns(1, LastSign(6, True, 1, 50 * SECOND), 7 * SECOND) == 50 * SECOND, "a seal grants nothing"


def test_another_host_of_the_same_name_is_named() -> None:
    rule = standby()
    reason = rule.why_not(Claim("b", "id-of-another", 1), signs(1), 0)
    assert "another host of this name" in reason
    assert "cluster.node" in reason
