"""Several hosts that go by `shards.supervisor.placement`, simulated: a log, journals, workers, faults, and an auditor.

Time goes in ticks of 50 ms. Each host has a boot clock of its own (another beginning, and up to 300 ppm faster or
slower), looks at the log every 100 ms or so, and decides by what it read then, however late its decision arrives: one
that was made by an older map is refused, as the map's log does. A worker takes some time to start, opens its shard's
journal by the rule of the journal (sealed, or still for 1.01 grants by its host's clock), and writes a record every
quarter of a grant. Hosts die and come back as new processes, pause for longer than a grant, are cut off from the log,
and are drained.

The auditor knows what the rule does not: which hosts are well. It raises Wrong where

    robbed      a host that is well, and serves or has just been made the owner, loses a shard that nobody wished for
    unserved    a shard is served by nobody for longer than a takeover takes, though a host that is well has room
    restless    shards go on changing their hosts when nothing disturbs them
    uneven      the load is not even in the end, or a drained host serves
"""

from __future__ import annotations

import random
from typing import NamedTuple

from shards.journal import LastSign
from shards.supervisor.placement import GRACE_NS, Placement, Shares, Take, Wish

MS = 1_000_000
TICK_NS, LOOK_NS = 50 * MS, 100 * MS
GRANT_NS, BEAT_NS = 2000 * MS, 500 * MS
START_NS = (100 * MS, 1500 * MS)  # of a worker
TAKEOVER_NS = GRANT_NS * 2 + START_NS[1] + 3 * LOOK_NS
CALM_NS = 50_000 * MS  # behind the last fault
SHARDS = 6


class InvariantBroken(Exception):
    """What the auditor saw."""


class Worker:
    """Of one shard, on one host."""

    def __init__(self, number: int, opens_ns: int) -> None:
        self.number = number  # of its host's ownership
        self.opens_ns = opens_ns
        self.epoch = 0  # of the journal; 0: not open yet
        self.beat_ns = 0


class Journal:
    """Of one shard."""

    def __init__(self) -> None:
        self.sequence = self.epoch = 0
        self.is_sealed = True


class Host:
    """A machine; `rule` is of its present process, None where none runs."""

    def __init__(self, name: str, drift_ppm: int, offset_ns: int) -> None:
        self.name = name
        self.drift_ppm, self.offset_ns = drift_ppm, offset_ns
        self.rule: Placement | None = None
        self.workers: dict[int, Worker] = {}
        self.seen: dict[int, tuple[int, int]] = {}  # shard -> last sequence and since when, as the backend keeps it
        self.look_ns = 0
        self.paused_ns = self.cut_ns = 0  # until then
        self.well_ns = 0  # since when nothing is wrong with it; −1: something is

    def boot_ns(self, now_ns: int) -> int:
        return self.offset_ns + now_ns + now_ns * self.drift_ppm // 10**6

    def is_running(self, now_ns: int) -> bool:
        return self.rule is not None and now_ns >= self.paused_ns


class Fault(NamedTuple):
    """At an instant, to a host: "kill", "start", "pause", "cut", "drain", "undrain"."""

    at_ns: int
    what: str
    host: str
    for_ns: int = 0


