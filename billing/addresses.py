"""Addresses written in a configuration: where to listen, and what to call.

Invariant: it is safe to put a user id into a URL that `check_url` accepts. Its scheme, host and port are fixed; it has
no user name, password, fragment or hidden character; `{user_id}` is the only placeholder and stands after the host.

A URL may carry a secret in its query, so code that shows a URL to people shows `shown_url` of it.

This module never resolves a name and never opens a socket.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")


class Listen(NamedTuple):
    """A TCP address to listen on; port 0 takes a free one."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_listen(text: str) -> Listen:
    """Parses `host:port` or `[v6]:port`. Raises ValueError, whose text says what is expected."""
    match = _LISTEN.fullmatch(text)
    if match is None or int(match[3]) > 65_535:
        raise ValueError(f'expected "host:port", port 0 to 65535, an IPv6 host in brackets, got {text!r}')
    return Listen(match[1] or match[2], int(match[3]))


def check_listen(text: str) -> str:
    """Returns the text unchanged if it is empty or an address to listen on. Raises ValueError otherwise."""
    if text:
        parse_listen(text)
    return text


def check_url(text: str) -> str:
    """Returns the text unchanged if it is empty or a URL that can be called with a user id. Raises ValueError
    otherwise.
    """
    if not text:
        return text
    if not text.isascii() or any(character <= " " or character in '\x7f"<>\\^`|' for character in text):
        raise ValueError(f"expected a URL of printable ASCII, percent-encoded otherwise, got {text!r}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"expected a URL, got {text!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(f'expected "http://host/path" or "https://host/path", got {text!r}')
    if ":" not in host:
        try:
            host.encode("idna")
        except UnicodeError:
            raise ValueError(f"expected a host whose labels have 1 to 63 characters, got {host!r}") from None
    if "@" in parts.netloc:
        raise ValueError("expected a URL without user name and password")
    if "#" in text:
        raise ValueError(f"expected a URL without #fragment, got {text!r}")
    if "{" in parts.netloc or "{" in (rest := text.replace("{user_id}", "")) or "}" in rest:
        raise ValueError(f"expected no placeholder but {{user_id}}, and it in the path or the query, got {text!r}")
    return text


def shown_url(url: str) -> str:
    """A URL without secrets: in its query each value becomes `***`, except empty values and `{user_id}`."""
    before, mark, query = url.partition("?")
    shown = [
        f"{quote(name, safe='{}')}={value if value in ('', '{user_id}') else '***'}"
        for name, value in parse_qsl(query, keep_blank_values=True)
    ]
    return before + mark + "&".join(shown)
