"""What is said on a link between hosts before its first request: a pure exchange, bytes and sockets are elsewhere.

    dialer                                                      listener
    Hello(version, cluster, shard, epoch, wanted …, nonce) ───>
                                     <─── Challenge(nonce, proof)     or Refused(reason)
    Proof(proof) ───>
                                     <─── Welcome()                   or Refused(reason)

Each end proves that it knows the cluster's secret before it believes anything that the other one says:

    proof = HMAC-SHA256(secret, role, 0, what Hello says with both nonces)        role: "dialer" or "listener"

Both nonces are in both proofs, so no proof can be used a second time, and the role is in it, so no end can be made to
prove its peer's part. Without a secret the proofs prove nothing; then the certificates of both ends must (mutual TLS),
or no link may leave the machine: that is the configuration's to see to. The secret says who began; what is said
afterwards is neither secret nor protected without TLS, so it is for a network that is trusted.

The listener refuses, and says why: a link of another version, of another cluster, to a shard or an epoch that is not
its own, and one that does not know the secret. `epoch` is the number of the shard's `own` record in the map
(`shards.supervisor.placement`): a link that was dialled by an older map is refused instead of asking a worker that
takes the place of the one meant. What is refused is dialled again, by the map of then.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

import msgspec

VERSION = 1  # of what is said on a link, before the first request and behind it
NONCE_BYTES = 16
_encode = msgspec.msgpack.Encoder().encode


class Word(msgspec.Struct, frozen=True, array_like=True, tag=str.lower):
    """Base of all messages of the exchange."""


class Hello(Word, frozen=True):
    """The dialer names itself and the shard that it wants."""

    version: int
    cluster: str
    shard: int  # of the dialer
    epoch: int
    wanted_shard: int  # of the listener, as the dialer's map has it
    wanted_epoch: int
    nonce: bytes


class Challenge(Word, frozen=True):
    """The listener confirms that it is the shard that was meant, and proves it."""

    nonce: bytes
    proof: bytes


class Proof(Word, frozen=True):
    """The dialer's proof."""

    proof: bytes


class Welcome(Word, frozen=True):
    """The listener accepts the link: requests may come."""


class Refused(Word, frozen=True):
    """The listener refuses the link; its last message."""

    reason: str
    passes: bool  # see LinkRefused


to_listener = msgspec.msgpack.Decoder(Hello | Proof).decode
to_dialer = msgspec.msgpack.Decoder(Challenge | Welcome | Refused).decode


class LinkRefused(Exception):
    """The other end, or this one, does not want this link; the text says why. `passes`: nobody has to do anything, for
    one of the two does not know the newest map yet.
    """

    def __init__(self, reason: str, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.passes = passes


class End(NamedTuple):
    """One end: the shard that a worker serves, in which epoch of its map's record, and what it can prove."""

    cluster: str
    shard: int
    epoch: int
    secret: bytes


def _proof(secret: bytes, role: bytes, hello: Hello, nonce: bytes) -> bytes:
    return hmac.digest(secret, role + b"\0" + _encode((hello, nonce)), hashlib.sha256)


class Dialling:
    """The dialer's half: `hello` is sent first."""

    def __init__(self, end: End, wanted_shard: int, wanted_epoch: int, nonce: bytes) -> None:
        """`nonce`: `NONCE_BYTES` of random bytes."""
        self._secret = end.secret
        self.hello = Hello(VERSION, end.cluster, end.shard, end.epoch, wanted_shard, wanted_epoch, nonce)
        self._is_proved = False  # the listener
        self.is_welcome = False

    def receive(self, message: Challenge | Welcome | Refused) -> Proof | None:
        """Takes a message of the listener; returns what to answer. Raises LinkRefused."""
        if isinstance(message, Refused):
            raise LinkRefused(message.reason, passes=message.passes)
        if isinstance(message, Challenge) and not self._is_proved:
            if not hmac.compare_digest(message.proof, _proof(self._secret, b"listener", self.hello, message.nonce)):
                raise LinkRefused("the host that was dialled does not know the secret of cluster.secret_file")
            self._is_proved = True
            return Proof(_proof(self._secret, b"dialer", self.hello, message.nonce))
        if isinstance(message, Welcome) and self._is_proved:
            self.is_welcome = True
            return None
        raise LinkRefused("the host that was dialled says things out of turn")


class Listening:
    """The listener's half."""

    def __init__(self, end: End, nonce: bytes) -> None:
        """`nonce`: `NONCE_BYTES` of random bytes."""
        self._end = end
        self._nonce = nonce
        self._hello: Hello | None = None
        self.is_welcome = False

    @property
    def is_challenged(self) -> bool:
        """Whether the dialer has this end's proof."""
        return self._hello is not None

    def receive(self, message: Hello | Proof) -> Challenge | Welcome:
        """Takes a message of the dialer; returns what to answer. Raises LinkRefused, which the dialer is to be sent."""
        end, hello = self._end, self._hello
        if isinstance(message, Hello) and hello is None:
            self._check(message)
            self._hello = message
            return Challenge(self._nonce, _proof(end.secret, b"listener", message, self._nonce))
        if isinstance(message, Proof) and hello is not None and not self.is_welcome:
            if not hmac.compare_digest(message.proof, _proof(end.secret, b"dialer", hello, self._nonce)):
                raise LinkRefused("the host that dials does not know the secret of cluster.secret_file")
            self.is_welcome = True
            return Welcome()
        raise LinkRefused("the host that dials says things out of turn")

    def _check(self, hello: Hello) -> None:
        end = self._end
        if hello.version != VERSION:
            raise LinkRefused(f"a link of version {hello.version}, and this host speaks version {VERSION}")
        if hello.cluster != end.cluster:
            raise LinkRefused(f"a link of cluster {hello.cluster}, and this host is of cluster {end.cluster}")
        if hello.wanted_shard != end.shard:
            text = f"shard {hello.wanted_shard} is asked for, and this is shard {end.shard}"
            raise LinkRefused(text, passes=True)
        if hello.wanted_epoch != end.epoch:
            raise LinkRefused(
                f"epoch {hello.wanted_epoch} of shard {end.shard} is asked for, and this is epoch {end.epoch}",
                passes=True,
            )
