"""A worker's first phase: its journal is opened and replayed, and its buckets are compared with the map.

Opening fences an older owner. The newest good snapshot is loaded, what came after it is replayed through the same code
that made it, and the shard is held against the map: one restored from an older backup, or emptied, ends the process
with 65. No request is taken, no clock is read but for progress, and no socket is touched.

What the supervisor says meanwhile is kept for the second phase (`shards.worker.serving`): shards that came or went,
moves that were decided, a changed configuration, anchors of billing time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shards.buckets import BucketMap
from shards.control import (
    Begin,
    Configure,
    MoveAbort,
    MoveIn,
    MoveOut,
    NewAnchor,
    NewOwner,
    Obstacle,
    Progress,
    Proved,
    ReadObstacle,
    Recovered,
    Serve,
    ShardsChanged,
    ToSupervisor,
    ToWorker,
    Waiting,
)
from shards.journal import Unavailable, backends
from shards.moves.handoff import before_serving
from shards.shard import Shard
from shards.system.clock import BillingClock
from shards.system.host import Host
from shards.worker.hosting import Hosted
from shards.worker.recover import Beats, check_ownership, open_journal, recover


class Recovering:
    """The recovery of one shard, until it is served. The serving phase takes its attributes over."""

    def __init__(self, begin: Begin, application: Hosted, host: Host, send: Callable[[ToSupervisor], None]) -> None:
        self.begin = begin
        self.application = application
        self.map = BucketMap.decode(begin.bucket_map)
        self.settings = begin.settings  # the newest
        self.proved = set(begin.proved)  # shards that hold what the map says
        self.journal = backends.open(begin.journal, host).journal(begin.shard_id, self._stamp_ns, self._line_ns)
        self.shard = Shard(begin.shard_id, application.machine)
        self.records = 0  # that were replayed
        self.is_new = False  # nothing was ever recorded here, and nothing should have been
        self.clock: BillingClock | None = None  # from Serve on
        self._boot_ns = host.clocks.boot_ns
        self.beats = Beats(self.journal, self._boot_ns)  # until it serves
        self._last_ns = 0  # of the journal
        self._host = host
        self._send = send

    async def run(self, stopping: asyncio.Event) -> None:
        """Recovers the shard to the end of its journal, and reports it. Raises Stopped, Damaged, and errors of the
        journal and the machine.
        """
        begin, began_ns = self.begin, self._boot_ns()
        pid, boot_ns = self._host.pid(), self._boot_ns
        opened = await open_journal(self.journal, begin.shard_id, pid, boot_ns, stopping, self._on_wait)
        self.beats = Beats(self.journal, self._boot_ns)
        recovered = await recover(self.shard, self.journal, self._on_progress, boot_ns, stopping)
        self.records = recovered.records
        self.is_new = opened.head == 0 and not begin.founded
        if begin.links is None:  # else the map that counts is the one with which it is told to serve
            check_ownership(self.shard, self.map, begin.founded, self.is_new)
        self._last_ns = max(self.journal.last_time_ns, opened.began_ns)
        took_ns = self._boot_ns() - began_ns
        self._send(Recovered(self._last_ns, took_ns, *recovered, list(self.journal.warnings)))

    def on_message(self, message: ToWorker) -> None:
        """Takes messages of the supervisor before the shard is served. Questions to a serving worker are not
        answered.
        """
        match message:
            case Serve():
                self.clock = BillingClock(message.anchors[0], self._last_ns)
                for anchor in message.anchors[1:]:
                    self.clock.follow(anchor)
            case NewAnchor():
                if self.clock is not None:
                    self.clock.follow(message.anchor)
            case ShardsChanged():
                self.learn_shards(message)
            case Configure():
                self.settings = message.settings
                self.application.configure(message.configuration)
            case Proved():
                self.proved.add(message.shard_id)
            case MoveOut() | MoveIn() | MoveAbort() | NewOwner():
                before_serving(message, self.map, self._send)
            case ReadObstacle():
                self._send(Obstacle(message.number, "it is starting"))
            case _:
                return

    def learn_shards(self, changed: ShardsChanged) -> None:
        """Applies a change of the set of shards to the map."""
        for record in changed.records:
            self.map.apply(record)
        begin = self.begin
        known: tuple[tuple[dict[int, Any], dict[int, Any]], ...] = (
            (begin.peers, changed.peers), (begin.direct, changed.direct), (begin.far, changed.far)
        )  # fmt: skip
        for old, new in known:
            old.clear()
            old.update(new)

    def has_grant(self) -> bool:
        """Whether the journal has granted time beyond the present instant."""
        return self.journal.granted_ns > self._stamp_ns()

    def _stamp_ns(self) -> int:
        """The billing instant with which the journal stamps batches."""
        return 0 if self.clock is None else self.clock.at(self._boot_ns())

    def _line_ns(self) -> int:
        """Billing time by this host's clock, even while the shard's time stands still because another host's clock was
        ahead.
        """
        return 0 if self.clock is None else self.clock.ahead(self._boot_ns())

    def _on_wait(self, full: Unavailable) -> None:
        """Reports that the journal has no room for a start, or is out of reach."""
        self._send(Waiting(str(full)))

    def _on_progress(self, done: int, total: int) -> None:
        self._send(Progress(done, total))
        self.beats.due()
