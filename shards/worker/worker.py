"""The worker: the asynchronous shell around one shard.

Its duty, once per turn of the loop (`_pump`) and once per batch that the journal has taken (`_on_synced`):

    1 append   what the shard recorded to the journal           (on the journal's thread)
    2 sync     it                                               (the same call)
    3 tell     the shard that it is durable
    4 send     the replies and notices that waited for it
    5 re-arm   the timer for the shard's next instant

Requests that arrive while a batch is being synced are applied at once and wait in the next batch; so the journal sets
the pace of answers, never the pace of commands. Records that nobody awaits (an exhaustion that time caused, the attempt
of its call and the 2xx) ride with the next batch, for `RIDE_S` at most: an isolated cutoff is one batch. No `await`
stands between reading state and changing it: requests are applied in the protocol's callback, and all of this file but
the start is plain functions.

A batch proves the one before it to be whole, and behind the last one a barrier does, after a pause of `idle_barrier_s`.
Where something rides by then, the ride ends instead. Of what nobody was told but followers, which refuse a journal that
has lost it, the proof may wait for `UNTOLD_S`: so cutoffs that come one by one cost a sync each, not two.

All requests of one read carry one instant, which is not before their arrival; so do those that a door has gathered for
the next turn (`before_turn`). What time makes due is carried out in
slices of `TICK_ENTRIES_MAX`, between which requests are answered.

Effects of time may be told of before their records are durable (`Shard.take_early`), but only within `TOLD_AHEAD_NS` of
the last durable batch: so far behind it billing time begins in a new boot, also where the wall clock was set back.
After a longer rest they wait for their own batch. Where the log grants time, the grant is that bound.

It is also the `Gate` that doors see; it serves its own buckets and passes the rest on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from shards.buckets import hashed_into
from shards.control import MoveOrder, ToSupervisor
from shards.journal import ALL_TIME_NS, Full, Unknown
from shards.journal import Unavailable as JournalUnavailable
from shards.links.far import Far
from shards.machine import ALL_BUCKETS, Command, Effect
from shards.moves.handoff import Handoff, Request
from shards.replies import Reply, Unavailable
from shards.shard import COMMAND, READ, MadeElsewhere, Ready
from shards.system.clock import TOLD_AHEAD_NS, Alarm
from shards.system.links import Wire
from shards.system.serial_executor import SerialExecutor
from shards.worker.backpressure import ROOM_RETRY_S, TRIES_MAX, Backpressure
from shards.worker.far_moves import FarMoves
from shards.worker.histogram import Syncs
from shards.worker.hosting import Application
from shards.worker.recovering import Recovering
from shards.worker.router import Dial, PeerCaller, PeerLink, ask_shards, receive_frame
from shards.worker.snapshotter import LOOK_BATCHES, Snapshotter

TICK_ENTRIES_MAX = 48  # a millisecond: so long a command may wait for them, several times over
RIDE_S = 0.1  # so long records that nobody awaits ride with the batches of others before they are one of their own
UNTOLD_S = 1.0  # so long a batch that nobody was told of waits for another one to prove it
RENEW_RETRY_S = 0.1  # how often a grant that ran out is asked for again
OVERLAPPED_REPLIES = 8  # more of them are encoded while the journal writes, fewer before it does
HEAR_BACK_S = 1.0  # an end waits so long for answers of other workers: less than a grant, which is not renewed any more
SNAPSHOT_PAUSE_S = 0.001  # between two slices of a snapshot while nothing else is to be done


DialFar = Callable[[int, Far, Callable[[], Wire]], Awaitable[None]]  # (shard, where, …), see `shards.links.far.dial`


class Upward(NamedTuple):
    """How a worker sends messages to its process, and through it to the supervisor."""

    ask: Callable[[Any, Any, Command], None]  # (caller, token, operation); the answer comes to the caller
    send: Callable[[ToSupervisor], None]
    fail: Callable[[BaseException], None]  # ends the process


def _near(path: str) -> Dial:
    """Connects to a worker of this host."""

    async def dial(make_wire: Callable[[], Wire]) -> None:
        await asyncio.get_running_loop().create_unix_connection(make_wire, path)

    return dial


class Worker:
    """One shard that is served. Made after recovery; `open_links` connects it to the other workers."""

    def __init__(
        self,
        recovered: Recovering,
        executor: SerialExecutor,
        snapshotter: Snapshotter,
        upward: Upward,
        alarm: Alarm,
        boot_ns: Callable[[], int],
    ) -> None:
        assert recovered.clock is not None
        shard, journal = recovered.shard, recovered.journal
        self.shard = shard
        self.shard_id = shard.shard_id
        self.journal = journal
        self.executor = executor
        self.clock = recovered.clock
        self.map = recovered.map
        self.bucket_of = hashed_into(recovered.map.bucket_count)  # the bucket a key hashes to
        self.application: Application = recovered.application
        self.settings = recovered.settings
        self.snapshotter = snapshotter
        self.links: dict[int, PeerLink] = {}
        self._addresses: dict[int, str | Far | None] = {}  # where these lead to
        self._boot_ns = boot_ns
        links = recovered.begin.links
        voice = (0, 0) if links is None else (links.epoch, links.life)
        self.far_moves = FarMoves(self.links, voice, self._on_far_order, upward.ask, upward.send)
        self.handoff = Handoff(self, self.application, self.far_moves.report, boot_ns)
        self._routes = self.handoff.routes
        self._ask_supervisor = upward.ask
        self.fail = upward.fail
        self._loop = asyncio.get_running_loop()
        self._alarm = alarm
        self._now_ns = 0  # the instant of this turn of the loop; 0: not read yet
        self._durable_ns = 0  # the instant of the newest durable batch of this life; 0: there is none yet
        self._scheduled = False
        self._before_turn: list[Callable[[], None]] = []
        self._writing = False
        self._telling = False  # what is recorded meanwhile is seen to by whoever tells
        self._unsynced: list[Reply] = []  # of the batch that is being written
        self._stopping = False
        self.halted = True  # nothing is written, told or answered: doors are not open yet, or the state may be wrong
        self.backpressure = Backpressure(shard.shard_id, journal, self._on_barrier_time, snapshotter.begin)
        self._barrier_due = False
        self._barrier_timer: asyncio.TimerHandle | None = None
        self._barrier_ns = 0  # when that rings, by the boot clock
        self._is_untold = False  # nobody was told of anything that only the last batch holds
        self._idle = asyncio.Event()
        self._heard_back = asyncio.Event()  # some peer has answered
        self._peers: dict[Wire, PeerCaller] = {}
        self.on_step: Callable[[PeerCaller, Any, Command], bool] = lambda *_: False  # see `shards.worker.holds`
        self._ride: asyncio.TimerHandle | None = None  # the end of the ride of what nobody awaits
        self._arrived_from_ride = False
        self._after_sync: list[tuple[int, Callable[[], None]]] = []  # (sequence, what waits for it), rising
        self.syncs = Syncs(boot_ns)
        self._loop.add_reader(self._alarm.fileno(), self._on_alarm)

    # -- the gate: what doors call ----------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """The billing instant of this turn of the loop; never beyond the time that the journal has granted."""
        if not self._now_ns:
            self._now_ns = self.fresh_now_ns()
        return self._now_ns

    def fresh_now_ns(self) -> int:
        """The billing instant, read anew. Where the grant has run out, it stands still just before the grant's end."""
        now_ns, granted_ns = self.clock.at(self._boot_ns()), self.journal.granted_ns
        if now_ns < granted_ns:
            return now_ns
        self._lapse()
        return max(granted_ns - 1, 1)

    def may_act(self) -> bool:
        """Whether the journal's grant holds at this moment; to be asked right before anything is sent that no append
        has proved.
        """
        granted_ns = self.journal.granted_ns
        if granted_ns == ALL_TIME_NS or self.clock.at(self._boot_ns()) < granted_ns:
            return True
        self._lapse()
        return False

    def _may_tell_early(self) -> bool:
        """Whether effects of time may be told of now, before their records are durable: until `TOLD_AHEAD_NS` after
        the last durable batch, since a later life begins behind that; always, where the journal grants time.
        """
        return self.now_ns() - self._durable_ns <= TOLD_AHEAD_NS or self.journal.granted_ns != ALL_TIME_NS

    def grant_left_ns(self) -> int:
        """How long the journal's grant still lasts; -1 where it lasts for all time."""
        granted_ns = self.journal.granted_ns
        return -1 if granted_ns == ALL_TIME_NS else max(granted_ns - self.clock.at(self._boot_ns()), 0)

    def _lapse(self) -> None:
        """The grant has run out, and another owner may exist: asks for a new grant, and does nothing before it
        has one.
        """
        if not self.backpressure.lapsed:
            self.backpressure.lapse()
            if not self._stopping:
                self._loop.call_soon(self._on_barrier_time)

    def before_turn(self, work: Callable[[], None]) -> None:
        """Calls `work` once at the beginning of the next turn, which is scheduled; `work` may submit, read and
        operate.
        """
        self._before_turn.append(work)
        if not self._scheduled:
            self._schedule()

    def _work_before_turn(self) -> None:
        """To be called while a turn is scheduled, so that what is submitted here schedules no other."""
        works, self._before_turn = self._before_turn, []
        try:
            for work in works:
                work()
        except BaseException as error:
            self.fail(error)
            raise

    def arrived(self) -> None:
        """Requests have just been read: none of them may be stamped with an earlier instant."""
        self._now_ns = 0

    def submit(self, caller: Any, token: Any, bucket_id: int, command: Command) -> None:
        """Carries out a command here, or passes it on to the owner of its bucket; `caller` gets the reply once it is
        durable.
        """
        owner = self._routes[bucket_id]
        if owner == self.shard_id:
            now_ns = self._now_ns or self.now_ns()
            if self.backpressure.reason:
                self.backpressure.refuse(caller, token)
            else:
                self.shard.receive(caller, token, bucket_id, command, now_ns)
        else:
            self._pass_on(owner, caller, token, COMMAND, bucket_id, command)
        if not self._scheduled:
            self._schedule()

    def submit_all(self, requests: Sequence[tuple[Any, Any, int, Command]]) -> None:
        """Carries out commands that were read together, (caller, token, bucket id, command) each, in their order. The
        same as `submit` for each of them; what is the same for all is done once.
        """
        if self.backpressure.reason:
            for caller, token, bucket_id, command in requests:
                self.submit(caller, token, bucket_id, command)
            return
        now_ns = self._now_ns or self.now_ns()
        routes, own_id = self._routes, self.shard_id
        here = [request for request in requests if routes[request[2]] == own_id]
        self.shard.receive_all(here, now_ns)
        if len(here) < len(requests):  # a bucket is owned in one place: what is passed on shares none with what is not
            for caller, token, bucket_id, command in requests:
                owner = routes[bucket_id]
                if owner != own_id:
                    self._pass_on(owner, caller, token, COMMAND, bucket_id, command)
        if not self._scheduled:
            self._schedule()

    def read(self, caller: Any, token: Any, bucket_id: int, query: Command) -> None:
        """Answers a query about one bucket here, or passes it on to the bucket's owner."""
        owner = self._routes[bucket_id]
        if owner == self.shard_id:
            now_ns = self._now_ns or self.now_ns()
            if self.backpressure.refuses_reads:
                self.backpressure.refuse(caller, token)
            else:
                self.shard.read(caller, token, bucket_id, query, now_ns)
        else:
            self._pass_on(owner, caller, token, READ, bucket_id, query)
        if not self._scheduled:
            self._schedule()

    def _pass_on(self, owner: int, caller: Any, token: Any, kind: int, bucket_id: int, payload: Command) -> None:
        """Passes on a request for a bucket of another shard; with owner 0, keeps it until the bucket's owner is
        decided.
        """
        if owner:
            self.links[owner].ask(caller, token, kind, bucket_id, payload)
        else:
            self.handoff.hold((caller, token, kind, payload), bucket_id)

    def operate(self, caller: Any, token: Any, operation: Command) -> None:
        """Answers a question about the whole daemon, or carries out an operator's request."""
        name = operation[0]
        if name == "route":
            self.shard.reply_with_next(caller, token, self.application.route(operation, self.map))
        elif name in self.application.surveys:
            self._survey(caller, token, operation, [self.shard.shard_id, *self.links])
        elif name == "of_shard":
            self._survey_one(caller, token, *operation[1:])
        elif name in self.application.questions:
            if self._refuses_reads():
                self.backpressure.refuse(caller, token)
            else:
                self.shard.later.append((caller, token, ALL_BUCKETS, operation))
        else:
            self._ask_supervisor(caller, token, operation)
        self._schedule()

    def reply(self, caller: Any, token: Any, reply: object) -> None:
        """Sends a reply that was made elsewhere with the next batch."""
        self.shard.reply_with_next(caller, token, reply)
        self.wake()

    def pass_back(self, caller: Any, token: Any, reply: object) -> None:
        """Sends a reply that the supervisor or other shards made: with the next batch, or at once while this shard has
        no grant or no room, and therefore no batch.
        """
        if self._refuses_reads():
            caller.refuse(token, reply)
        else:
            self.reply(caller, token, reply)

    def _refuses_reads(self) -> bool:
        """Whether this shard may tell nothing of its own at this moment."""
        return not self.may_act() or self.backpressure.refuses_reads

    def request(self, request: Request, bucket_id: int) -> None:
        """Handles a request as if it had just been received."""
        caller, token, kind, payload = request
        (self.submit if kind == COMMAND else self.read)(caller, token, bucket_id, payload)

    def when_durable(self, function: Callable[[], None]) -> None:
        """Calls `function` once everything recorded until now is durable."""
        sequence = self.shard.pending_sequence()
        if sequence:
            self._after_sync.append((sequence, function))
            self._schedule()
        else:
            self._loop.call_soon(function)

    def apply(self, bucket_id: int, command: Command) -> object:
        """Applies a command that no client waits for."""
        outcome = self.shard.apply(bucket_id, command, self._now_ns or self.now_ns())
        self._schedule()
        return outcome

    def report(self, reports: Sequence[tuple[int, Command]], now_ns: int) -> list[object]:
        """Applies what became of calls, at a billing instant that was read in this turn; no other instant depends on
        it. Records that nobody awaits go with the batch behind the one that is being written, or with that of the turn
        that sent it, and schedule no turn of their own.
        """
        replies = self.shard.report(reports, self._now_ns or now_ns)
        if not self._telling and (self.shard.is_awaited() or not (self._writing or self._ride is not None)):
            self._schedule()
        return replies

    def _survey_one(self, caller: Any, token: Any, shard_id: int, operation: Command) -> None:
        known_ids = [self.shard.shard_id, *self.links]
        if shard_id in known_ids:
            self._survey(caller, token, operation, [shard_id])
        else:
            self.shard.reply_with_next(caller, token, self.application.unknown_shard(shard_id, sorted(known_ids)))

    def _survey(self, caller: Any, token: Any, operation: Command, shard_ids: list[int]) -> None:
        is_asked_here = self.shard.shard_id in shard_ids

        def done(parts: list[Any] | Unavailable) -> None:
            if is_asked_here and self._refuses_reads():  # its part may be another owner's to tell by now
                parts = Unavailable(self.shard.shard_id, self.backpressure.reason, "no")
            if isinstance(parts, Unavailable):
                merged: object = parts if len(shard_ids) == 1 else self.application.lacking(operation, parts)
            else:
                merged = self.application.merge(operation, parts)
            self.pass_back(caller, token, merged)

        if is_asked_here and self._refuses_reads():
            done([])
        else:
            ask_shards(self.shard, self.links, shard_ids, operation, self.now_ns(), done)

    # -- the pump ---------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        if self._before_turn:
            self._work_before_turn()
        self._scheduled = False
        self._guarded_turn()

    def _guarded_turn(self) -> None:
        try:
            if not self.halted:
                self._turn()
            else:
                self._flush_links()  # what others own is theirs to answer
        except BaseException as error:
            self.fail(error)
            raise

    def _turn(self) -> None:
        shard = self.shard
        self._now_ns = 0
        if shard.later:
            self._answer_later()
        self._flush_links()
        due_ns = shard.next_due_ns()
        if 0 <= due_ns <= self.now_ns() and not self._stopping:
            if shard.tick(self._now_ns, TICK_ENTRIES_MAX):
                self._schedule()
            due_ns = shard.next_due_ns()
        if shard.machine.notices and self._may_tell_early() and (early := shard.take_early()):
            self._tell(early)
            due_ns = shard.next_due_ns()
        if not self._writing:
            ready = None if self._rides() else shard.take_ready()
            if ready is not None:
                position = self.journal.head + bool(ready.payload) if self.snapshotter.running else 0
                may_act, is_large = True, len(ready.replies) > OVERLAPPED_REPLIES
                if ready.payload:
                    if is_large:
                        self._append(ready)  # the journal works while the replies are encoded
                elif not self.may_act():
                    may_act, ready = False, self._refused(ready)
                for caller, token, reply in ready.replies:
                    caller.answer(token, reply)
                if ready.payload and not is_large:
                    self._append(ready)
                if self.snapshotter.running:
                    self.snapshotter.step(position, durable=False)
                if not ready.payload:
                    if self._is_untold and ready.replies:  # a read told of the last batch
                        self._is_untold = False
                        self._await_barrier(self.settings.idle_barrier_s)
                    if may_act:
                        self._release(ready)
                        self._idle.set()
                        if shard.has_more():
                            self._schedule()
                    else:
                        self._renew(ready)
            else:
                if self.snapshotter.running and self.snapshotter.step(self.journal.head, durable=True):
                    self._loop.call_later(SNAPSHOT_PAUSE_S, self.wake)
                self._idle.set()
        self._now_ns = 0
        self._rearm(due_ns)

    def _flush_links(self) -> None:
        for link in self.links.values():
            link.flush()

    def _rides(self) -> bool:
        """Whether nobody awaits the recorded entries, so that they may wait a little for a later batch."""
        if self._arrived_from_ride or self._after_sync or self._stopping or self.snapshotter.running:
            rides = False
        else:
            rides = not self.shard.is_awaited() and self.shard.has_more()
        if rides and self._ride is None:
            self._ride = self._loop.call_later(RIDE_S, self._on_ride)
        elif not rides:
            self._arrived_from_ride = False
            if self._ride is not None:
                self._ride.cancel()
                self._ride = None
        return rides

    def _on_ride(self) -> None:
        self._ride = None
        self._end_ride()

    def _end_ride(self) -> None:
        """Writes the entries that waited for a later batch."""
        self._arrived_from_ride = True
        self._guarded_turn()

    def _answer_later(self) -> None:
        later, self.shard.later = self.shard.later, []
        for caller, token, bucket_id, query in later:
            self.application.answer(bucket_id, query, partial(self.reply, caller, token))

    def _append(self, ready: Ready) -> None:
        self._writing = True
        self._unsynced = ready.replies
        self.syncs.begin()
        self._idle.clear()
        done = partial(self._on_synced, ready, self._now_ns or self.clock.at(self._boot_ns()))
        self.executor.submit(done, self.journal.append, ready.payload, ready.decides)

    def _on_synced(self, ready: Ready, appended_ns: int, position: int, error: BaseException | None) -> None:
        if error is not None:
            if not isinstance(error, JournalUnavailable):
                self.fail(error)
            elif self._is_waited_for_in_vain(ready, error):
                self._withdraw(error)
            else:  # surely not written: the batch waits until there is room
                self.backpressure.stick(error, partial(self._append, ready))
        if error is not None or self.halted:
            return  # halted: what there was to say was said
        was_lapsed = self.backpressure.lapsed
        self._on_granted()
        self.backpressure.looked()
        self._writing, self._unsynced = False, []
        self._durable_ns = appended_ns
        self._is_untold = not (ready.replies or ready.notices or ready.decides or self._after_sync)
        self.syncs.end(ready.records)
        self._release(ready)
        self.application.committed(position, ready.payload)
        if not self.syncs.batches % LOOK_BATCHES:
            self.snapshotter.look(self.settings.snapshot_bytes)
        self._barrier_due = True
        self._put_barrier_off()
        if self._before_turn:
            self._work_before_turn()
        if was_lapsed or self.shard.has_more() or self.shard.later or self.snapshotter.running:
            self._guarded_turn()
        else:  # as after most batches of a few commands: a turn would find nothing to do, and its timer is armed
            self._idle.set()

    def _is_waited_for_in_vain(self, ready: Ready, error: JournalUnavailable) -> bool:
        """Whether the batch is withdrawn and not tried again: callers wait for it, and waiting costs the grant."""
        if not self.journal.beat_s or not (ready.replies or self.shard.has_replies()):
            return False
        return isinstance(error, Full) or self.backpressure.tries >= TRIES_MAX

    def _withdraw(self, error: JournalUnavailable) -> None:
        """The batch under way is not in the journal and never will be, nor will what was applied after it. The shard's
        state is no longer what the journal says: nothing of it is sent, and the worker starts anew.
        """
        self.halted = True
        self.snapshotter.close()
        self.backpressure.withdraw(error)
        self._refuse_all(self._unsynced)
        self._unsynced = []
        self._begin_anew(error)

    def _refuse_all(self, replies: list[Reply]) -> None:
        """Refuses these callers, and those whose replies would have come after theirs: nothing was applied."""
        refusal = partial(Unavailable, self.shard_id, self.backpressure.reason)
        for reply in [*replies, *self.shard.take_replies()]:
            caller, token, _ = reply
            caller.refuse(token, refusal("unknown" if isinstance(reply, MadeElsewhere) else "no"))
        later, self.shard.later = self.shard.later, []
        for caller, token, _, _ in later:
            caller.refuse(token, refusal("no"))

    def _begin_anew(self, error: JournalUnavailable) -> None:
        """Ends the process as soon as its successor can take the shard: when a beat finds room and a majority."""

        def beaten(_: object, failure: BaseException | None) -> None:
            self._refuse_all([])  # what came in between
            if isinstance(failure, JournalUnavailable):
                self._loop.call_later(ROOM_RETRY_S, self._begin_anew, error)
            else:
                self.fail(error if failure is None else failure)

        self.executor.submit(beaten, self.journal.idle_barrier)

    def _await_barrier(self, delay_s: float) -> None:
        """Sets the timer of the next barrier to this delay (0: only with the beat), unless one is due sooner."""
        delay_s = min(delay_s or self.journal.beat_s, self.journal.beat_s or delay_s)
        if not delay_s or self._stopping:
            return
        at_ns = self._boot_ns() + int(delay_s * 1e9)
        if self._barrier_timer is not None:
            if self._barrier_ns <= at_ns:
                return
            self._barrier_timer.cancel()
        self._barrier_timer, self._barrier_ns = self._loop.call_later(delay_s, self._on_barrier_time), at_ns

    def _put_barrier_off(self) -> None:
        """A batch proves the one before it, so only a pause behind the last batch needs a barrier. Where batches follow
        each other fast, the timer is moved once in half its time, not for each.
        """
        delay_s = self.settings.idle_barrier_s
        if delay_s and self._is_untold:
            delay_s = max(delay_s, UNTOLD_S)
        if self._barrier_timer is not None:
            left_ns = self._barrier_ns - self._boot_ns()
            if delay_s * 5e8 <= left_ns <= delay_s * 1e9:
                return
            if left_ns < delay_s * 5e8:
                self._barrier_timer.cancel()
                self._barrier_timer = None
        self._await_barrier(delay_s)

    def _on_granted(self) -> None:
        """The journal has written a batch or a beat of this epoch, and with it renewed its grant, if it grants time."""
        if self.backpressure.lapsed and self.may_act():
            self.backpressure.granted()
            self.application.renewed()

    def begin_beats(self) -> None:
        """Begins to ask the journal in time for a new grant, where it grants time, and for room."""
        self.backpressure.looked()
        self._await_barrier(self.journal.beat_s)

    def _refused(self, ready: Ready) -> Ready:
        """Refuses reads that were made while the grant held: another owner may exist by now."""
        for caller, token, _ in ready.replies:
            caller.refuse(token, Unavailable(self.shard_id, self.backpressure.reason, "unknown"))
        return ready._replace(replies=[])

    def _renew(self, ready: Ready) -> None:
        """Keeps the other effects of this Ready, which were true while the grant held, until the journal has renewed
        it.
        """
        self._writing = True
        self._idle.clear()

        def renewed(_: object, error: BaseException | None) -> None:
            if error is not None:
                if isinstance(error, JournalUnavailable):
                    self._loop.call_later(RENEW_RETRY_S, self._renew, ready)
                else:
                    self.fail(error)
                return
            if not self.halted:
                self._writing = False
                self._release(ready)
                self._on_granted()
                self._idle.set()
                self._guarded_turn()

        self.executor.submit(renewed, self.journal.idle_barrier)

    def _release(self, ready: Ready) -> None:
        self.shard.synced(ready)
        if len(ready.replies) == 1:
            ready.replies[0][0].flush()
        else:
            for caller in dict.fromkeys([reply[0] for reply in ready.replies]):
                caller.flush()
        if ready.notices:
            self._tell(ready.notices)
        if self.snapshotter.running:
            self.snapshotter.synced()
        while self._after_sync and self._after_sync[0][0] <= ready.sequence:
            self._after_sync.pop(0)[1]()

    def _tell(self, notices: list[Effect]) -> None:
        """To be followed by a turn, or by the part of one that takes what is recorded meanwhile."""
        self._telling = True
        self.application.tell(notices)
        self._telling = False

    def _on_barrier_time(self) -> None:
        if self._barrier_timer is not None:
            self._barrier_timer.cancel()  # where it is not this that has called
            self._barrier_timer = None
        if self._stopping:
            return
        if self._writing:  # the commit under way is the proof
            self._await_barrier(self.journal.beat_s)
        elif self._ride is not None and not self.backpressure.reason:  # so is what rides, which is due soon anyway
            self._end_ride()
        elif self._barrier_due or self.backpressure.reason or self.journal.beat_s:  # it makes room, too
            self._barrier_due, self._writing = False, True
            self.syncs.begin()
            self.executor.submit(self._on_barrier, self.journal.idle_barrier)

    def _on_barrier(self, _: Any, error: BaseException | None) -> None:
        if error is None:
            self._on_granted()
        elif isinstance(error, JournalUnavailable):
            self.backpressure.not_renewed(error)
        else:
            self.fail(error)
            return
        self.backpressure.looked()
        self._await_barrier(self.journal.beat_s)
        self._writing = False
        self.syncs.rest()
        self._guarded_turn()

    # -- time -------------------------------------------------------------------------------------------------------

    def _rearm(self, due_ns: int) -> None:
        """Sets the alarm to `due_ns`, the shard's next instant (-1: none), unless it rings sooner."""
        if due_ns < 0 or self._scheduled or self._stopping:
            return  # nothing is coming, or the turn that does will see to it
        if self.backpressure.lapsed and due_ns >= self.journal.granted_ns:
            return  # the turn behind the renewal sees to it
        boot_ns = self.clock.boot_of(due_ns)
        if self._alarm.armed_ns < 0 or boot_ns < self._alarm.armed_ns:
            self._alarm.arm(boot_ns)

    def _on_alarm(self) -> None:
        self._alarm.acknowledge()
        if not self._stopping:
            self._guarded_turn()

    def wake(self) -> None:
        """Schedules a turn."""
        self._schedule()

    def follow_clock(self) -> None:
        """There is a new anchor: the same billing instant may be at another boot instant now."""
        self._alarm.disarm()
        self._rearm(self.shard.next_due_ns())

    # -- peers ------------------------------------------------------------------------------------------------------

    def open_links(self, paths: dict[int, str], far: Mapping[int, Far], dial_far: DialFar | None) -> None:
        """Connects to these workers and closes links to others: shard id -> path of a socket of this host, or where
        another host serves the shard. A shard of the map that is in neither has a link that refuses every request.
        """
        shards = self.map.weights if dial_far is not None else paths
        addresses: dict[int, str | Far | None] = {
            shard_id: paths.get(shard_id) or far.get(shard_id) for shard_id in shards
        }
        addresses.pop(self.shard_id, None)
        for shard_id in [shard_id for shard_id in self.links if shard_id not in addresses]:
            self.links.pop(shard_id).close()
            self._addresses.pop(shard_id)
        for shard_id, address in addresses.items():
            old_link = self.links.get(shard_id)
            if old_link is not None and self._addresses[shard_id] == address:
                continue
            if old_link is not None:
                old_link.drop()
            dial = _near(address) if isinstance(address, str) else None
            if isinstance(address, Far) and dial_far is not None:
                dial = partial(dial_far, shard_id, address)
            link = PeerLink(shard_id, dial, self.reply, self.handoff.strayed, self._on_answered)
            self.links[shard_id], self._addresses[shard_id] = link, address
            link.open()

    def is_linked(self) -> bool:
        """Whether there is a link to and from every other worker of this host."""
        near = [link for shard_id, link in self.links.items() if isinstance(self._addresses[shard_id], str)]
        return all(link.is_open for link in near) and len(self._peers) >= len(near)

    def links_down(self) -> dict[int, str]:
        """The shards of other hosts whose links are down, and why."""
        far = [shard_id for shard_id, address in self._addresses.items() if isinstance(address, Far)]
        return {shard_id: why for shard_id in far if (why := self.links[shard_id].why_down)}

    def _on_far_order(self, order: MoveOrder) -> None:
        self.handoff.on_message(order)
        self._schedule()

    def _on_answered(self, link: PeerLink, bucket_ids: list[int]) -> None:
        self._heard_back.set()
        if self.handoff.redirecting:
            for bucket_id in bucket_ids:
                self.handoff.answered(link, bucket_id)

    def peer_wire(self) -> Wire:
        """The protocol for another worker that has connected to this one."""
        return Wire(self._on_peer_frame, self._on_peer_closed, self._on_peer_open)

    def _on_peer_open(self, wire: Wire) -> None:
        self._peers[wire] = PeerCaller(wire, self.application.encode)

    def _on_peer_closed(self, wire: Wire) -> None:
        self._peers.pop(wire, None)

    def _on_peer_frame(self, wire: Wire, frame: Any) -> None:
        self._now_ns = 0
        try:
            on_special = self.on_step, self.far_moves.on_request
            receive_frame(self.shard, self._peers[wire], frame, self.now_ns(), self.backpressure, *on_special)
        except BaseException as error:
            self.fail(error)
            raise
        self._schedule()

    # -- the end ----------------------------------------------------------------------------------------------------

    def obstacle(self) -> str:
        """Why this shard cannot be retired yet, though the map gives it no bucket: its journal does not record that
        yet, so its followers would never learn that the last buckets have left. Empty where it can.
        """
        shard = self.shard
        if present := shard.present():
            return f"shard {self.shard_id} keeps bucket {min(present)} until its new shard has proved that it has it"
        if self._writing or shard.has_more():
            return f"shard {self.shard_id} is writing to its journal that its buckets have left"
        return ""

    def halt(self, error: BaseException) -> None:
        """Stops writing and answering. Where the journal failed under a batch, the batch's callers are refused."""
        self.halted = True
        if isinstance(error, Unknown):
            for caller, token, _ in self._unsynced:
                caller.refuse(token, Unavailable(self.shard_id, f"under this batch: {error.message}", "unknown"))

    async def quiesce(self) -> None:
        """Starts nothing that time causes any more; returns once everything applied is durable and answered."""
        self._stopping = True
        for timer in (self._barrier_timer, self._ride):
            if timer is not None:
                timer.cancel()
        while self._writing or self.shard.has_more() or self._scheduled:
            self.backpressure.check_stop()
            self._idle.clear()
            if not self._writing:
                self._pump()
            await asyncio.wait_for(self._idle.wait(), timeout=60)

    async def hear_back(self) -> None:
        """Returns once other workers have answered what was passed on to them, or after `HEAR_BACK_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAR_BACK_S):
                while any(link.is_awaited for link in self.links.values()):
                    self._heard_back.clear()
                    await self._heard_back.wait()

    def close(self) -> None:
        """Closes links and timer, not the journal."""
        self._loop.remove_reader(self._alarm.fileno())
        closing: list[Any] = [self._alarm, self.handoff, *self.links.values(), *self._peers]
        for resource in closing:
            resource.close()
