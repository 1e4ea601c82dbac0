"""What a night runs: parts add up to the whole, and no share leaves a kind of fault out."""

from __future__ import annotations

import pytest

from tests.shards.journal.specimen import STATES
from tests.torture.__main__ import part
from tests.torture.pieces import CAMPAIGNS, FAULTS, Piece, all_pieces, part_of
from tests.torture.table import key_of


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 1000])
def test_the_parts_are_the_whole_and_have_no_piece_twice(parts: int) -> None:
    whole = list(all_pieces(1))
    in_parts = [piece for number in range(1, parts + 1) for piece in part_of(whole, number, parts)]
    assert sorted(map(key_of, in_parts)) == sorted(map(key_of, whole))
    assert len({key_of(piece) for piece in whole}) == len(whole)


def test_a_part_has_something_of_each_campaign_that_has_enough_pieces() -> None:
    whole = list(all_pieces(1))
    large = {piece.campaign for piece in whole if sum(other.campaign == piece.campaign for other in whole) >= 3}
    for number in (1, 2, 3):
        assert large <= {piece.campaign for piece in part_of(whole, number, 3)}


def kinds(pieces: list[Piece], campaign: str, *options: str) -> set[tuple[str, ...]]:
    """The values of these options, of each piece of a campaign; "" for one that is not there."""
    found = set()
    for piece in pieces:
        if piece.campaign == campaign:
            values = dict(zip(piece.arguments, [*piece.arguments[1:], ""], strict=True))
            found.add(tuple(values.get(option, "") for option in options))
    return found


@pytest.mark.parametrize("share", [0.01, 0.05, 0.4, 1])
def test_no_share_leaves_out_a_campaign_a_fault_or_a_state(share: float) -> None:
    pieces = list(all_pieces(share))
    assert {piece.campaign for piece in pieces} == set(CAMPAIGNS)
    assert {(target, what) for target, what in kinds(pieces, "faults", "--target", "--what")} == {
        (target, what) for target, what, _ in FAULTS
    }
    assert kinds(pieces, "flips", "--state") == kinds(pieces, "cuts", "--state") == {(state,) for state in STATES}


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        part(text)
