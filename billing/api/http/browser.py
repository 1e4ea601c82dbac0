"""Refuses requests without a token that a web page of another site may have made. No sockets.

Over loopback without tokens, and with a client certificate, a request has the grant of its connection. Any page in a
browser on this host can make requests over such a connection. So a browser's request is refused unless its headers rule
out that another site made it:

- `Sec-Fetch-Site`, which a page cannot set, must be `same-origin` or `none`, where it is present;
- `Origin`, which browsers add to all requests but plain GETs, must name the same host as `Host`;
- over loopback, `Host` must be a name or an address of loopback: otherwise a site whose name resolves to this host
  would count as the daemon's own (DNS rebinding).

Bodies must also be `application/json`. Before a browser sends such a body to another site it asks that site for
permission, and the daemon gives none. So a page of another site can neither change nor read anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from billing.ledger.errors import Refused

HOSTS_KEPT_MAX: Final = 64  # Host headers whose result is cached: clients use few names for this host


def check(headers: Mapping[str, str], host: str | None, loopback: bool) -> None:
    """Raises Refused `FORBIDDEN` where another site may have made the request. `host`: the host that the request is
    for, as its target or the header Host names it. `loopback`: whether the connection came over TCP from loopback.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        raise Refused("FORBIDDEN", "a page of another site made this request; sign in with a token")
    origin = headers.get("Origin")
    if origin is not None and (host is None or _host_of(origin) != host.lower()):
        raise Refused("FORBIDDEN", "the Origin is another than the Host; sign in with a token")
    if loopback and host is not None and not is_loopback_host(host):
        raise Refused("FORBIDDEN", "the Host is none of loopback; sign in with a token, or call 127.0.0.1 or localhost")


@lru_cache(HOSTS_KEPT_MAX)
def is_loopback_host(host: str) -> bool:
    """Whether a Host header (name or address, maybe with a port) is this host's loopback."""
    name = host.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host_of(origin: str) -> str:
    """Returns host and port of an Origin as a Host header has them; empty for `null` and for text that is no origin."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    return parts.netloc.lower() if parts.scheme in ("http", "https") else ""
