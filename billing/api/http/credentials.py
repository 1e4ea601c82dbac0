"""Finds the grant of a request: by its headers, or else by its connection. No sockets.

`Authorization: Bearer TOKEN` signs in one request. A request without that header has the grant of its connection, from
a client certificate or, where there are no tokens, from loopback; then no web page may have made it, see `browser`. A
wrong token ends the connection, so that each connection has one guess.
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs
from aiohttp.http import RawRequestMessage

from billing.api.auth import Grant, Guard
from billing.api.door import Door
from billing.api.http import browser
from billing.api.http.answers import Misplaced
from billing.api.http.routes import split_target
from billing.ledger.errors import Refused

GRANTS_KEPT_MAX: Final = 1_000


class Credentials:
    """Finds grants, and caches by token those that the door's guard gave."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._grants: dict[str, Grant] = {}
        self._guard: Guard | None = None  # the guard that gave them

    def grant_of(self, message: RawRequestMessage, greeted: Grant | None, origin: str, by_loopback: bool) -> Grant:
        """Returns the grant of a request. `greeted`: the grant of its connection. Raises Refused and Misplaced."""
        headers = message.headers
        authorization = headers.get(hdrs.AUTHORIZATION)
        if authorization is None:
            if greeted is None:
                raise Refused("UNAUTHENTICATED", "sign in: Authorization: Bearer TOKEN")
            browser.check(headers, split_target(message.path).host or headers.get(hdrs.HOST), by_loopback)
            return greeted
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(headers.getall(hdrs.AUTHORIZATION)) > 1:
            raise Misplaced(401, "expected one Authorization: Bearer TOKEN", last=True, name="UNAUTHENTICATED")
        if self._guard is not self._door.guard:
            self._guard, self._grants = self._door.guard, {}
        grant = self._grants.get(token)
        if grant is None:
            grant = self._door.guard.sign_in(token.encode("utf-8", "surrogateescape"))
            if grant is None:
                self._door.drops += 1
                self._door.refused_sign_in(origin)
                raise Misplaced(401, "this token is not known", last=True, name="UNAUTHENTICATED")
            if len(self._grants) < GRANTS_KEPT_MAX:
                self._grants[token] = grant
        return grant
