"""The kinds of log there are, and the one place where a backend is made by its kind.

A backend is a module with `backend(settings, host)`, which returns a `shards.journal.Backend`; a new kind is a package
and one line of `KINDS`. `settings` is plain data, so that it can be handed to worker processes: its "kind" chooses the
backend, everything else in it is the backend's own. A module is loaded only when its kind is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shards.journal import Backend
from shards.system.host import Host

KINDS: dict[str, str] = {
    "file": "shards.journal.file.backend",
    "jetstream": "shards.journal.jetstream.backend",
}


def open(settings: dict[str, Any], host: Host) -> Backend:
    """The backend that these settings name. Nothing is read or written yet. ValueError: no such kind."""
    kind = settings["kind"]
    if kind not in KINDS:
        raise ValueError(f"journal.kind {kind!r} is not known")
    backend: Backend = import_module(KINDS[kind]).backend(settings, host)
    return backend
