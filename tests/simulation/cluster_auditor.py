"""The auditor of several hosts: it reads each stream as it grows, and knows whose clock says what.

Beside all that `tests.simulation.auditor` checks of one daemon, and by the same arithmetic, it checks what several
hosts promise to each other:

- C1 (one epoch a billing instant): at each record. Epochs rise by one; no record of an older one follows; a new one
  begins only once the time of the one before it has passed by the clock of its host; what a client asked for is stamped
  from the beginning of its epoch on, and everything before the end of what had been granted by then.
- C2 (answered = in the log once, chain whole): at each record (positions, chains) and at each answer.
- C3 (no read older than an answer given elsewhere): at each answer, whichever host gave it.
- C4 (no cutoff without cause, none stale): at each attempt; whoever makes it has the newest epoch.
- C6 (instants never decrease, steps are bounded): at each entry and at each anchor, against the true time.
- C7 (a host with a bad clock serves nothing): the same, since whatever it stamped would be far from the true time.
- C9 (a lost end is refused): no record is taken behind an end that was lost.

Buckets that move between hosts are held against the map as those of one daemon are (I12 to I14); C5 is proved by
`tests/shards/moves/hosts_world.py`. C8 and C10 are played with real processes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from crc32c import crc32c

from tests.simulation.auditor import Auditor, billing_of
from tests.simulation.calls import Call
from tests.simulation.decode import OUTSIDE, Item
from tests.simulation.loop import Kernel

ERROR_NS_MAX = (
    300_000_000  # of a host's billing time, whose clock is good: 200 ms, a minute's drift, and what reading takes
)

_RECORD = struct.Struct("<4sBBHIQQIIqqI")
_DECISION = struct.Struct("<4sQI")
_BATCH, _EPOCH, _BEAT, _SEAL = 1, 2, 3, 4


class Owner(NamedTuple):
    """A worker that owns a shard, or has."""

    pid: int
    boot: bytes
    boot_ns: Callable[[], int]
    node: str


NOBODY = Owner(0, b"", lambda: 0, "")


class ShardLog:
    """What the auditor knows of a shard's stream."""

    def __init__(self) -> None:
        self.epoch = self.position = self.chain = 0
        self.began_ns = 0  # no instant of the newest epoch is before this
        self.granted_ns = 0  # up to which its owner may act, if it has heard everything
        self.known_ns = 0  # up to which it could act before the newest record
        self.is_sealed = True
        self.parts: list[bytes] = []
        self.part_chain = 0
        self.owner = NOBODY
        self.beats = 0


