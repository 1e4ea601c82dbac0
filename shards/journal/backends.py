"""The kinds of log there are, and the one place where a backend is made by its kind.

The module of a backend has a function `backend(settings, host)`, which returns a `shards.journal.Backend`. A new kind
is a package and one line of `KINDS`; the configuration accepts the kinds of that table. `settings` is plain data, so
that it can be sent to worker processes. Its "kind" chooses the backend. It holds every setting that an operator can
make for a log of one host, or of several hosts, and each backend reads those that it knows. A module is imported only
when its kind is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a command that opens no log imports none of this
    from shards.journal import Backend
    from shards.system.disk import Disk
    from shards.system.host import Host


class Kind(NamedTuple):
    """One kind of log: the module of its backend."""

    module: str
    is_shared: bool  # several hosts read and write one log of this kind
    leaves: tuple[str, ...] = ()  # how names begin that only this kind leaves in a data directory


KINDS: dict[str, Kind] = {
    "file": Kind("shards.journal.file.backend", is_shared=False, leaves=("map", "shard-")),
    "jetstream": Kind("shards.journal.jetstream.backend", is_shared=True, leaves=("cluster",)),
}


def open(settings: dict[str, Any], host: Host) -> Backend:
    """Returns the backend that these settings name. Reads and writes nothing yet. Raises ValueError (no such kind)."""
    kind = settings["kind"]
    if kind not in KINDS:
        raise ValueError(f"journal.kind {kind!r} is not known")
    backend: Backend = import_module(KINDS[kind].module).backend(settings, host)
    return backend


def check_kind(kind: str, directory: str, disk: Disk) -> None:
    """Raises Unfit where another kind of log has left its data in this data directory. Otherwise the daemon would found
    an empty ledger beside the data that its operator means.
    """
    from shards.journal import Unfit

    for name in sorted(disk.listdir(directory)) if directory and disk.exists(directory) else ():
        for other, (_, _, leaves) in KINDS.items():
            if other != kind and name.startswith(leaves):
                raise Unfit(
                    f'journal.kind is "{kind}", and daemon.data_dir has {directory}/{name}, which "{other}" leaves: '
                    "set the former, or name another data_dir; `billing backup` and `billing restore` lead from one "
                    "kind to another"
                )
