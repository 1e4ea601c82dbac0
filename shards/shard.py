"""One shard without I/O: requests in, a `Ready` out.

A shard is a journal and the buckets in it. This is the part of it that computes; it owns no socket, file or clock.
Whoever drives it has five duties, in this order:

    1 append   `ready.payload` to the journal
    2 sync     it (`append` of the journal's seam does both)
    3 tell     the shard: `synced(ready)`
    4 send     the replies and notices of that `ready`
    5 re-arm   the timer for `next_due_ns()`

**Invariant: sync, then speak.** What a reply or a notice tells is in the journal, durably, before it leaves. Reads wait
with the others: a read may have seen what is not durable yet. At most one `Ready` is out at a time, so one sync serves
all that arrived meanwhile (group commit), and a later batch is never written before an earlier one is durable.

One kind of notice may leave earlier (`take_early`): one that time alone caused follows, by replay, from the records
before it, so it waits only until the last *command* that determined it is durable. Instants rise from command to
command, so "stamped before the first command not yet durable" decides it. What became of something told outside
(`report`) determines no instant, so nothing waits for that.

**What may ride.** A record is awaited where a reply, a notice that is not early, or an owner's decision leaves behind
it. Records that nobody awaits (`is_awaited`) may ride with a later batch of the driver's choice: after a crash time
causes them again, or the machine presumes them.

`shards.batch` defines the bytes of a batch. The map says who owns a bucket that is held (`shards.moves.move`).
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

COMMAND = 0  # what a request is: a change of one bucket,
READ = 1  # or a question about one bucket
WAITING_MAX = 4096  # requests that wait for a bucket on its way out; more are answered with Moving
BATCH_RECORDS_MAX = 8_192  # a batch is closed here; what comes after is in the next
RIDING_MAX = 256  # records that nobody awaits may ride; with so many they are worth a batch of their own


Waiting = tuple[Caller, object, int, Command]  # caller, token, COMMAND or READ, payload


class MadeElsewhere(tuple[Caller, object, object]):
    """A reply that tells of something that is not in this shard, and only leaves in its turn."""

    __slots__ = ()


class Ready(NamedTuple):
    """The records to be made durable, and the messages that leave once they are."""

    sequence: int
    payload: bytes  # empty where nothing was recorded: then nothing has to be appended
    records: int
    replies: list[Reply]
    notices: list[Effect]
    decides: bool  # who owns a bucket: to be synced in every mode, since the map is


class _Still(NamedTuple):
    """A bucket that is here and not served."""

    generation: int
    waiting: list[Waiting]


class _Batch(NamedTuple):
    payload: bytes
    records: int
    replies: list[Reply]
    notices: list[Effect]
    from_ns: int  # instant of its first command, -1 where it has none
    decides: bool


class Shard:
    """The buckets of one shard; see the module's text for the duties of its driver."""

    def __init__(self, shard_id: int, machine: Machine) -> None:
        self.shard_id = shard_id
        self.machine = machine
        self.held: dict[int, int] = {}  # bucket id -> generation
        self._prefix: dict[int, bytes] = {}  # bucket id -> envelope of its entries
        self._loaded_at: dict[int, int] = {}  # during recovery: bucket id -> position its snapshot part was taken at
        self._own_records: list[tuple[int, int, int, bytes]] = []  # (kind, bucket, generation, body) of this layer
        self._frozen: dict[int, _Still] = {}  # buckets on their way out
        self._arrived: dict[int, _Still] = {}  # buckets moved here, but not yet decided
        self.orphans: dict[int, tuple[int, bytes]] = {}  # (generation, content) of what is another's
        self._untouched: set[int] = set()  # of recovery: moved here, and nothing has happened to them since
        self.chores: deque[Iterator[None]] = deque()  # what arming and dropping large buckets leave for later
        self._replies: list[Reply] = []
        self.later: list[tuple[Caller, object, int, Command]] = []  # (caller, token, bucket, query), for the driver
        self._sealed: deque[_Batch] = deque()
        self._open_from_ns = -1  # instant of the first command in the open batch
        self._flight: _Batch | None = None  # the batch that is being synced
        self._sequence = 0

    # -- requests ---------------------------------------------------------------------------------------------------

    def receive(self, caller: Caller, token: object, bucket_id: int, command: Command, now_ns: int) -> None:
        """Applies a command at once; its reply comes with the next Ready."""
        self.receive_all(((caller, token, bucket_id, command),), now_ns)

    def receive_all(self, requests: Iterable[tuple[Caller, object, int, Command]], now_ns: int) -> None:
        """Applies commands, (caller, token, bucket id, command) each, at once and in order; their replies come with the
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
        """Applies a command that no client waits for; returns what came of it."""
        if bucket_id in self.held and self._open_from_ns < 0:
            self._open_from_ns = now_ns
        return self.report(bucket_id, command, now_ns)

    def report(self, bucket_id: int, command: Command, now_ns: int) -> object:
        """Applies the outcome of something told outside, on which no instant depends; returns what came of it."""
        if bucket_id not in self.held:
            return WrongBucket(bucket_id, self.shard_id)
        return self.machine.apply(bucket_id, command, now_ns)

    def read(self, caller: Caller, token: object, bucket_id: int, query: Command, now_ns: int) -> None:
        """Answers a query with the next Ready."""
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
        elif len(still.waiting) < WAITING_MAX:  # of one that arrived: somebody heard of the decision before this shard
            still.waiting.append((caller, token, kind, payload))
        else:
            self._replies.append((caller, token, Moving(bucket_id)))

    def survey(self, caller: Caller, token: object, query: Command, now_ns: int) -> None:
        """Answers a query about all buckets of this shard with the next Ready."""
        reply = self.machine.survey(query, now_ns)
        if type(reply) is Later:
            self.later.append((caller, token, ALL_BUCKETS, reply.query))
        else:
            self._replies.append((caller, token, reply))

    def reply_with_next(self, caller: Caller, token: object, reply: object) -> None:
        """Lets a reply made elsewhere leave with the next Ready: when all that was applied before is durable."""
        self._replies.append(MadeElsewhere((caller, token, reply)))

    def tick(self, now_ns: int, limit: int) -> bool:
        """Carries out what time has made due; True when the limit cut it short."""
        return self.machine.due(now_ns, limit)

    def next_due_ns(self) -> int:
        """The coming instant at which `tick` has something to do; -1 when there is none."""
        return self.machine.next_due_ns()

    # -- ownership --------------------------------------------------------------------------------------------------

    def adopt(self, bucket_id: int, generation: int) -> None:
        """Makes an empty bucket of this shard; recorded, and armed at once."""
        assert bucket_id not in self.held, f"bucket {bucket_id} is held already"
        self.machine.create(bucket_id)
        self._hold(bucket_id, generation)
        self._own_records.append((OWN, bucket_id, generation, b""))
        self.machine.arm(bucket_id)

    def freeze(self, bucket_id: int) -> None:
        """Source: from here on no command and no instant changes the bucket; requests for it wait."""
        self._frozen[bucket_id] = _Still(self.held.pop(bucket_id), [])
        self.machine.disarm(bucket_id)

    def thaw(self, bucket_id: int, now_ns: int) -> None:
        """Source: the move came to nothing; what waited is carried out, in order."""
        self.held[bucket_id], waiting = self._frozen.pop(bucket_id)
        self._begin_chore(self.machine.arming(bucket_id))
        self._carry_out(bucket_id, waiting, now_ns)

    def _carry_out(self, bucket_id: int, waiting: list[Waiting], now_ns: int) -> None:
        for caller, token, kind, payload in waiting:
            (self.receive if kind == COMMAND else self.read)(caller, token, bucket_id, payload, now_ns)

    def leave(self, bucket_id: int) -> list[Waiting]:
        """Source: the bucket is another's; forgets it and hands over what waited, in order."""
        frozen = self._frozen.pop(bucket_id, None)
        generation = self.held.pop(bucket_id) if frozen is None else frozen.generation
        self._own_records.append((LEAVE, bucket_id, generation, b""))
        self._prefix.pop(bucket_id, None)
        self._begin_chore(self.machine.dropping(bucket_id))
        return [] if frozen is None else frozen.waiting

    def take_in(self, bucket_id: int, generation: int, block: bytes, content: object = None) -> None:
        """Target: stores a moved bucket, which stays still until `activate`; `content` where `block` is loaded."""
        assert bucket_id not in self.held, f"bucket {bucket_id} is here already"
        assert bucket_id not in self._arrived, f"bucket {bucket_id} is here already"
        if content is None:
            self.machine.load(bucket_id, block)
        else:
            self.machine.put(bucket_id, content)
        self._arrived[bucket_id] = _Still(generation, [])
        self._own_records.append((RECEIVED, bucket_id, generation, block))

    def activate(self, bucket_id: int, now_ns: int) -> None:
        """Target: the bucket is this shard's; serves it and lets time pass in it."""
        generation, waiting = self._arrived.pop(bucket_id)
        self._hold(bucket_id, generation)
        self._begin_chore(self.machine.arming(bucket_id))
        self._carry_out(bucket_id, waiting, now_ns)

    def reject(self, bucket_id: int) -> None:
        """Target: the move came to nothing; forgets what it stored."""
        generation, waiting = self._arrived.pop(bucket_id)
        self._own_records.append((LEAVE, bucket_id, generation, CAME_TO_NOTHING))
        self._begin_chore(self.machine.dropping(bucket_id))
        for caller, token, _, _ in waiting:
            self._replies.append((caller, token, WrongBucket(bucket_id, self.shard_id)))

    def _begin_chore(self, slices: Iterator[None]) -> None:
        if next(slices, self) is None:  # there is more than one slice
            self.chores.append(slices)

    def is_arriving(self, bucket_id: int) -> bool:
        """Whether the bucket is stored here and not decided yet."""
        return bucket_id in self._arrived

    def is_frozen(self, bucket_id: int) -> bool:
        """Whether the bucket is on its way out."""
        return bucket_id in self._frozen

    def _hold(self, bucket_id: int, generation: int) -> None:
        self.held[bucket_id] = generation
        self._prefix[bucket_id] = ENVELOPE.pack(ENTRY, bucket_id, generation)

    # -- the Ready --------------------------------------------------------------------------------------------------

    def take_early(self) -> list[Effect]:
        """Notices that need no sync of their own, because all that determined them is durable.

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
        """What came since the last one, a batch at most; None when there is nothing, or while one is out."""
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
        """Whether there are replies that no Ready has taken yet."""
        return bool(self._replies or self.later or any(batch.replies for batch in self._sealed))

    def take_replies(self) -> list[Reply]:
        """The replies that no Ready has taken yet, for a driver that takes no Ready any more."""
        remaining: list[Reply] = []
        for replies in [*(batch.replies for batch in self._sealed), self._replies]:
            remaining += replies
            replies.clear()
        return remaining

    def pending_sequence(self) -> int:
        """The sequence of the Ready with which all that was recorded until now is durable; 0 where it is already."""
        if self.machine.records or self._own_records:
            return self._sequence + len(self._sealed) + 1
        return self._sequence + len(self._sealed) if self._sealed or self._flight is not None else 0

    def cut(self) -> None:
        """Closes the open batch, if anything is in it: what is applied from here on is in later ones."""
        if self.machine.records or self._own_records:
            self._seal()

    def has_more(self) -> bool:
        """Whether a Ready could be taken, were none out."""
        return bool(self._sealed or self.machine.records or self._replies or self._own_records or self.machine.notices)

    def is_awaited(self) -> bool:
        """Whether anybody waits for the next Ready, or it holds enough to be worth a batch."""
        waited = self._sealed or self._replies or self._own_records or self.machine.notices
        return bool(waited) or len(self.machine.records) >= RIDING_MAX

    def _seal(self) -> None:
        """Closes the open batch; what comes from now on is in the next."""
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
        """The batch of `ready` is durable; its replies and notices may leave."""
        assert self._flight is not None, "an answer while no batch is out"
        assert ready.sequence == self._sequence, "an answer for a batch that is not out"
        self._flight = None

    # -- recovery and snapshots -------------------------------------------------------------------------------------

    def replay(self, position: int, payload: bytes) -> int:
        """Applies the batch at `position` of the journal again; returns how many records it has.

        A bucket that came from a snapshot part taken at or behind `position` holds its records already.
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
                if held.pop(bucket_id, None) is not None:  # else a snapshot began between leaving and its durability
                    machine.drop(bucket_id)
                self._prefix.pop(bucket_id, None)
                untouched.discard(bucket_id)
            else:
                raise BatchCorrupt(f"a record of unknown kind {kind}")
        return count

    def is_untouched(self, bucket_id: int) -> bool:
        """After recovery: whether the bucket was moved here, and nothing tells that the move was decided."""
        return bucket_id in self._untouched

    def serve(self, now_ns: int, orphans: Iterable[int] = ()) -> None:
        """Ends the recovery: lays aside what is another's, and lets time pass in every other bucket from here on."""
        self._loaded_at.clear()
        self.machine.start(now_ns)
        for bucket_id in orphans:
            self.orphans[bucket_id] = self.held.pop(bucket_id), self.machine.dump(bucket_id)
            self.machine.drop(bucket_id)
        self._untouched.intersection_update(self.orphans)
        for bucket_id in self.held:
            self.machine.arm(bucket_id)

    def forget(self, bucket_id: int) -> None:
        """An orphan's owner has proved that it holds the bucket."""
        self._own_records.append((LEAVE, bucket_id, self.orphans.pop(bucket_id)[0], b""))
        self._untouched.discard(bucket_id)

    def dump(self, bucket_id: int, position: int) -> bytes:
        """A bucket as one part of a snapshot; it holds all its records up to `position` and none after.

        So it is called when nothing is recorded but in batches up to there (`is_drained`): right after `take_ready`.
        Of a bucket that is not here (any more) the part says just that. RECEIVED is one that may never be decided for.
        """
        assert self.is_drained(), "a part of a snapshot must not hold what no batch has"
        generation = self.present().get(bucket_id)
        if generation is None:
            return ENVELOPE.pack(LEAVE, bucket_id, 0) + POSITION.pack(position)
        content = self.orphans[bucket_id][1] if bucket_id in self.orphans else self.machine.dump(bucket_id)
        kind = RECEIVED if bucket_id in self._arrived or bucket_id in self._untouched else OWN
        return ENVELOPE.pack(kind, bucket_id, generation) + POSITION.pack(position) + content

    def present(self) -> dict[int, int]:
        """bucket id -> generation of all that a snapshot must hold: also of what is on its way, and of orphans."""
        unserved = self.orphans | self._frozen | self._arrived
        return self.held | {bucket_id: bucket[0] for bucket_id, bucket in unserved.items()} if unserved else self.held

    def is_drained(self) -> bool:
        """Whether every record has been taken in a Ready."""
        return not (self.machine.records or self._own_records or self._sealed)

    def load(self, part: bytes) -> int:
        """Takes in one part that `dump` wrote; returns its bucket id."""
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
