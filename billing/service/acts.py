"""Records on the operators' record what happens to the daemon itself: its start, reloads, drained shards, its stop."""

from __future__ import annotations

import signal

from billing import __version__
from billing.audit.recorder import Recorder
from billing.config.reload import CLASSES, differences, urls_of_classes
from billing.config.schema import Config, shown_text
from shards.supervisor.supervisor import Supervisor


class Acts:
    """Writes records whose actor is empty, because no client asked for these acts through a door."""

    def __init__(self, audit: Recorder, supervisor: Supervisor) -> None:
        self._audit = audit
        self._supervisor = supervisor

    async def note_start(self) -> None:
        """Waits until the supervisor has billing time (then it has the map, too), and records the start."""
        supervisor = self._supervisor
        while supervisor.time.clock is None:
            await supervisor.wait_changed()
        self._audit.record("", "start", {"version": __version__, "shards": sorted(supervisor.map.weights)})
        self.note_drains(set())

    def note_stop(self, number: signal.Signals) -> None:
        """Records the signal that stops the daemon."""
        self._audit.record("", "stop", {"signal": number.name})

    def note_reload(self, before: Config, changed: Config) -> None:
        """Records the new values of the keys that a reload has changed."""
        changes, _ = differences(before, changed)
        changed_to: dict[str, str] = {}
        for path in changes:
            if path == CLASSES:
                changed_to |= urls_of_classes(before, changed)
                continue
            section, key = path.split(".")
            changed_to[path] = shown_text(changed, section, key)
        self._audit.record("", "reload", changed_to)

    def drained(self) -> set[int]:
        """The shards that are to own no bucket: those of weight 0."""
        return {shard_id for shard_id, weight in self._supervisor.map.weights.items() if weight == 0}

    def note_drains(self, before: set[int]) -> None:
        """Records the shards that are drained now and were not `before`."""
        if added := sorted(self.drained() - before):
            self._audit.record("", "drain", {"shards": added})
