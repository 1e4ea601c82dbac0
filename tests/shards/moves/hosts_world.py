"""Moves between hosts, simulated without I/O: a map's log, journals, workers, drivers that die at any step, an auditor.

The rules are the daemon's own: `Move`, `may_commit`, `Arrivals`, `Shares` and `BucketMap`. Everything around them is
small: each step of a run is one action, drawn by its seed: a host takes up the log, a message arrives, a command is
answered, a move begins, a decision is written. Or it is a fault: a worker or a host dies, a host pauses and its shards
are taken over, a worker opens its journal long after its host has lost the shard, and the log takes a decision late,
or without an answer.

A move that is wanted is in the log before it begins; whoever serves the bucket's shard carries it on where its driver
has died, and drops it where it came to nothing while its driver lived.

A bucket's content is a number, which each command raises by one. The auditor knows how many were answered. It raises
Wrong where a command is answered out of another number (one is lost, or a bucket is served by two), where a shard owns
a bucket that its journal does not have, and where a bucket is not served, or a move is wanted still, when all is well
in the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shards.buckets import HASH_NAME, BucketMap
from shards.control import Arriving, Known, MoveAbort, MoveIn, MoveOut, NewOwner, Payload, Served, Stored, Unmoved
from shards.moves.move import Action, Commit, Ended, Move, Send, digest_of
from shards.moves.wanted import WantedMoves
from shards.supervisor.far_side import Arrivals
from shards.supervisor.placement import Own, Shares, Voice
from shards.supervisor.registry import may_commit

SHARDS, BUCKETS, STEPS = 3, 4, 1500
TICK_NS, STILL_NS = 50_000_000, 1_000_000_000
MAY_COMMIT = Callable[[BucketMap, Shares, list[Any], Mapping[int, Voice]], bool]


class InvariantBroken(Exception):
    """What the auditor saw."""


class Rules(NamedTuple):
    """What a test replaces by a faulty one."""

    may_commit: MAY_COMMIT = may_commit
    arrivals: type[Arrivals] = Arrivals
    confirms_life: bool = True  # a life is recorded behind the opening of the journal, not before it
    asks_again: bool = True  # a decision without an answer is written again until the log says what came of it
    awaits_stored: bool = True  # the target stores durably before it says so
    carries_on: bool = True  # moves whose driver has died


RULES = Rules()  # the daemon's


class MapView:
    """The map as one process knows it."""

    def __init__(self) -> None:
        self.map, self.shares, self.version = BucketMap(), Shares(), 0
        self.wanted = WantedMoves()

    def take_up(self, records: list[list[Any]]) -> list[NewOwner]:
        """Everything behind its version; the buckets that changed their shard by that."""
        generations_before = list(self.map.generation)
        for record in records[self.version :]:
            if not self.wanted.apply(record) and not self.shares.apply(record):
                self.map.apply(record)
        self.version = len(records)
        now = enumerate(self.map.generation)
        changed = [
            bucket
            for bucket, generation in now
            if bucket < len(generations_before) and generation > generations_before[bucket]
        ]
        return [NewOwner(0, bucket, *self.map.owner_of(bucket)) for bucket in changed]


class Journal:
    """Of one shard: what each bucket is in it, by replay, as {bucket: (generation, content, untouched)}."""

    def __init__(self) -> None:
        self.epoch = 0
        self.holder: Worker | None = None
        self.content: dict[int, tuple[int, int, bool]] = {}


class Worker:
    """A process that is a shard's worker."""

    def __init__(self, host: Host, shard: int, voice: Voice, bucket_map: BucketMap) -> None:
        self.host, self.shard, self.voice = host, shard, voice
        self.map = BucketMap.decode(bucket_map.encode())
        self.state = "opening"  # opening | recovered | serving | dead
        self.epoch = 0
        self.held: dict[int, int] = {}  # bucket -> content
        self.frozen: dict[int, int] = {}
        self.arrived: dict[int, tuple[int, int, int]] = {}  # bucket -> number of the move, generation, content
        self.replayed: dict[int, tuple[int, int, bool]] = {}  # what the journal held when it was opened
        self.leaving: dict[int, int] = {}
        self.over: dict[int, int] = {}
        self.orphans: set[int] = set()


