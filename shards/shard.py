"""One shard without I/O: requests in, a `Ready` out.

A shard is a journal and the buckets in it. `Shard` is the part that computes; it owns no socket, file or clock. Its
driver has five duties, in this order:

    1 append   `ready.payload` to the journal
    2 sync     it (`append` of the journal's seam does both)
    3 tell     the shard: `synced(ready)`
    4 send     the replies and notices of that `ready`
    5 re-arm   the timer for `next_due_ns()`

**Invariant: sync, then speak.** The state that a reply or a notice tells of is durable in the journal before it leaves.
Reads wait like commands, because a read may have seen state that is not durable yet. At most one `Ready` is out at a
time. So one sync serves all requests that arrived meanwhile (group commit), and a later batch is never written before
an earlier one is durable.

Notices that time alone caused may leave earlier (`take_early`). Such a notice follows, by replay, from the records
before it, so it waits only until the last *command* that determined it is durable. Instants rise from command to
command, so that command is durable if its instant is before that of the first command not yet durable. The outcome of a
call to the outside (`report`) determines no instant, so no notice waits for its record. All this holds as long as no
instant comes twice: after a loss of power the driver begins behind every instant at which it let notices leave early.

**What may ride.** A record is awaited where a reply, a notice that is not early, or a decision about an owner leaves
once it is durable. Records that nobody awaits (`is_awaited`) may ride with a later batch of the driver's choice: after
a crash time causes them again, or the machine presumes them.

`shards.batch` defines the bytes of a batch. The map decides which shard owns a bucket (`shards.moves.move`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shards.batch import (
    CAME_TO_NOTHING,
    ENTRY,
    ENVELOPE,
    LEAVE,
    OWN,
    POSITION,
    RECEIVED,
    BatchCorrupt,
    join_batch,
    split_batch,
)
from shards.machine import ALL_BUCKETS, Command, Effect, Later, Machine
from shards.replies import Caller, Moving, Reply, WrongBucket

COMMAND = 0  # a request that changes one bucket
READ = 1  # a request that reads one bucket
WAITING_MAX = 4096  # requests that may wait for one bucket that is being moved; more are answered with Moving
BATCH_RECORDS_MAX = 8_192  # a batch with so many records is closed; later ones are in the next
RIDING_MAX = 256  # so many records that nobody awaits get a batch of their own


Waiting = tuple[Caller, object, int, Command]  # caller, token, COMMAND or READ, payload


class MadeElsewhere(tuple[Caller, object, object]):
    """A reply that was made outside this shard, and leaves in its turn with those of the shard."""

    __slots__ = ()


class Ready(NamedTuple):
    """Records to be made durable, and the messages that leave once they are."""

    sequence: int
    payload: bytes  # empty where nothing was recorded, so that nothing has to be appended
    records: int
    replies: list[Reply]
    notices: list[Effect]
    decides: bool  # has records of ownership, which are synced in every mode because the map's log is


class _Still(NamedTuple):
    """A bucket that is here and is not served."""

    generation: int
    waiting: list[Waiting]


class _Batch(NamedTuple):
    payload: bytes
    records: int
    replies: list[Reply]
    notices: list[Effect]
    from_ns: int  # instant of its first command; -1 where it has none
    decides: bool


class Shard:
    """The buckets of one shard; see the module's text for the duties of its driver."""

    def __init__(self, shard_id: int, machine: Machine) -> None:
        self.shard_id = shard_id
        self.machine = machine
        self.held: dict[int, int] = {}  # bucket id -> generation
        self._prefix: dict[int, bytes] = {}  # bucket id -> envelope of its entries
        self._loaded_at: dict[int, int] = {}  # in recovery: bucket id -> position at which its snapshot part was taken
        self._own_records: list[tuple[int, int, int, bytes]] = []  # (kind, bucket id, generation, body): not entries
        self._frozen: dict[int, _Still] = {}  # buckets that are being moved away
        self._arrived: dict[int, _Still] = {}  # buckets that were moved here, where the move is not decided yet
        self.orphans: dict[int, tuple[int, bytes]] = {}  # bucket id -> (generation, content), of buckets of others
        self._untouched: set[int] = set()  # buckets that recovery finds moved here, without an entry since
        self.chores: deque[Iterator[None]] = deque()  # slices of arming and dropping large buckets, still to be run
        self._replies: list[Reply] = []
        self.later: list[tuple[Caller, object, int, Command]] = []  # (caller, token, bucket, query), for the driver
        self._sealed: deque[_Batch] = deque()
        self._open_from_ns = -1  # instant of the first command in the open batch
        self._flight: _Batch | None = None  # the batch that is being synced
        self._sequence = 0

    # -- requests ---------------------------------------------------------------------------------------------------

    def receive(self, caller: Caller, token: object, bucket_id: int, command: Command, now_ns: int) -> None:
        """Applies a command at once; its reply is in the next Ready."""
        self.receive_all(((caller, token, bucket_id, command),), now_ns)

    def receive_all(self, requests: Iterable[tuple[Caller, object, int, Command]], now_ns: int) -> None:
        """Applies commands, (caller, token, bucket id, command) each, at once and in order; their replies are in the
        next Ready.
        """
        held, apply, records = self.held, self.machine.apply, self.machine.records
        for caller, token, bucket_id, command in requests:
            if bucket_id not in held:
                self._elsewhere(caller, token, COMMAND, bucket_id, command)
                continue
            if self._open_from_ns < 0:
                self._open_from_ns = now_ns
            self._replies.append((caller, token, apply(bucket_id, command, now_ns)))
            if len(records) >= BATCH_RECORDS_MAX:
                self._seal()

    def apply(self, bucket_id: int, command: Command, now_ns: int) -> object:
        """Applies a command that no client waits for, and returns its outcome."""
        if bucket_id in self.held and self._open_from_ns < 0:
            self._open_from_ns = now_ns
        return self.report([(bucket_id, command)], now_ns)[0]

    def report(self, reports: Iterable[tuple[int, Command]], now_ns: int) -> list[object]:
        """Applies what became of calls to the outside, (bucket id, command) each, on which no instant depends; returns
        the machine's replies.
        """
        held, apply = self.held, self.machine.apply
        return [
            apply(bucket_id, command, now_ns) if bucket_id in held else WrongBucket(bucket_id, self.shard_id)
            for bucket_id, command in reports
        ]

    def read(self, caller: Caller, token: object, bucket_id: int, query: Command, now_ns: int) -> None:
        """Answers a query about one bucket, in the next Ready."""
        if bucket_id not in self.held:
            self._elsewhere(caller, token, READ, bucket_id, query)
            return
        reply = self.machine.read(bucket_id, query, now_ns)
        if type(reply) is Later:
            self.later.append((caller, token, bucket_id, reply.query))
        else:
            self._replies.append((caller, token, reply))

    def _elsewhere(self, caller: Caller, token: object, kind: int, bucket_id: int, payload: Command) -> None:
        still = self._frozen.get(bucket_id) or self._arrived.get(bucket_id)
        if still is None:
            self._replies.append((caller, token, WrongBucket(bucket_id, self.shard_id)))
        elif len(still.waiting) < WAITING_MAX:  # where it arrives, the caller has heard of the COMMIT before this shard
            still.waiting.append((caller, token, kind, payload))
        else:
            self._replies.append((caller, token, Moving(bucket_id)))

    def survey(self, caller: Caller, token: object, query: Command, now_ns: int) -> None:
        """Answers a query about all buckets of this shard, in the next Ready."""
        reply = self.machine.survey(query, now_ns)
        if type(reply) is Later:
            self.later.append((caller, token, ALL_BUCKETS, reply.query))
        else:
            self._replies.append((caller, token, reply))

    def reply_with_next(self, caller: Caller, token: object, reply: object) -> None:
        """Lets a reply that was made elsewhere leave with the next Ready, when all that was applied before
        is durable.
        """
        self._replies.append(MadeElsewhere((caller, token, reply)))

    def tick(self, now_ns: int, limit: int) -> bool:
        """Carries out what time has made due. Returns True where `limit` left some of it."""
        return self.machine.due(now_ns, limit)

    def next_due_ns(self) -> int:
        """Returns the next instant at which `tick` has something to do; -1 where there is none."""
        return self.machine.next_due_ns()

    # -- ownership --------------------------------------------------------------------------------------------------

    def adopt(self, bucket_id: int, generation: int) -> None:
        """Creates an empty bucket of this shard, records that, and starts its timers."""
        assert bucket_id not in self.held, f"bucket {bucket_id} is held already"
        self.machine.create(bucket_id)
        self._hold(bucket_id, generation)
        self._own_records.append((OWN, bucket_id, generation, b""))
        self.machine.arm(bucket_id)

    def freeze(self, bucket_id: int) -> None:
        """Source of a move: from here on no command and no instant changes the bucket; requests for it wait."""
        self._frozen[bucket_id] = _Still(self.held.pop(bucket_id), [])
        self.machine.disarm(bucket_id)

    def thaw(self, bucket_id: int, now_ns: int) -> None:
        """Source of a move that was aborted: serves the bucket again, and carries out the requests that waited, in
        order.
        """
        self.held[bucket_id], waiting = self._frozen.pop(bucket_id)
        self._begin_chore(self.machine.arming(bucket_id))
        self._carry_out(bucket_id, waiting, now_ns)

    def _carry_out(self, bucket_id: int, waiting: list[Waiting], now_ns: int) -> None:
        for caller, token, kind, payload in waiting:
            (self.receive if kind == COMMAND else self.read)(caller, token, bucket_id, payload, now_ns)

    def leave(self, bucket_id: int) -> list[Waiting]:
        """Source of a move that was committed: drops the bucket, which has another owner, and returns the requests that
        waited, in order.
        """
        frozen = self._frozen.pop(bucket_id, None)
        generation = self.held.pop(bucket_id) if frozen is None else frozen.generation
        self._own_records.append((LEAVE, bucket_id, generation, b""))
        self._prefix.pop(bucket_id, None)
        self._begin_chore(self.machine.dropping(bucket_id))
        return [] if frozen is None else frozen.waiting

    def take_in(self, bucket_id: int, generation: int, block: bytes, content: object = None) -> None:
        """Target of a move: stores the bucket, which is not served until `activate`. `content`: the decoded `block`,
        where the caller has decoded it already.
        """
        assert bucket_id not in self.held, f"bucket {bucket_id} is here already"
        assert bucket_id not in self._arrived, f"bucket {bucket_id} is here already"
        if content is None:
            self.machine.load(bucket_id, block)
        else:
            self.machine.put(bucket_id, content)
        self._arrived[bucket_id] = _Still(generation, [])
        self._own_records.append((RECEIVED, bucket_id, generation, block))

    def activate(self, bucket_id: int, now_ns: int) -> None:
        """Target of a move that was committed: serves the bucket and lets time pass in it."""
        generation, waiting = self._arrived.pop(bucket_id)
        self._hold(bucket_id, generation)
        self._begin_chore(self.machine.arming(bucket_id))
        self._carry_out(bucket_id, waiting, now_ns)

    def reject(self, bucket_id: int) -> None:
        """Target of a move that was aborted: drops the bucket that it stored."""
        generation, waiting = self._arrived.pop(bucket_id)
        self._own_records.append((LEAVE, bucket_id, generation, CAME_TO_NOTHING))
        self._begin_chore(self.machine.dropping(bucket_id))
        for caller, token, _, _ in waiting:
            self._replies.append((caller, token, WrongBucket(bucket_id, self.shard_id)))

    def _begin_chore(self, slices: Iterator[None]) -> None:
        if next(slices, self) is None:  # there is more than one slice
            self.chores.append(slices)

    def is_arriving(self, bucket_id: int) -> bool:
        """Returns whether the bucket is stored here and its move is not decided yet."""
        return bucket_id in self._arrived

    def is_frozen(self, bucket_id: int) -> bool:
        """Returns whether the bucket is being moved away."""
        return bucket_id in self._frozen

    def _hold(self, bucket_id: int, generation: int) -> None:
        self.held[bucket_id] = generation
        self._prefix[bucket_id] = ENVELOPE.pack(ENTRY, bucket_id, generation)

    # -- the Ready --------------------------------------------------------------------------------------------------

    def take_early(self) -> list[Effect]:
        """Returns notices that need no sync of their own, because all that determined them is durable.

        A notice's second field, depends_ns, is the instant of the last command that determined it.
        """
        notices = self.machine.notices
        if not notices:
            return []
        if self._flight is not None and self._flight.from_ns >= 0:
            first = self._flight.from_ns
        elif self._sealed:
            first = self._sealed[0].from_ns
        else:
            first = self._open_from_ns
        early = [notice for notice in notices if notice[1] < first] if first >= 0 else notices[:]
        if early:
            notices[:] = [notice for notice in notices if notice[1] >= first] if first >= 0 else []
        return early

    def take_ready(self) -> Ready | None:
        """Returns what was recorded and answered since the last Ready, at most a batch; None where there is nothing, or
        while a Ready is out.
        """
        if self._flight is not None:
            return None
        if not self._sealed:
            if not self.has_more():
                return None
            self._seal()
        batch = self._flight = self._sealed.popleft()
        self._sequence += 1
        return Ready(self._sequence, batch.payload, batch.records, batch.replies, batch.notices, batch.decides)

    def has_replies(self) -> bool:
        """Returns whether there are replies that no Ready has taken yet."""
        return bool(self._replies or self.later or any(batch.replies for batch in self._sealed))

    def take_replies(self) -> list[Reply]:
        """Returns the replies that no Ready has taken yet, for a driver that takes no more of them."""
        remaining: list[Reply] = []
        for replies in [*(batch.replies for batch in self._sealed), self._replies]:
            remaining += replies
            replies.clear()
        return remaining

    def pending_sequence(self) -> int:
        """Returns the sequence of the Ready with which all that is recorded by now becomes durable; 0 where it is
        durable already.
        """
        if self.machine.records or self._own_records:
            return self._sequence + len(self._sealed) + 1
        return self._sequence + len(self._sealed) if self._sealed or self._flight is not None else 0

    def cut(self) -> None:
        """Closes the open batch, if it has records: what is applied from here on is in later batches."""
        if self.machine.records or self._own_records:
            self._seal()

    def has_more(self) -> bool:
        """Returns whether `take_ready` would return a Ready if none were out."""
        return bool(self._sealed or self.machine.records or self._replies or self._own_records or self.machine.notices)

    def is_awaited(self) -> bool:
        """Returns whether anybody waits for the next Ready, or its records are enough for a batch of their own."""
        waited = self._sealed or self._replies or self._own_records or self.machine.notices
        return bool(waited) or len(self.machine.records) >= RIDING_MAX

    def _seal(self) -> None:
        """Closes the open batch: what is applied from here on is in the next one."""
        machine = self.machine
        payload = b""
        decides = bool(self._own_records)
        count = len(machine.records) + len(self._own_records)
        if count:
            payload = join_batch(self._own_records, machine.records, self._prefix)
            machine.records.clear()
            self._own_records = []
        self._sealed.append(_Batch(payload, count, self._replies, machine.notices[:], self._open_from_ns, decides))
        self._replies = []
        machine.notices.clear()
        self._open_from_ns = -1

    def synced(self, ready: Ready) -> None:
        """Takes note that the batch of `ready` is durable, so that its replies and notices may leave."""
        assert self._flight is not None, "an answer while no batch is out"
        assert ready.sequence == self._sequence, "an answer for a batch that is not out"
        self._flight = None

    # -- recovery and snapshots -------------------------------------------------------------------------------------

    def replay(self, position: int, payload: bytes) -> int:
        """Applies the batch at `position` of the journal again; returns the number of its records.

        A bucket whose part of a snapshot was taken at `position` or later holds its records already.
        """
        count = 0
        machine, held, loaded, untouched = self.machine, self.held, self._loaded_at, self._untouched
        for kind, bucket_id, generation, body in split_batch(payload):
            count += 1
            if position <= loaded.get(bucket_id, -1):
                continue
            if kind == ENTRY:
                if held.get(bucket_id) != generation:
                    raise BatchCorrupt(
                        f"an entry of bucket {bucket_id} at generation {generation}, "
                        f"while this shard holds {held.get(bucket_id, 'none')}"
                    )
                machine.replay(bucket_id, body)
                if untouched:
                    untouched.discard(bucket_id)
            elif kind in (OWN, RECEIVED):
                if bucket_id in held:
                    raise BatchCorrupt(f"bucket {bucket_id} is taken over twice")
                if kind == OWN:
                    machine.create(bucket_id)
                else:
                    machine.load(bucket_id, body)
                    untouched.add(bucket_id)
                self._hold(bucket_id, generation)
            elif kind == LEAVE:
                if held.pop(bucket_id, None) is not None:  # else the snapshot was begun before this LEAVE was durable
                    machine.drop(bucket_id)
                self._prefix.pop(bucket_id, None)
                untouched.discard(bucket_id)
            else:
                raise BatchCorrupt(f"a record of unknown kind {kind}")
        return count

    def is_untouched(self, bucket_id: int) -> bool:
        """Returns, after recovery, whether the bucket was moved here and no record shows that the move was
        committed.
        """
        return bucket_id in self._untouched

    def serve(self, now_ns: int, orphans: Iterable[int] = ()) -> None:
        """Ends the recovery: sets aside `orphans`, buckets that have another owner, and lets time pass in all others
        from here on.
        """
        self._loaded_at.clear()
        self.machine.start(now_ns)
        for bucket_id in orphans:
            self.orphans[bucket_id] = self.held.pop(bucket_id), self.machine.dump(bucket_id)
            self.machine.drop(bucket_id)
        self._untouched.intersection_update(self.orphans)
        for bucket_id in self.held:
            self.machine.arm(bucket_id)

    def forget(self, bucket_id: int) -> None:
        """Drops an orphan, whose owner has proved that it holds the bucket."""
        self._own_records.append((LEAVE, bucket_id, self.orphans.pop(bucket_id)[0], b""))
        self._untouched.discard(bucket_id)

    def dump(self, bucket_id: int, position: int) -> bytes:
        """Returns a bucket as one part of a snapshot, with all its records up to `position` and none after.

        To be called while all records are in batches up to `position` (`is_drained`), which is right after
        `take_ready`. Of a bucket that is not here (any more) the part says just that. The kind RECEIVED stands for a
        bucket whose move may never be committed.
        """
        assert self.is_drained(), "a part of a snapshot must not hold what no batch has"
        generation = self.present().get(bucket_id)
        if generation is None:
            return ENVELOPE.pack(LEAVE, bucket_id, 0) + POSITION.pack(position)
        content = self.orphans[bucket_id][1] if bucket_id in self.orphans else self.machine.dump(bucket_id)
        kind = RECEIVED if bucket_id in self._arrived or bucket_id in self._untouched else OWN
        return ENVELOPE.pack(kind, bucket_id, generation) + POSITION.pack(position) + content

    def present(self) -> dict[int, int]:
        """Returns bucket id -> generation of all buckets that a snapshot must hold, also frozen and arriving ones and
        orphans.
        """
        unserved = self.orphans | self._frozen | self._arrived
        return self.held | {bucket_id: bucket[0] for bucket_id, bucket in unserved.items()} if unserved else self.held

    def is_drained(self) -> bool:
        """Returns whether every record has been taken in a Ready."""
        return not (self.machine.records or self._own_records or self._sealed)

    def load(self, part: bytes) -> int:
        """Loads one part that `dump` wrote; returns its bucket id."""
        kind, bucket_id, generation = ENVELOPE.unpack_from(part)
        (position,) = POSITION.unpack_from(part, ENVELOPE.size)
        self._loaded_at[bucket_id] = position
        if kind == LEAVE:
            return int(bucket_id)
        if kind not in (OWN, RECEIVED) or bucket_id in self.held:
            raise BatchCorrupt(f"a part of a snapshot of kind {kind} for bucket {bucket_id}")
        if kind == RECEIVED:
            self._untouched.add(bucket_id)
        self.machine.load(bucket_id, part[ENVELOPE.size + POSITION.size :])
        self._hold(bucket_id, generation)
        return int(bucket_id)
