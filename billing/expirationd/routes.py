"""Routes of calls: the template that makes a request, and the lane of the outbox, by kind of call and cutoff class.

A cutoff class with URLs of its own has its own templates and lanes, so a slow endpoint of the class delays no user of
another class, even if both are on one server. All other calls of a kind share one template, and kinds whose templates
have the same origin share a lane.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, Protocol

CUTOFF: Final = "cutoff"
RESTORE: Final = "restore"


class Template(Protocol):
    """Makes the bytes of requests to one URL."""

    @property
    def origin(self) -> str:
        """`scheme://host[:port]`"""

    def request(self, user_id: bytes, event_id: str, seq: int, exhausted_at_ns: int, timestamp_s: int) -> bytes:
        """The whole request; timestamp_s: of this attempt, seconds since the epoch."""


def call_name(kind: str, class_name: str) -> str:
    """The name of the template for calls of this kind and class; the kind alone for the default class."""
    return f"{kind} of {class_name}" if class_name else kind


class Routes:
    """The templates of one delivery, and a lane for each endpoint.

    `templates`: by kind, or by `call_name` for the calls of a class that has a URL of its own. `classes`: the names of
    the classes that may have their own URLs. `closed`: the `call_name` of calls for which a class has no URL at all.
    """

    def __init__(
        self, templates: dict[str, Template], classes: Iterable[str] = (), closed: Collection[str] = ()
    ) -> None:
        classed = {
            call_name(kind, class_name): (kind, class_name) for class_name in classes for kind in (CUTOFF, RESTORE)
        }
        kind_and_class = {name: classed.get(name, (name, "")) for name in templates}
        endpoints = {name: (template.origin, kind_and_class[name][1]) for name, template in templates.items()}
        lanes = list(dict.fromkeys(endpoints.values()))
        self.templates = templates
        self._closed = closed
        # Also kinds for which only a class has a URL.
        self.kinds = tuple(dict.fromkeys(kind for kind, _ in kind_and_class.values()))
        self.lanes = {name: lanes.index(endpoint) for name, endpoint in endpoints.items()}  # by the name of a template
        self.origins = [origin for origin, _ in lanes]  # by lane, as is the next
        self.endpoint_names = [f"{origin} of class {name}" if name else origin for origin, name in lanes]

    def template_name(self, kind: str, class_name: str) -> str:
        """The name of the template and lane that a call takes: the kind, unless the class has its own, or has none at
        all; then there is no template of this name.
        """
        name = call_name(kind, class_name)
        return name if name in self.templates or name in self._closed else kind
