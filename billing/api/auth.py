"""The roles of a connection.

A connection asks its `Guard` for a `Grant` twice: when it opens (`greet`), and when its client signs in with a token
(`sign_in`). A connection without a grant may call only the methods that need no role. Deny by default: a role allows
the methods whose row in the table of methods names it; `admin` allows all methods.

Without a tokens file, every client over loopback or the unix socket may do everything; only access to the machine and
the file mode of the socket limit who that is. A client with a certificate of `rpc.tls_client_ca` may do everything,
too. With a tokens file, every client over TCP has to sign in, unless the common name of its certificate is a name in
the file: then the client has the roles of that line. Over the unix socket every user has to sign in except root and the
daemon's own user.

The tokens file holds hashes and no tokens. Its grammar, line by line (`#` begins a comment line, empty lines are
allowed):

    name ":" role {"," role} ":" sha256 of the token in hex [":" sha1 of the sha1 of the token in hex]
    metering:charge,read:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The last part is for clients that sign in over Tarantool's protocol: its CHAP-SHA1 never sends the token itself.

This module opens no file: the caller passes the text of the tokens file to `Guard`.
"""

import hashlib
import hmac
import re
from asyncio import BaseTransport
from collections.abc import Callable
from typing import Final, NamedTuple

from billing.api.methods import ADMIN, ANYONE, ROLES, Method, allowed, find
from billing.api.origins import is_loopback, is_trusted, is_unix, peer_uid
from billing.ledger.commands import ACTOR_BYTES_MAX
from billing.ledger.entry import TIME
from billing.ledger.errors import Refused

TOKENS_MAX: Final = 1_000

NAME = re.compile(rf"(?!{TIME}$)[A-Za-z0-9._-]{{1,64}}")
NAME_IS = f"1 to 64 letters, digits or ._-, and not {TIME}, which entries name where no caller caused them"
_OTHERS = re.compile(rf"{TIME}|uid:.*", re.DOTALL)  # actors that are no name of a token or certificate
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


class Grant(NamedTuple):
    """The name and the roles of a connection."""

    name: str
    roles: frozenset[str]
    actor: bytes = b""  # recorded in the entries that the connection causes; empty where they record no actor


def method_of(name: object, grant: Grant | None, sign_in: str) -> Method:
    """Returns the method called `name` if `grant` allows it; raises Refused. `grant` is None for a client that has not
    signed in; the message of its refusal is `sign_in`, which says how to sign in.
    """
    method = find(name)
    if grant is None and (method is None or method.role != ANYONE):
        raise Refused("UNAUTHENTICATED", sign_in)
    if method is None:
        raise Refused("UNKNOWN_METHOD", "there is no such method; call methods for a list")
    if grant is not None and not allowed(method, grant.roles):
        raise Refused("FORBIDDEN", f"{method.name} needs the role {method.role}")
    return method


class _Token(NamedTuple):
    digest: bytes
    grant: Grant
    proof: bytes  # SHA1(SHA1(token)); empty where the file has none


class TokensError(ValueError):
    """The tokens file is malformed; the message names the line where there is one to name."""


class Guard:
    """Grants roles by a fixed set of tokens. All connections of a worker share one guard."""

    def __init__(self, tokens_text: str | None = None) -> None:
        """`tokens_text`: the content of the tokens file; None where no file is configured. Raises TokensError."""
        self._tokens = None if tokens_text is None else _parse(tokens_text)

    @property
    def asks_for_tokens(self) -> bool:
        """Whether a tokens file is configured."""
        return self._tokens is not None

    def greet(self, transport: BaseTransport) -> Grant | None:
        """Returns the grant of a connection before it signs in; None where it has to sign in."""
        if is_unix(transport):
            uid = peer_uid(transport)
            if self._tokens is None:
                return Grant("local", frozenset({ADMIN}), b"uid:%d" % uid)
            return Grant(f"uid-{uid}", frozenset({ADMIN}), b"uid:%d" % uid) if is_trusted(uid) else None
        certified = _certified_name(transport)
        if self._tokens is None:
            if certified is not None:
                return Grant(certified, frozenset({ADMIN}), _actor_of(certified))
            return Grant("local", frozenset({ADMIN})) if is_loopback(transport) else None
        return next((token.grant for token in self._tokens if token.grant.name == certified), None)

    def outlives(self, grant: Grant, before: "Guard") -> bool:
        """Whether a connection to which the previous guard `before` gave `grant` may stay: the line of the tokens file
        behind the grant must be unchanged. A grant that came from no line stays valid.
        """
        was = next((token for token in before._tokens or () if token.grant == grant), None)
        return was is None or was in (self._tokens or ())

    def sign_in(self, token: bytes) -> Grant | None:
        """Returns the grant of `token`; None for an unknown token."""
        digest = hashlib.sha256(token).digest()
        grant = None
        for known_token in self._tokens or ():
            if hmac.compare_digest(known_token.digest, digest):
                grant = known_token.grant
        return grant

    def sign_in_as(self, name: bytes, proves: Callable[[bytes], bool]) -> Grant | None:
        """Returns the grant of the token called `name`; None for an unknown name or a wrong answer of the client.
        `proves(proof)` says whether the client made its answer with the token whose SHA1(SHA1(token)) is `proof`.
        """
        for known_token in self._tokens or ():
            if known_token.grant.name.encode() == name and known_token.proof and proves(known_token.proof):
                return known_token.grant
        return None


def _actor_of(certified: str) -> bytes:
    """The actor of a client by its certificate, which cannot pass for a user of the unix socket or for time."""
    actor = f"certificate:{certified}" if _OTHERS.fullmatch(certified) else certified
    return actor.encode()[:ACTOR_BYTES_MAX]


def _parse(text: str) -> tuple[_Token, ...]:
    tokens: list[_Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.strip().split(":")
        if len(parts) not in (3, 4):
            raise TokensError(f"line {number}: expected name:role,role:sha256")
        name, roles_text, digest, *proofs = parts
        roles = frozenset(role.strip() for role in roles_text.split(","))
        if not NAME.fullmatch(name):
            raise TokensError(f"line {number}: expected a name of {NAME_IS}")
        if not roles <= ROLES:
            raise TokensError(f"line {number}: expected roles out of {', '.join(sorted(ROLES))}")
        if not _SHA256.fullmatch(digest):
            raise TokensError(f"line {number}: expected the SHA-256 of the token as 64 lower-case hex digits")
        if proofs and not _SHA1.fullmatch(proofs[0]):
            raise TokensError(f"line {number}: expected the SHA-1 of the SHA-1 as 40 lower-case hex digits")
        if any(token.digest == bytes.fromhex(digest) or token.grant.name == name for token in tokens):
            raise TokensError(f"line {number}: this token or this name is in the file twice")
        proof = bytes.fromhex("".join(proofs))
        tokens.append(_Token(bytes.fromhex(digest), Grant(name, roles, name.encode()), proof))
    if not tokens:
        raise TokensError("expected at least one token: with none nobody could sign in")
    if len(tokens) > TOKENS_MAX:
        raise TokensError(f"expected at most {TOKENS_MAX} tokens")
    return tuple(tokens)


def _certified_name(transport: BaseTransport) -> str | None:
    """Returns the common name of the client's certificate, which TLS has verified; None without a certificate."""
    certificate = transport.get_extra_info("peercert") or {}
    for part in certificate.get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return None
