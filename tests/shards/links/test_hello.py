"""The exchange at the beginning of a link: who is let in, who is not, and why."""

from __future__ import annotations

from typing import Any

import pytest

from shards.links.hello import VERSION, Dialling, End, Hello, LinkRefused, Listening, Proof, Welcome

SECRET, NONCES = b"of the cluster", (b"d" * 16, b"l" * 16)
DIALER, LISTENER = End("c-1", 2, 7, SECRET), End("c-1", 5, 9, SECRET)


def dialling(end: End = DIALER, shard: int = 5, epoch: int = 9) -> Dialling:
    return Dialling(end, shard, epoch, NONCES[0])


def listening(end: End = LISTENER) -> Listening:
    return Listening(end, NONCES[1])


def met(dialler: Dialling, listener: Listening) -> None:
    """The whole exchange."""
    proof = dialler.receive(listener.receive(dialler.hello))
    assert proof is not None
    assert dialler.receive(listener.receive(proof)) is None


def test_two_ends_of_one_cluster_that_mean_each_other_are_welcome() -> None:
    dialler, listener = dialling(), listening()
    met(dialler, listener)
    assert dialler.is_welcome
    assert listener.is_welcome


def test_without_a_secret_on_both_sides_nothing_is_proved_and_all_else_is_looked_at() -> None:
    dialler, listener = dialling(DIALER._replace(secret=b"")), listening(LISTENER._replace(secret=b""))
    met(dialler, listener)
    assert listener.is_welcome
    with pytest.raises(LinkRefused, match="this is shard 5"):
        listening().receive(dialling(shard=4).hello)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        ({"version": VERSION - 1}, f"a link of version {VERSION - 1}, and this host speaks version {VERSION}"),
        ({"version": VERSION + 1}, f"a link of version {VERSION + 1}, and this host speaks version {VERSION}"),
        ({"cluster": "c-2"}, "a link of cluster c-2, and this host is of cluster c-1"),
        ({"wanted_shard": 6}, "shard 6 is asked for, and this is shard 5"),
        ({"wanted_epoch": 8}, "epoch 8 of shard 5 is asked for, and this is epoch 9"),
        ({"wanted_epoch": 10}, "epoch 10 of shard 5 is asked for, and this is epoch 9"),
    ],
)
def test_who_is_of_another_version_or_cluster_or_means_another_is_told_so(hello: dict[str, Any], reason: str) -> None:
    fields = {name: getattr(dialling().hello, name) for name in Hello.__struct_fields__}
    with pytest.raises(LinkRefused) as refused:
        listening().receive(Hello(**fields | hello))
    assert str(refused.value) == reason
    assert refused.value.passes == reason.startswith(("shard", "epoch")), "the map will tell the dialer better"


@pytest.mark.parametrize("guess", [b"", b"of another cluster"])
def test_each_end_notices_that_the_other_does_not_know_the_secret(guess: bytes) -> None:
    dialler, listener = dialling(), listening(LISTENER._replace(secret=guess))
    with pytest.raises(LinkRefused, match="dialled does not know the secret"):
        dialler.receive(listener.receive(dialler.hello))
    guessing = dialling(DIALER._replace(secret=guess))
    listener = listening()
    listener.receive(guessing.hello)
    with pytest.raises(LinkRefused, match="dials does not know the secret"):
        listener.receive(Proof(b"\0" * 32))
    assert not listener.is_welcome


def test_a_proof_is_good_for_one_exchange_and_for_one_end() -> None:
    dialler, listener = dialling(), listening()
    challenge = listener.receive(dialler.hello)
    proof = dialler.receive(challenge)
    assert proof is not None
    later = Listening(LISTENER, b"m" * 16)
    later.receive(dialler.hello)
    with pytest.raises(LinkRefused, match="does not know the secret"):
        later.receive(proof)  # overheard the last time
    mirror = listening()
    mirror.receive(dialler.hello)
    with pytest.raises(LinkRefused, match="does not know the secret"):
        mirror.receive(Proof(challenge.proof))  # type: ignore[union-attr]  # the listener's own, sent back to it


def test_what_comes_out_of_turn_is_refused() -> None:
    dialler, listener = dialling(), listening()
    with pytest.raises(LinkRefused, match="out of turn"):
        dialler.receive(Welcome())
    with pytest.raises(LinkRefused, match="out of turn"):
        listener.receive(Proof(b"\0" * 32))
    met(dialling(), listener)
    for message in (dialler.hello, Proof(b"\0" * 32)):
        with pytest.raises(LinkRefused, match="out of turn"):
            listener.receive(message)