class DrivenMove:
    """A move that a host drives."""

    def __init__(self, move: Move, voices: dict[int, Voice], worker: Worker) -> None:
        self.move, self.voices, self.worker = move, voices, worker
        self.record: list[Any] | None = None  # to be decided
        self.is_carried = False  # another life has begun it


class Host:
    """A machine; its supervisor is a new process after each start."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_up, self.is_paused, self.paused_ns = False, False, 0
        self.view = MapView()
        self.workers: dict[int, Worker] = {}
        self.lives: dict[tuple[int, int], int] = {}
        self.driven: list[DrivenMove] = []
        self.unwanted: set[int] = set()  # buckets whose moves came to nothing, until the log says so
        self.arrivals = Arrivals()
        self.count = 0


Message = tuple[
    Host | Worker, Host | Worker, Any, DrivenMove | Voice | None, int
]  # from, to, what, of which move, source


class World:
    """One run."""

    def __init__(self, seed: int, rules: Rules = RULES) -> None:
        self.rng = random.Random(seed)
        self.rules = rules
        self.log: list[list[Any]] = [["create", BUCKETS, HASH_NAME, list(range(1, SHARDS + 1))]]
        self.late: list[tuple[int, list[Any]]] = []  # (expected version, record): on their way, nobody waits for them
        self.journals = {shard: Journal() for shard in range(1, SHARDS + 1)}
        self.hosts = [Host(name) for name in "abc"]
        self.messages: list[Message] = []
        self.answered = dict.fromkeys(range(1, BUCKETS + 1), 0)
        self.now_ns = 0
        self.seen = {"moved": 0, "aborted": 0, "refused": 0, "dropped": 0, "carried": 0}
        founded = MapView()
        founded.take_up(self.log)
        for shard, journal in self.journals.items():
            journal.content = {bucket: (1, 0, False) for bucket in founded.map.buckets_of(shard)}

    # -- the log ----------------------------------------------------------------------------------------------------

    def decide(self, host: Host, record: list[Any], *, may_fail: bool = False) -> bool:
        """Writes behind what the host has taken up; False where that is not the end, or no answer comes."""
        fate = self.rng.random() if may_fail else 1.0
        if fate < 0.15:
            self.late.append((host.view.version, record))
            return False
        if len(self.log) != host.view.version:
            self.catch_up(host)
            return False
        self.log.append(record)
        if fate < 0.3:
            return False
        self.catch_up(host)
        return True

    def catch_up(self, host: Host) -> None:
        """Takes up the log, and tells the workers."""
        for news in host.view.take_up(self.log):
            for worker in host.workers.values():
                self.tell(worker, news)
        self.look_at_arrivals(host)
        view = host.view
        for driven in list(host.driven):
            for shard, voice in driven.voices.items():
                own = view.shares.owns[shard]
                if own.voice != voice:
                    self.act(host, driven, driven.move.on_down(shard, self.now_ns))
                    if own.links:
                        self.act(host, driven, driven.move.on_serving(shard, self.now_ns))
        for shard, worker in list(host.workers.items()):
            own = view.shares.owns[shard]
            if (own.host_id, own.number) != (host.name, worker.voice.number):
                self.end(worker)
            for orphan in list(worker.orphans):  # `Proved`
                owner = view.shares.owns[view.map.owner[orphan]]
                if worker.map.generation[orphan] == view.map.generation[orphan] and owner.links:
                    worker.orphans.discard(orphan)
                    self.write(worker, orphan, None)

    def look_at_arrivals(self, host: Host) -> None:
        """By what the host has taken up, which may be behind what a worker of it was told by another one."""
        for shard, abort in host.arrivals.aborted(host.view.map, host.view.shares):
            if shard in host.workers:
                self.seen["dropped"] += 1
                self.messages.append((host, host.workers[shard], abort, None, 0))

    # -- workers ----------------------------------------------------------------------------------------------------

    def take(self, host: Host, shard: int) -> None:
        self.catch_up(host)
        own: Own | None = host.view.shares.owns.get(shard)
        if own is not None and own.host_id != host.name and self.is_well(own):
            return
        if not self.decide(host, host.view.shares.next_own(shard, host.name, host.name)):
            return
        if shard in host.workers:
            self.end(host.workers[shard])
        self.spawn(host, shard)

    def is_well(self, own: Own) -> bool:
        owner = next(host for host in self.hosts if host.name == own.host_id)
        return owner.is_up and self.is_heard_of(owner)

    def is_heard_of(self, host: Host) -> bool:
        return not (host.is_paused and self.now_ns - host.paused_ns > STILL_NS)

    def spawn(self, host: Host, shard: int) -> None:
        own = host.view.shares.owns[shard]
        key = shard, own.number
        host.lives[key] = max(own.life, host.lives.get(key, 0)) + 1
        host.workers[shard] = Worker(host, shard, Voice(own.number, host.lives[key]), host.view.map)

    def go_on(self, worker: Worker) -> None:
        """The next step of a worker's start. Its supervisor may stand still meanwhile."""
        journal, host = self.journals[worker.shard], worker.host
        own = host.view.shares.owns[worker.shard]
        to_record = "recovered" if self.rules.confirms_life else "opening"
        if worker.state == to_record and own.voice < worker.voice:
            if own.number == worker.voice.number and not host.is_paused:
                self.decide(host, ["life", worker.shard, *worker.voice])
            return
        if worker.state == "opening":
            holder = journal.holder
            if holder is not None and holder.state != "dead" and holder is not worker and self.is_heard_of(holder.host):
                return
            journal.epoch += 1
            worker.epoch, journal.holder, worker.state = journal.epoch, worker, "recovered"
            worker.replayed = dict(journal.content)
        elif worker.state == "recovered" and not host.is_paused and own.voice == worker.voice:
            self.serve(worker)
        elif worker.state == "serving" and not host.is_paused and own.voice == worker.voice and not own.links:
            self.decide(host, ["at", worker.shard, worker.voice.number, "x:1", ""])

    def serve(self, worker: Worker) -> None:
        for message in [pending for pending in self.messages if pending[1] is worker]:  # on the wire before Serve
            self.messages.remove(message)
            if isinstance(message[2], NewOwner):
                worker.map.follow(message[2].bucket_id, message[2].shard_id, message[2].generation)
        worker.state = "serving"
        for bucket in worker.map.buckets_of(worker.shard):
            generation = worker.map.generation[bucket]
            if worker.replayed.get(bucket, (0, 0, False))[0] != generation:
                raise InvariantBroken(
                    f"shard {worker.shard} owns bucket {bucket} at {generation}, and has {worker.replayed}"
                )
        for bucket, (_, content, _) in worker.replayed.items():
            if worker.map.owner[bucket] == worker.shard:
                worker.held[bucket] = content
            else:
                worker.orphans.add(bucket)

    def write(self, worker: Worker, bucket: int, value: tuple[int, int, bool] | None) -> bool:
        """A batch; False where another epoch has begun: the worker ends."""
        journal = self.journals[worker.shard]
        if journal.epoch != worker.epoch:
            self.end(worker)
            return False
        if value is None:
            journal.content.pop(bucket, None)
        else:
            journal.content[bucket] = value
        return True

    def end(self, worker: Worker) -> None:
        host = worker.host
        worker.state = "dead"
        if host.workers.get(worker.shard) is worker:
            del host.workers[worker.shard]
            host.arrivals.forget(worker.shard)
            for driven in list(host.driven):
                self.act(host, driven, driven.move.on_down(worker.shard, self.now_ns))

    def command(self, bucket: int) -> None:
        """A client's, at a worker that would answer it."""
        able = [worker for host in self.hosts for worker in host.workers.values() if bucket in worker.held]
        if not able:
            return
        worker = self.rng.choice(able)
        if worker.host.is_paused or worker.state != "serving":
            return
        content = worker.held[bucket] + 1
        if self.write(worker, bucket, (worker.map.generation[bucket], content, False)):
            worker.held[bucket] = content
            self.answered[bucket] += 1
            if content != self.answered[bucket]:
                raise InvariantBroken(
                    f"bucket {bucket} answers {content} after {self.answered[bucket]} at {worker.shard}"
                )

    # -- moves ------------------------------------------------------------------------------------------------------

    def begin_move(self, host: Host) -> None:
        able = [shard for shard, worker in host.workers.items() if worker.state == "serving"]
        if not able or len(host.driven) > 3:
            return
        source = self.rng.choice(able)
        moving = {driven.move.bucket_id for driven in host.driven} | host.unwanted
        buckets = [bucket for bucket in host.view.map.buckets_of(source) if bucket not in moving]
        target = self.rng.choice([shard for shard in self.journals if shard != source])
        if not buckets or target not in host.view.shares.owns:
            return
        bucket = self.rng.choice(buckets)
        if self.decide(host, ["wanted", bucket, target, host.view.map.generation[bucket]]):
            self.drive(host, bucket, target)

    def carry_on(self, host: Host) -> None:
        """Moves that are wanted of buckets here, and that nobody drives; and those that came to nothing are told."""
        wanted = host.view.wanted
        for bucket in list(host.unwanted):
            wish = wanted.of.get(bucket)
            if wish is None or self.decide(host, ["unwanted", bucket, wish.generation, ""]):
                host.unwanted.discard(bucket)
        if not self.rules.carries_on:
            return
        served = {shard for shard, worker in host.workers.items() if worker.state == "serving"}
        running = {driven.move.bucket_id for driven in host.driven} | host.unwanted
        for bucket in wanted.to_carry_on(host.view.map, served, running):
            if wanted.of[bucket].shard in host.view.shares.owns:
                self.seen["carried"] += 1
                self.drive(host, bucket, wanted.of[bucket].shard, is_carried=True)

    def drive(self, host: Host, bucket: int, target: int, *, is_carried: bool = False) -> None:
        source = host.view.map.owner[bucket]
        host.count += 1
        number = host.view.version << 32 | host.count << 16 | source
        move = Move(number, bucket, source, target, host.view.map.generation[bucket], self.now_ns)
        voices = {shard_id: host.view.shares.owns[shard_id].voice for shard_id in (source, target)}
        driven = DrivenMove(move, voices, host.workers[source])
        driven.is_carried = is_carried
        host.driven.append(driven)
        self.act(host, driven, move.start())

    def act(self, host: Host, driven: DrivenMove, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(shard, message):
                    self.send(host, driven, shard, message)
                case Commit(record):
                    driven.record = record
                case Ended(error):
                    self.seen["aborted" if error else "moved"] += 1
                    if error and not driven.is_carried:
                        host.unwanted.add(driven.move.bucket_id)
        if driven.move.is_over and driven in host.driven:
            host.driven.remove(driven)

    def send(self, host: Host, driven: DrivenMove, shard: int, message: Any) -> None:
        worker = host.workers.get(shard)
        if worker is None:  # over a link: to whoever serves the shard by the map that this host has
            own = host.view.shares.owns[shard]
            far = next(candidate for candidate in self.hosts if candidate.name == own.host_id)
            worker = far.workers.get(shard)
        if worker is not None and worker.voice.number == host.view.shares.owns[shard].number:
            self.messages.append((host, worker, message, driven, driven.move.source))

    def try_to_commit(self, host: Host, driven: DrivenMove) -> None:
        """As `Registry.commit`, one try a call."""
        record, view = driven.record, host.view
        assert record is not None
        _, bucket, shard, generation = record
        if self.rules.may_commit(view.map, view.shares, record, driven.voices):
            if not self.decide(host, record, may_fail=True) and self.rules.asks_again:
                return
            self.catch_up(host)
        driven.record = None
        if view.map.owner_of(bucket) == (shard, generation):
            shards_told = {*host.workers, driven.move.target}
            self.act(host, driven, driven.move.on_committed(sorted(shards_told), self.now_ns))
        else:
            self.seen["refused"] += 1
            self.act(host, driven, driven.move.on_refused("another life", self.now_ns))

    # -- messages ---------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """The oldest message between two processes, drawn from all; what is for a dead one is lost."""
        if not self.messages:
            return
        first = self.rng.choice(self.messages)
        oldest = next(index for index, pending in enumerate(self.messages) if pending[:2] == first[:2])
        sender, receiver, message, of, source = self.messages[oldest]
        if isinstance(receiver, Worker):
            if receiver.host.is_paused and receiver.state != "dead":
                return
            del self.messages[oldest]
            if receiver.state == "serving":
                assert isinstance(sender, Host)
                self.on_order(sender, receiver, message, of, source)
            elif receiver.state != "dead" and isinstance(message, NewOwner):
                receiver.map.follow(message.bucket_id, message.shard_id, message.generation)
            return
        if receiver.is_paused:
            return
        del self.messages[oldest]
        driven = of
        if isinstance(driven, DrivenMove) and driven in receiver.driven:
            assert isinstance(sender, Worker)
            if isinstance(message, Stored) and driven.voices[sender.shard] != sender.voice:
                message = Unmoved(message.number, "not the one that was meant")
            self.act(receiver, driven, driven.move.on_message(sender.shard, message, self.now_ns))

    def tell(self, worker: Worker, news: NewOwner) -> None:
        self.messages.append((worker.host, worker, news, None, 0))

    def on_order(self, sender: Host, worker: Worker, order: Any, of: Any, source: int) -> None:
        """What `shards.moves.handoff` does, with a number for a bucket."""

        def report(message: Any) -> None:
            if of is not None:
                self.messages.append((worker, sender, message, of, source))

        number, bucket = order.number, order.bucket_id
        match order:
            case MoveOut() | MoveIn() if number <= worker.over.get(bucket, 0):
                return
            case MoveOut():
                if bucket not in worker.held or worker.map.generation[bucket] != order.generation:
                    report(Unmoved(number, "it is not there"))
                    return
                worker.leaving[bucket] = number
                content = worker.frozen[bucket] = worker.held.pop(bucket)
                block = str(content).encode()
                report(Payload(number, block, digest_of(block), 0))
            case MoveIn():
                if sender is not worker.host:
                    voice = of.voices[source]
                    worker.host.arrivals.note(worker.shard, Arriving(number, bucket, order.generation, source, voice))
                if bucket in {**worker.held, **worker.frozen, **worker.arrived} or bucket in worker.orphans:
                    report(Unmoved(number, "it is there already"))
                    return
                worker.arrived[bucket] = number, order.generation, int(order.block)
                stored = order.generation, int(order.block), True
                if not self.rules.awaits_stored or self.write(worker, bucket, stored):
                    report(Stored(number, order.digest))
            case MoveAbort():
                worker.over[bucket] = max(number, worker.over.get(bucket, 0))
                if worker.arrived.get(bucket, (0, 0, 0))[0] == number:
                    del worker.arrived[bucket]
                    self.write(worker, bucket, None)
                if worker.leaving.get(bucket) == number:
                    del worker.leaving[bucket]
                    worker.held[bucket] = worker.frozen.pop(bucket)
                report(Known(number))
            case NewOwner():
                worker.over[bucket] = max(number, worker.over.get(bucket, 0))
                self.changed(worker, order)
                report(Served(number) if order.shard_id == worker.shard else Known(number))

    def changed(self, worker: Worker, new_owner: NewOwner) -> None:
        bucket = new_owner.bucket_id
        before = worker.map.owner[bucket]
        if not worker.map.follow(bucket, new_owner.shard_id, new_owner.generation):
            return
        if before == worker.shard:
            worker.leaving.pop(bucket, None)
            worker.frozen.pop(bucket, None)
            worker.held.pop(bucket, None)
            self.write(worker, bucket, None)
        elif new_owner.shard_id == worker.shard:
            _, generation, content = worker.arrived.pop(bucket, (0, 0, 0))
            if generation != new_owner.generation:
                raise InvariantBroken(
                    f"shard {worker.shard} is given bucket {bucket} at {new_owner.generation}, and has {generation}"
                )
            worker.held[bucket] = content

    # -- a run ------------------------------------------------------------------------------------------------------

    def strike(self) -> None:
        host = self.rng.choice(self.hosts)
        match self.rng.choice(["kill", "start", "start", "pause", "resume", "resume", "kill worker"]):
            case "kill":
                self.kill(host)
            case "start":
                host.is_up = True
            case "pause":
                self.pause(host)
            case "resume":
                host.is_paused = False
            case "kill worker" if host.workers:
                self.end(self.rng.choice(list(host.workers.values())))

    def pause(self, host: Host) -> None:
        if not host.is_paused:
            host.is_paused, host.paused_ns = True, self.now_ns

    def strike_at(self, driver: Host, driven: DrivenMove) -> None:
        """A fault while a decision is about to be written."""
        move = driven.move
        targets = [host.workers[move.target] for host in self.hosts if move.target in host.workers]
        match self.rng.choice(["pause", "kill", "target", "source"]):
            case "pause":
                self.pause(driver)
            case "kill":
                self.kill(driver)
            case "target" if targets:
                self.end(targets[0])
            case "source" if move.source in driver.workers:
                self.end(driver.workers[move.source])

    def kill(self, host: Host) -> None:
        host.driven, host.unwanted, host.is_up, host.is_paused = [], set(), False, False
        for worker in list(host.workers.values()):
            self.end(worker)
        host.arrivals, host.view, host.lives = self.rules.arrivals(), MapView(), {}

    def step(self, *, calm: bool = False) -> None:
        self.now_ns += TICK_NS
        running = [host for host in self.hosts if host.is_up and not host.is_paused]
        action = self.rng.random()
        deciding = [(host, driven) for host in self.hosts for driven in host.driven if driven.record is not None]
        if not calm and action < 0.02:
            self.strike()
            return
        if not calm and deciding and action < 0.05:
            self.strike_at(*self.rng.choice(deciding))
            return
        if action < 0.5:
            self.deliver()
        elif action < 0.6:
            self.command(self.rng.randint(1, BUCKETS))
        elif not running:
            self.hosts[0].is_up = True
            return
        host = self.rng.choice(running or self.hosts)
        if not host.is_up or host.is_paused:
            return
        if action < 0.62:
            self.look_at_arrivals(host)
        elif action < 0.7:
            self.catch_up(host)
            self.carry_on(host)
        elif action < 0.8:
            self.look_after(host)
        elif action < 0.88 and not calm:
            self.begin_move(host)
        elif action < 0.97:
            for driven in list(host.driven):
                if driven.record is not None:
                    self.try_to_commit(host, driven)
                else:
                    self.act(host, driven, driven.move.on_time(self.now_ns))
        else:
            late, self.late = self.late, []
            self.log += [record for expected, record in late if expected == len(self.log)][:1]

    def look_after(self, host: Host) -> None:
        """Shards without a host are taken; workers that ended are started again, or go on with their start."""
        shard = self.rng.choice(list(self.journals))
        worker = host.workers.get(shard)
        own = host.view.shares.owns.get(shard)
        if worker is not None:
            self.go_on(worker)
        elif own is not None and own.host_id == host.name and host.lives.get((shard, own.number)):
            self.spawn(host, shard)
        else:
            self.take(host, shard)

    def run(self) -> None:
        """Raises Wrong."""
        for host in self.hosts:
            host.arrivals = self.rules.arrivals()
            host.is_up = True
        for _ in range(STEPS):
            self.step()
            for host in self.hosts:  # a worker opens its journal by itself, though its supervisor stands still
                for worker in list(host.workers.values()):
                    if worker.state == "opening" and self.rng.random() < 0.02:
                        self.go_on(worker)
        self.calm_down()

    def story_of_a_late_opening(self) -> None:
        """A host that has lost a shard opens its journal, while the next owner is about to decide a move out of it."""
        a, b, c = self.hosts
        for host in self.hosts:
            host.arrivals, host.is_up = self.rules.arrivals(), True
        self.take(b, 1)
        late = b.workers[1]
        if not self.rules.confirms_life:
            self.go_on(late)
        self.pause(b)
        self.now_ns += 2 * STILL_NS
        self.take(a, 1)
        self.take(c, 2)
        for worker in (a.workers[1], c.workers[2]):
            while worker.state != "serving":
                self.go_on(worker)
        self.catch_up(a)
        (bucket, *_) = a.view.map.buckets_of(1)
        self.drive(a, bucket, 2)
        while a.driven[0].record is None:
            self.deliver()
        self.pause(a)
        self.now_ns += 2 * STILL_NS
        b.is_paused = False
        for _ in range(2):
            self.go_on(late)
        self.command(bucket)
        a.is_paused = False
        self.try_to_commit(a, a.driven[0])
        self.calm_down()

    def calm_down(self) -> None:
        """All is well from here on. Raises Wrong."""
        for host in self.hosts:
            host.is_up, host.is_paused = True, False
        for _ in range(2 * STEPS):
            self.step(calm=True)
        self.audit()

    def audit(self) -> None:
        view = MapView()
        view.take_up(self.log)
        if view.wanted.of:
            raise InvariantBroken(f"wanted still: {view.wanted.of}")
        for bucket, answered in self.answered.items():
            holders = [(worker.shard, worker.held[bucket]) for host in self.hosts for worker in host.workers.values()
                       if bucket in worker.held]  # fmt: skip
            if holders != [(view.map.owner[bucket], answered)]:
                raise InvariantBroken(
                    f"bucket {bucket}: {holders}, the map says {view.map.owner_of(bucket)}, answered {answered}"
                )
