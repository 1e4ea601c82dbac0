"""What a daemon does not serve, or not in full, and why: for /readyz, the page, the metrics and the service manager.

It is worked out anew at each question, from the map and from what each worker has said of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from shards.supervisor.child_process import WorkerState
from shards.supervisor.owners import Owners
from shards.supervisor.registry import Registry

LAPSED = "its grant of time has run out: the log cannot be reached, and another host may serve"


class Unserved(NamedTuple):
    """A shard that is not served, or only in part; shard 0 stands for the whole daemon."""

    shard_id: int
    # As `WorkerState.state`; or "gone": no process is its worker; "unopened": the map of the buckets is not; "lapsed":
    # it serves, and its journal grants no time; "elsewhere": it is another host's, or is to be; "idle": none is here;
    # "full": it serves what is asked and takes no changes.
    state: str
    why: str

    @property
    def text(self) -> str:
        """The shard and the reason, for people."""
        return f"shard {self.shard_id}: {self.why}" if self.shard_id else self.why

    @property
    def is_starting(self) -> bool:
        """Whether the shard is about to be served."""
        return self.state in ("starting", "waiting", "recovering", "recovered")


def unserved_of(
    registry: Registry, workers: Mapping[int, WorkerState], owners: Owners | None, why_idle: str
) -> list[Unserved]:
    """The shards that are not served; empty when every bucket is served. `owners`: None where one host serves all;
    `why_idle`: why this host takes no shard, "" where it may.
    """
    if registry.unopened:
        return [Unserved(0, "unopened", registry.unopened)]
    unserved = []
    if owners is not None and not workers:
        unserved.append(Unserved(0, "idle", why_idle or "this host serves no shard at present"))
    for shard_id in sorted(registry.map.weights):
        worker = workers.get(shard_id)
        if worker is None and owners is not None:
            if why := owners.why_unserved(shard_id):
                unserved.append(Unserved(shard_id, "elsewhere", why))
        elif worker is None:
            unserved.append(Unserved(shard_id, "gone", "no worker"))
        elif worker.state == "recovering":
            unserved.append(Unserved(shard_id, "recovering", f"recovering{share_of(worker.progress)}"))
        elif worker.state != "serving":
            because = f": {worker.reason}" if worker.reason else ""
            unserved.append(Unserved(shard_id, worker.state, f"{worker.state}{because}"))
        elif worker.figures.get("lapsed"):
            unserved.append(Unserved(shard_id, "lapsed", LAPSED))
    return unserved


def refusing_of(workers: Mapping[int, WorkerState]) -> list[Unserved]:
    """The shards that are served and refuse changes, because their journals have no room."""
    return [
        Unserved(shard_id, "full", f"changes are refused: {worker.figures['no_room']}")
        for shard_id, worker in sorted(workers.items())
        if worker.state == "serving" and worker.figures.get("no_room") and not worker.figures.get("lapsed")
    ]


def share_of(progress: tuple[int, int]) -> str:
    """How far a recovery has come, as " 65 %"; empty where the worker has not reported it."""
    done, total = progress
    return f" {100 * done // total} %" if total else ""
