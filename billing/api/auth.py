"""The roles of a connection.

A `Guard` is asked twice: when a connection opens (`greet`), and when it signs in with a token (`sign_in`). It answers a
`Grant`, or None: then the connection may call nothing but what needs no role. Deny by default: a role allows the
procedures that name it in the table of methods, `admin` all of them.

Without tokens, whoever reaches the daemon over loopback or its unix socket may do everything: the machine's own users
and the socket's file mode are the limit; so may whoever shows a certificate of `rpc.tls_client_ca`. With tokens, every
client over TCP has to sign in, except that a certificate with a common name of the tokens file has the roles of that
line; and of those over the unix socket everybody but root and the daemon's own user.

The tokens file holds no token, only hashes. Its grammar, a line each (`#` begins a comment line, empty lines are free):

    name ":" role {"," role} ":" sha256 of the token in hex [":" sha1 of the sha1 of the token in hex]
    metering:charge,read:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The last part is for clients that sign in over Tarantool's protocol: CHAP-SHA1 never sends the token itself.

This module opens no file; whoever makes a `Guard` hands it the text.
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
from billing.ledger.errors import Refused

TOKENS_MAX: Final = 1_000

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


class Grant(NamedTuple):
    """What a connection may do, and under which name."""

    name: str
    roles: frozenset[str]
    actor: bytes = b""  # as entries name who caused them; empty for whoever needs no name


def method_of(name: object, grant: Grant | None, sign_in: str) -> Method:
    """The method of this name, which the grant allows; raises Refused. None: nobody has signed in yet, and `sign_in`
    says how that is done.
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
    """The tokens file is not what it should be; the text says on which line."""


class Guard:
    """Decides by a fixed set of tokens; the same for all connections of a worker."""

    def __init__(self, tokens_text: str | None = None) -> None:
        """`tokens_text`: the content of the tokens file, None where none is configured. Raises TokensError."""
        self._tokens = None if tokens_text is None else _parse(tokens_text)

    @property
    def asks_for_tokens(self) -> bool:
        """Whether there are tokens at all."""
        return self._tokens is not None

    def greet(self, transport: BaseTransport) -> Grant | None:
        """What a connection may do before it signs in."""
        if is_unix(transport):
            uid = peer_uid(transport)
            if self._tokens is None:
                return Grant("local", frozenset({ADMIN}), b"uid:%d" % uid)
            return Grant(f"uid-{uid}", frozenset({ADMIN}), b"uid:%d" % uid) if is_trusted(uid) else None
        certified = _certified_name(transport)
        if self._tokens is None:
            if certified is not None:
                return Grant(certified, frozenset({ADMIN}), certified.encode()[:ACTOR_BYTES_MAX])
            return Grant("local", frozenset({ADMIN})) if is_loopback(transport) else None
        return next((token.grant for token in self._tokens if token.grant.name == certified), None)

    def outlives(self, grant: Grant, before: "Guard") -> bool:
        """Whether who was let in by the guard before may stay: its token or name still stands, with the same roles."""
        was = next((token for token in before._tokens or () if token.grant == grant), None)
        return was is None or was in (self._tokens or ())

    def sign_in(self, token: bytes) -> Grant | None:
        """What the bearer of `token` may do; None for an unknown one."""
        digest = hashlib.sha256(token).digest()
        grant = None
        for known_token in self._tokens or ():
            if hmac.compare_digest(known_token.digest, digest):
                grant = known_token.grant
        return grant

    def sign_in_as(self, name: bytes, proves: Callable[[bytes], bool]) -> Grant | None:
        """What the bearer of the token called `name` may do; None for an unknown one. `proves`: whether what the client
        sent was made with the token of this proof, SHA1(SHA1(token)).
        """
        for known_token in self._tokens or ():
            if known_token.grant.name.encode() == name and known_token.proof and proves(known_token.proof):
                return known_token.grant
        return None


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
            raise TokensError(f"line {number}: expected a name of 1 to 64 letters, digits or ._-")
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
    """The common name of the client's certificate, which the TLS layer has verified; None where there is none."""
    certificate = transport.get_extra_info("peercert") or {}
    for part in certificate.get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return None
