"""The kinds of log there are, and the one place where a backend is made by its kind.

A backend is a module with `backend(settings, host)`, which returns a `shards.journal.Backend`; a new kind is a package
and one line of `KINDS`, which the configuration goes by, too. `settings` is plain data, so that it can be handed to
worker processes: its "kind" chooses the backend, and it is given all that an operator may say of a log on one host, or
of one that hosts share; the backend takes what it knows. A module is loaded only when its kind is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a command line that opens no log loads none of it
    from shards.journal import Backend
    from shards.system.host import Host


class Kind(NamedTuple):
    """A kind of log."""

    module: str
    is_shared: bool  # several hosts read and write one log of this kind


KINDS: dict[str, Kind] = {
    "file": Kind("shards.journal.file.backend", is_shared=False),
    "jetstream": Kind("shards.journal.jetstream.backend", is_shared=True),
}


def open(settings: dict[str, Any], host: Host) -> Backend:
    """The backend that these settings name. Nothing is read or written yet. ValueError: no such kind."""
    kind = settings["kind"]
    if kind not in KINDS:
        raise ValueError(f"journal.kind {kind!r} is not known")
    backend: Backend = import_module(KINDS[kind].module).backend(settings, host)
    return backend