class HostsAuditor(Auditor):
    """What is in the log, what was answered, what was called, by whomever."""

    TOLD_AHEAD_NS_MAX = 2**63  # the grant is the bound, and is looked at below

    def __init__(self, kernel: Kernel, owner_of: Callable[[int], Owner]) -> None:
        """`owner_of`: whose process has this number."""
        super().__init__(None, False)
        self.logs: dict[int, ShardLog] = {}
        self.lines: dict[bytes, list[tuple[int, int, int, int]]] = {}  # boot id -> the anchors of that host
        self.epochs = self.records = 0
        self.epoch_owners: set[str] = set()
        self.claims: list[str] = []
        self.damaged: set[str] = set()  # streams that have lost what hosts had seen
        self.boots: dict[bytes, Callable[[], int]] = {}  # of hosts that are up: boot id -> boot clock
        self._kernel = kernel
        self._owner_of = owner_of
        self._map_chain = 0
        self._asked_ns: dict[int, int] = {}
        self.on_entry = self._look_at_entry

    # -- streams ----------------------------------------------------------------------------------------------------

    def stored(self, stream: str, sequence: int, subject: str, payload: bytes) -> None:
        """A stream has this message now."""
        self.records += 1
        if stream in self.damaged:
            self.wrong(f"{stream} takes a message as {sequence}, behind an end that was lost (C9)")
        if stream.startswith("J_"):
            self._record(int(stream[2:]), sequence, payload)
        elif subject == "M.decision":
            magic, version, chain = _DECISION.unpack_from(payload)
            body = payload[_DECISION.size + 4 :]
            if magic != b"BJD\x01" or crc32c(body, self._map_chain) != chain:
                self.wrong(f"decision {version} of the map does not follow the one before it (C2)")
            self._map_chain = chain
            self._batch("map", version, body)

    def _record(self, shard: int, sequence: int, message: bytes) -> None:
        log = self.logs.setdefault(shard, ShardLog())
        magic, kind, last, part, of, epoch, position, chain_before, chain, _, until_ns, _ = _RECORD.unpack_from(message)
        body = message[_RECORD.size + 4 :]
        description = f"record {sequence} of shard {shard}, of epoch {epoch}"
        if magic != b"BJS\x01" or of != shard:
            self.wrong(f"{description}: no record")
        if kind == _EPOCH:
            self._begins(log, description, epoch, int(body.decode().removeprefix("pid ")))
        elif epoch != log.epoch:
            self.wrong(f"{description} follows one of epoch {log.epoch} (C1)")
        elif log.is_sealed:
            self.wrong(f"{description} follows a seal (C1)")
        log.known_ns = log.granted_ns
        log.is_sealed = kind == _SEAL
        log.granted_ns = until_ns
        log.beats += kind == _BEAT
        if kind != _BATCH:
            if (position, chain_before, chain) != (log.position, log.chain, log.chain):
                self.wrong(f"{description} is at position {position}, the log at {log.position} (C2)")
            return
        if part == 0:
            log.parts, log.part_chain = [], log.chain
        if part != len(log.parts) or position != log.position + 1 or chain_before != log.part_chain:
            self.wrong(f"{description} is part {part} of batch {position} behind {log.position} (C2)")
        log.parts.append(body)
        log.part_chain = crc32c(body, chain_before)
        if chain != log.part_chain:
            self.wrong(f"{description} has another chain than its bytes (C2)")
        if last:
            log.position, log.chain = position, chain
            self._batch(f"shard-{shard}", position, b"".join(log.parts))

    def _begins(self, log: ShardLog, description: str, epoch: int, pid: int) -> None:
        if epoch != log.epoch + 1:
            self.wrong(f"{description} follows epoch {log.epoch} (C1)")
        old = log.owner
        if not log.is_sealed and log.granted_ns > log.began_ns and old.boot in self.boots:
            left_ns = log.granted_ns - billing_of(self.lines.get(old.boot, []), self.boots[old.boot]())
            if left_ns > 0:
                self.wrong(f"{description} begins {left_ns} ns before the time of {old.node} has passed (C1)")
        log.epoch, log.began_ns, log.owner = epoch, log.granted_ns, self._owner_of(pid)
        self.epochs += 1
        self.epoch_owners.add(log.owner.node)

    def _look_at_entry(self, shard: int, position: int, index: int, item: Item) -> None:
        log = self.logs[shard]
        if item.at_ns >= log.known_ns:
            self.wrong(f"shard {shard} has {item} at {item.at_ns}, granted was {log.known_ns} (C1)")
        if item.op in OUTSIDE and item.at_ns < log.began_ns:
            self.wrong(f"shard {shard} has {item} at {item.at_ns}, epoch {log.epoch} begins at {log.began_ns} (C1)")
        ahead_ns = item.at_ns - self._kernel.now_ns
        if ahead_ns > ERROR_NS_MAX:
            self.wrong(f"shard {shard} has {item}, {ahead_ns} ns ahead of the true time (C6, C7)")

    def _take_asked(self, item: Item) -> None:
        super()._take_asked(item)
        call = self._asked.get((item.user, item.request_id)) if item.request_id else self._asked_tags.get(item.message)
        if call is not None:
            behind_ns = self._asked_ns[id(call)] - item.at_ns
            if behind_ns > ERROR_NS_MAX:
                self.wrong(f"{item} is stamped {behind_ns} ns before it was asked for (C6, C7)")

    def on_send(self, call: Call) -> None:
        self._asked_ns.setdefault(id(call), self._kernel.now_ns)
        super().on_send(call)

    def _decide(self, record: list[Any]) -> None:
        if record[0] == "claim":
            self.claims.append(record[1])
        elif record[0] == "anchor":
            self._anchor(*struct.unpack("<4sI16sqqq", record[1])[1:])
        elif record[0] == "clock":  # of a host that serves beside others: each has a line of its own
            fields = struct.unpack("<4sI16sqqq", record[2])[1:]
            self._boot = fields[1]
            self.lines.setdefault(self._boot, [])
            self._anchor(*fields)
        else:
            super()._decide(record)

    def _anchor(self, ppm: int, boot: bytes, boot_ns: int, billing_ns: int, correction_ns: int) -> None:
        if boot != self._boot:
            self._boot, self.lines[boot] = boot, []
            last_ns = max(self._latest.values(), default=0)
            if billing_ns < last_ns:
                self.wrong(f"a host begins {last_ns - billing_ns} ns before the last journalled instant (C6)")
        clock = self.boots.get(boot)
        if clock is not None:
            off_ns = billing_ns - boot_ns - (self._kernel.now_ns - clock())
            if abs(off_ns) > ERROR_NS_MAX:
                self.wrong(f"a host serves by a time that is off by {off_ns} ns (C6, C7)")
        self.lines[boot].append((boot_ns, billing_ns, correction_ns, ppm))


class WorkerCallObserver:
    """The auditor as the endpoint sees it, of the calls of one worker."""

    def __init__(self, auditor: HostsAuditor, owner: Owner, shard: int) -> None:
        self._auditor = auditor
        self._owner = owner
        self._shard = shard
        self._calling: dict[bytes, str] = {}
        self.last_call = auditor.last_call

    def billing_ns(self, boot_ns: int) -> int:
        """Billing time of the worker: that of its host, but never before its epoch began."""
        line_ns = billing_of(self._auditor.lines.get(self._owner.boot, []), boot_ns)
        return max(line_ns, self._auditor.logs[self._shard].began_ns)

    def attempt(self, kind: str, user: bytes, event_id: str, seq: int, exhausted_at_ns: int, now_ns: int) -> None:
        """An attempt starts."""
        log = self._auditor.logs[self._shard]
        if log.owner.pid != self._owner.pid:
            self._auditor.wrong(f"{self._owner.node} calls {event_id}, while {log.owner.node} owns the shard (C4)")
        self._auditor.attempt(kind, user, event_id, seq, exhausted_at_ns, now_ns)

    def calls(self, user: bytes, event_id: str) -> None:
        """An attempt is under way: one at a time of one worker."""
        if user in self._calling:
            self._auditor.wrong(f"{event_id} starts while {self._calling[user]} is under way")
        self._calling[user] = event_id

    def called(self, user: bytes, now_ns: int) -> None:
        """It is over."""
        del self._calling[user]

    def on_accepted(self, kind: str, user: bytes, seq: int) -> None:
        """The endpoint answers 2xx."""
        self._auditor.on_accepted(kind, user, seq)
