"""Finds the method of an HTTP request: each row of the table has a path and a verb.

The path and verb of a row follow from its kind, so that a new method needs no further code:

    get_account                     GET   /v1/accounts/{user_id}
    a question about an account     GET   /v1/accounts/{user_id}/NAME
    a command                       POST  /v1/accounts/{user_id}/NAME
    local to the door               GET   /v1/NAME
    the operator's side             GET   /v1/operator/NAME, or POST where it changes something

`_ELSEWHERE` lists the methods with another path, because people would look for them there. A hold is a resource of its
account, so `capture` and `release` name it in the path. `hello` has no path: a request carries its token itself.

A segment of a path is percent-decoded after the path was split, so a user id may contain a slash.

The target of a request is a path with a query or, as clients send it to proxies, a whole URL; see `split_target`.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from billing.api.methods import COMMAND, LOCAL, METHODS, QUERY, Field, Method

GET: Final = "GET"
POST: Final = "POST"
PUT: Final = "PUT"

_ACCOUNT: Final = "/v1/accounts/{user_id}"

_ELSEWHERE: Final[dict[str, tuple[str, str]]] = {
    "get_account": (GET, _ACCOUNT),
    "accounts": (GET, "/v1/accounts"),
    "entries": (GET, "/v1/entries"),
    "balance_at": (GET, _ACCOUNT + "/balance"),
    "capture": (POST, _ACCOUNT + "/holds/{hold_id}/capture"),
    "release": (POST, _ACCOUNT + "/holds/{hold_id}/release"),
    "hold": (POST, _ACCOUNT + "/holds"),
    "set_credit_limit": (PUT, _ACCOUNT + "/credit_limit"),
    "set_thresholds": (PUT, _ACCOUNT + "/thresholds"),
    "set_class": (PUT, _ACCOUNT + "/class"),
    "close_account": (POST, _ACCOUNT + "/close"),
    "dry_run": (POST, "/v1/dry_run"),
    "retry_cutoff": (POST, "/v1/operator/cutoffs/{user_id}/retry"),
    "audit": (GET, "/v1/operator/audit"),
    "pending_cutoffs": (GET, "/v1/operator/cutoffs"),
    "buckets_info": (GET, "/v1/operator/buckets"),
    "shards_info": (GET, "/v1/operator/shards"),
    "move_bucket": (POST, "/v1/operator/buckets/{bucket_id}/move"),
    "pin_bucket": (POST, "/v1/operator/buckets/{bucket_id}/pin"),
    "unpin_bucket": (POST, "/v1/operator/buckets/{bucket_id}/unpin"),
    "explain_move": (GET, "/v1/operator/buckets/{bucket_id}/explain_move"),
}
_NOWHERE: Final = frozenset({"hello"})


class Route(NamedTuple):
    """The path and the verb of one method."""

    method: Method
    verb: str
    path: str  # with {names} in it
    in_path: tuple[str, ...]  # names of the required fields that are in the path, in its order
    in_body: tuple[Field, ...]  # required fields that are not in the path

    @property
    def has_body(self) -> bool:
        """Whether fields and options come as JSON; otherwise they are in the query."""
        return self.verb != GET


class Found(NamedTuple):
    """The routes of a path by verb, and the texts that the path has in the places of `{names}`."""

    routes: dict[str, Route]
    values: list[bytes]


def place_of(method: Method) -> tuple[str, str]:
    """Returns (verb, path) of a method."""
    if method.name in _ELSEWHERE:
        return _ELSEWHERE[method.name]
    verb = POST if method.changes else GET
    if method.about_account:
        return verb, f"{_ACCOUNT}/{method.name}"
    return verb, f"/v1/{method.name}" if method.kind == LOCAL else f"/v1/operator/{method.name}"


def _route_of(method: Method) -> Route:
    verb, path = place_of(method)
    in_path = tuple(part[1:-1] for part in path.split("/") if part.startswith("{"))
    required = {field.name for field in method.required}
    assert required.issuperset(in_path), f"{path} names what {method.name} does not take"
    names_account = bool(method.required) and method.required[0].name == "user_id"
    assert not (names_account and method.kind in (COMMAND, QUERY)) or in_path[:1] == ("user_id",), (
        f"{path} is about no account"
    )
    return Route(method, verb, path, in_path, tuple(field for field in method.required if field.name not in in_path))


ROUTES: Final = tuple(_route_of(row) for row in METHODS.values() if row.name not in _NOWHERE)

_ANY: Final = "any"  # the key of a node's child for any segment; segments themselves are bytes
_HERE: Final = "here"  # the routes of the path that ends at a node

_Node = dict[bytes | str, Any]


def _tree() -> _Node:
    root: _Node = {}
    for route in ROUTES:
        node = root
        for part in route.path.split("/")[1:]:
            node = node.setdefault(_ANY if part.startswith("{") else part.encode(), {})
        routes = node.setdefault(_HERE, {})
        assert route.verb not in routes, f"{route.path} has two methods for {route.verb}"
        routes[route.verb] = route
    return root


_ROOT: Final = _tree()


_URL: Final = re.compile(r"https?://([^/?#@]+)(/[^?]*)?(?:\?(.*))?", re.ASCII | re.DOTALL | re.IGNORECASE)


class Target(NamedTuple):
    """The target of a request. `host`: with the port, where the target names one; empty otherwise."""

    path: str
    query: str
    host: str


def split_target(target: str) -> Target:
    """Splits the target of a request (RFC 9112, section 3.2). It is nearly always a path with a query; the host of a
    URL takes the place of the header Host. A target in another form becomes a path that has no route.
    """
    if not target.startswith("/") and (url := _URL.fullmatch(target)) is not None:
        host, path, query = url.groups("")
        return Target(path or "/", query, host)
    path, _, query = target.partition("?")
    return Target(path, query, "")


def find(path: str) -> Found | None:
    """Returns the routes of a request's path (percent-encoded, without its query); None for an unknown path. Where a
    segment matches both a fixed word and a `{name}`, the word has precedence.
    """
    node = _ROOT
    values: list[bytes] = []
    if not path.startswith("/"):
        return None
    for part in path[1:].split("/"):
        segment = unquote_to_bytes(part) if "%" in part else part.encode("utf-8", "surrogateescape")
        below = node.get(segment)
        if below is None:
            below = node.get(_ANY)
            if below is None or not segment:
                return None
            values.append(segment)
        node = below
    routes = node.get(_HERE)
    return None if routes is None else Found(routes, values)
