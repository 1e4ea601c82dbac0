"""Who makes a request: what its headers say, or else its connection. No sockets.

`Authorization: Bearer TOKEN` says it for one request. Where a request says nothing, its connection does: a client
certificate, or loopback where there are no tokens; then no web page may have made it, see `browser`. A wrong token ends
the connection: one guess each.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import hdrs

from billing.api.auth import Grant, Guard
from billing.api.door import Door
from billing.api.http import browser
from billing.api.http.answers import Misplaced
from billing.ledger.errors import Refused

GRANTS_KEPT_MAX: Final = 1_000


class Credentials:
    """Grants by token, as far as the door's guard has let them in."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._grants: dict[str, Grant] = {}
        self._guard: Guard | None = None  # whose they are

    def grant_of(self, headers: Any, greeted: Grant | None, origin: str, *, by_loopback: bool) -> Grant:
        """What a request with these headers (those of aiohttp) may do. `greeted`: what its connection may. Raises
        Refused and Misplaced.
        """
        authorization = headers.get(hdrs.AUTHORIZATION)
        if authorization is None:
            if greeted is None:
                raise Refused("UNAUTHENTICATED", "sign in: Authorization: Bearer TOKEN")
            browser.check(headers, by_loopback)
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