class World:
    """One run. `rule`: the class of the placement, which a test replaces by a faulty one."""

    def __init__(self, seed: int, rule: type[Placement] = Placement, workers: int = SHARDS) -> None:
        self.rng = random.Random(seed)
        self.rule, self.capacity = rule, workers
        self.now_ns = 0
        self.shares, self.version = Shares(), 0
        self.journals = {shard: Journal() for shard in range(1, SHARDS + 1)}
        self.hosts = {
            name: Host(name, self.rng.randint(-300, 300), self.rng.randrange(10**15)) for name in ("a", "b", "c")
        }
        self.unserved_ns = dict.fromkeys(self.journals, 0)  # since when; −1: it is served
        self.changes: list[int] = []  # instants at which a shard changed its host
        self.disturbed_ns = 0

    # -- faults -----------------------------------------------------------------------------------------------------

    def faults(self, count: int) -> list[Fault]:
        """So many, each some seconds behind the one before it, and all over in the end."""
        at_ns, faults_drawn = 20_000 * MS, []
        for _ in range(count):
            what = self.rng.choice(["kill", "kill", "pause", "cut", "drain"])
            host, for_ns = self.rng.choice("abc"), self.rng.randrange(200, 15_000) * MS
            faults_drawn.append(Fault(at_ns, what, host, for_ns))
            if what in ("kill", "drain"):
                faults_drawn.append(Fault(at_ns + for_ns, {"kill": "start", "drain": "undrain"}[what], host))
            at_ns += for_ns + self.rng.randrange(500, 20_000) * MS
        return sorted(faults_drawn)

    def strike(self, fault: Fault) -> None:
        host = self.hosts[fault.host]
        self.disturbed_ns = max(self.disturbed_ns, self.now_ns + fault.for_ns)
        match fault.what:
            case "start":
                self.start(host)
            case "kill":
                host.rule, host.workers = None, {}
            case "pause":
                host.paused_ns = self.now_ns + fault.for_ns
            case "cut":
                host.cut_ns = self.now_ns + fault.for_ns
            case "drain" | "undrain":
                self.decide(["drained", host.name, fault.what == "drain"])

    def start(self, host: Host) -> None:
        host.rule = self.rule(host.name, f"id-{host.name}", self.capacity, GRANT_NS)
        host.workers, host.seen = {}, {}
        self.decide(["host", f"id-{host.name}", host.name, self.capacity])

    def decide(self, record: list[object]) -> None:
        self.version += 1
        assert self.shares.apply(record)

    # -- a run ------------------------------------------------------------------------------------------------------

    def run(self, faults: list[Fault]) -> None:
        """Raises Wrong."""
        for host in self.hosts.values():
            self.start(host)
        faults_left = list(faults)
        end_ns = max([0, *(fault.at_ns + fault.for_ns for fault in faults)]) + CALM_NS
        while self.now_ns < end_ns:
            self.now_ns += TICK_NS
            while faults_left and faults_left[0].at_ns <= self.now_ns:
                self.strike(faults_left.pop(0))
            for host in self.hosts.values():
                is_well = host.is_running(self.now_ns) and self.now_ns >= host.cut_ns
                host.well_ns = -1 if not is_well else self.now_ns if host.well_ns < 0 else host.well_ns
                if host.is_running(self.now_ns):
                    self.work(host)
                if is_well and self.now_ns >= host.look_ns:
                    host.look_ns = self.now_ns + LOOK_NS + self.rng.randrange(60) * MS
                    self.look(host)
            self.audit()
        self.audit_end()

    def look(self, host: Host) -> None:
        rule, boot_ns = host.rule, host.boot_ns(self.now_ns)
        assert rule is not None
        signs = {}
        for shard, journal in self.journals.items():
            signs[shard] = LastSign(journal.sequence, journal.is_sealed, journal.epoch)
            if host.seen.get(shard, (-1, 0))[0] != journal.sequence:
                host.seen[shard] = journal.sequence, boot_ns
        rule.hear(self.shares, signs, boot_ns)
        for shard, worker in list(host.workers.items()):
            own = self.shares.owns[shard]
            if (own.host_id, own.number) != (rule.host_id, worker.number):
                del host.workers[shard]
                rule.disturbed(boot_ns)
            elif own.wish and worker.epoch:
                if worker.epoch == self.journals[shard].epoch:
                    self.write(shard, worker, is_sealed=True)
                del host.workers[shard]
                self.decide(self.shares.next_own(shard, self.shares.members[own.wish].node, own.wish))
        step = rule.next_step(self.shares, set(host.workers), set(), boot_ns)
        if isinstance(step, Take):
            self.audit_take(host, step.shard)
            self.decide(self.shares.next_own(step.shard, host.name, rule.host_id))
            opens_ns = self.now_ns + self.rng.randrange(*START_NS)
            host.workers[step.shard] = Worker(self.shares.owns[step.shard].number, opens_ns)
        elif isinstance(step, Wish):
            self.decide(["wish", step.shard, self.shares.owns[step.shard].number, rule.host_id])

    def work(self, host: Host) -> None:
        """What its workers do in this tick."""
        if self.now_ns < host.cut_ns:
            return
        for shard, worker in list(host.workers.items()):
            journal = self.journals[shard]
            if worker.epoch and worker.epoch != journal.epoch:
                worker.epoch, worker.opens_ns = 0, self.now_ns + START_NS[0]  # fenced: it is started again
            elif worker.epoch and self.now_ns >= worker.beat_ns:
                self.write(shard, worker)
            elif not worker.epoch and self.now_ns >= worker.opens_ns:
                sequence, since_ns = host.seen.get(shard, (-1, 0))
                still_ns = host.boot_ns(self.now_ns) - since_ns if sequence == journal.sequence else 0
                if journal.is_sealed or still_ns >= GRANT_NS * 101 // 100:
                    journal.epoch += 1
                    worker.epoch, journal.is_sealed = journal.epoch, False
                    self.write(shard, worker)
                    self.decide(["at", shard, worker.number, f"{host.name}:1", ""])

    def write(self, shard: int, worker: Worker, is_sealed: bool = False) -> None:
        self.journals[shard].sequence += 1
        self.journals[shard].is_sealed = is_sealed
        worker.beat_ns = self.now_ns + BEAT_NS

    # -- the auditor ------------------------------------------------------------------------------------------------

    def audit_take(self, taker: Host, shard: int) -> None:
        own = self.shares.owns.get(shard)
        if own is None or not own.node or own.node == taker.name:
            return
        self.changes.append(self.now_ns)
        owner = self.hosts[own.node]
        worker = owner.workers.get(shard)
        well_for_ns = self.now_ns - owner.well_ns if owner.well_ns >= 0 else -1
        if worker is not None and well_for_ns > GRANT_NS and (worker.epoch or self.now_ns < worker.opens_ns):
            raise InvariantBroken(f"robbed: {taker.name} takes shard {shard} from {own.node}, which is well")

    def audit(self) -> None:
        for shard in self.journals:
            is_served = any(
                shard in host.workers and host.workers[shard].epoch == self.journals[shard].epoch
                for host in self.hosts.values()
                if host.is_running(self.now_ns) and self.now_ns >= host.cut_ns
            )
            self.unserved_ns[shard] = -1 if is_served else max(self.unserved_ns[shard], 0) or self.now_ns
            well = [host for host in self.hosts.values() if host.well_ns >= 0]
            since_ns = max([self.unserved_ns[shard], *(host.well_ns for host in well)])
            has_room = any(len(host.workers) < self.capacity for host in well)
            limit_ns = TAKEOVER_NS + GRACE_NS * (self.now_ns - self.disturbed_ns < 2 * GRACE_NS or since_ns < GRACE_NS)
            if not is_served and has_room and well and self.now_ns - since_ns > limit_ns:
                raise InvariantBroken(f"unserved: shard {shard} since {self.unserved_ns[shard]}")

    def audit_end(self) -> None:
        late = [at_ns for at_ns in self.changes if at_ns > self.disturbed_ns + CALM_NS // 2]
        wishes = [own for own in self.shares.owns.values() if own.wish]
        if late or wishes:
            raise InvariantBroken(f"restless: changes at {late}, {len(wishes)} wishes")
        counts = {host.name: len(host.workers) for host in self.hosts.values() if host.rule is not None}
        drained = {name: counts.pop(name) for name in self.shares.drained}
        if any(drained.values()) or max(counts.values()) - min(counts.values()) > 1:
            raise InvariantBroken(f"uneven: {counts}, and of drained hosts {drained}")
