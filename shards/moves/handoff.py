"""A worker's part in moves: giving a bucket away, taking one in, and sending requests after it.

**Source.** Waits for a moment at which no call is in flight (the application says so) and no instant of the bucket is
near (the quiet window, for at most `QUIET_WAIT_NS`). If calls are still in flight then, no further ones are begun until
they have ended; but one that hangs holds up nobody else's: further calls are begun until it has ended, or until the
move is given up after `CALLS_WAIT_NS`. Then the bucket is frozen: its requests wait, its timers stand still.
When all that was recorded of it is durable, it is dumped and sent. It goes on as if nothing had been when the move is
aborted, and is left when the map says so.

**Target.** Waits until its own billing time has reached that of the source, where that is another host's; stores the
payload, says so when it is durable, and serves when the map says so.

**Everybody else, and order.** `routes` says where requests for a bucket go; it is the map, but for buckets that
change their owner while requests to the old one are still unanswered: those have route 0, and new requests wait here.
The old owner answers the requests that it applied and sends back the others, in order; when it holds none any more, the
requests that came back and then those that waited go to the new owner. So the order of a connection holds across a
move. A request that comes back before this worker has heard of the move waits for the word, for at most `STRAY_WAIT_S`.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Generator
from typing import Any, Protocol, assert_never

from shards.buckets import BucketMap
from shards.control import (
    Holdup,
    Known,
    MoveAbort,
    MoveIn,
    MoveOrder,
    MoveOut,
    MoveReport,
    NewOwner,
    Payload,
    Served,
    Stored,
    Unmoved,
)
from shards.counting import counted
from shards.moves.move import digest_of
from shards.replies import Moving, Unavailable, WrongBucket
from shards.shard import Shard
from shards.system.links import FRAME_BYTES_MAX
from shards.worker.router import PeerCaller, PeerLink

QUIET_WAIT_NS = 1_000_000_000  # how long a move waits for a quiet moment
QUIET_POLL_S = 0.005
SLICE_NS = 1_000_000  # of a turn of the loop, for dumping, loading, arming or dropping a large bucket
CALLS_WAIT_NS = 5_000_000_000  # how long a move waits for calls in flight
STRAY_WAIT_S = 2.0
AHEAD_NS_MAX = 1_000_000_000  # so far the source's clock may be ahead of the target's: the bucket stands still so long
BLOCK_BYTES_MAX = FRAME_BYTES_MAX - 4096  # of a bucket that moves: it goes in one frame
WAITING_MAX = 4096  # requests that wait here for one bucket
HANDOFF_NS_FIRST = 20_000_000  # how long a handoff is thought to take before one was measured

Request = tuple[Any, Any, int, Any]  # caller, token, COMMAND or READ, payload


class HandoffHost(Protocol):
    """What the handoff needs of the worker."""

    shard: Shard
    map: BucketMap
    links: dict[int, PeerLink]

    def fresh_now_ns(self) -> int:
        """The billing instant, read anew."""

    def request(self, request: Request, bucket_id: int) -> None:
        """Takes a request as if it had just come."""

    def reply(self, caller: Any, token: Any, reply: object) -> None:
        """Sends a reply with the next batch."""

    def when_durable(self, function: Callable[[], None]) -> None:
        """Calls `function` once everything recorded until now is durable."""

    def wake(self) -> None:
        """Schedules a turn of the worker."""


class Calls(Protocol):
    """What the handoff needs of the application: calls to the outside, per bucket."""

    def pause_calls(self, bucket_id: int) -> None:
        """Begins no further call for accounts of this bucket."""

    def calls_in_flight(self, bucket_id: int) -> int:
        """How many calls for accounts of this bucket have no known outcome yet."""

    def calls_hang(self, bucket_id: int) -> bool:
        """Whether one of these calls has been in flight for so long that it may never be answered."""

    def take_up(self, bucket_id: int) -> None:
        """Begins, or begins again, to make the calls that this bucket owes."""

    def forget_calls(self, bucket_id: int) -> None:
        """Forgets the calls of this bucket, which another shard owns now."""


class Handoff:
    """The moves in which one worker takes part, and its routes."""

    def __init__(
        self, host: HandoffHost, calls: Calls, send: Callable[[MoveReport], None], boot_ns: Callable[[], int]
    ) -> None:
        """`boot_ns`: the boot clock, by which durations are measured."""
        self._boot_ns = boot_ns
        self._host = host
        self._calls = calls
        self._send = send
        self.routes = array("H", host.map.owner)
        self.block_bytes_max = BLOCK_BYTES_MAX
        self.quiet_wait_ns = QUIET_WAIT_NS
        self._held_up = ""  # what the supervisor was told that a move waits for
        self._closed = False
        self.held = False  # a backup is being made: no bucket leaves or arrives
        self._leaving: dict[int, int] = {}  # bucket id -> number of the move that takes it away
        self._paused: set[int] = set()  # buckets that are leaving, are not frozen yet, and for which no call is begun
        self._arriving: dict[int, int] = {}  # bucket id -> number of the move that brings it
        self._with_old: dict[int, tuple[PeerLink, int]] = {}  # bucket id -> (old owner's link, requests it still has)
        self._returned: dict[int, list[Request]] = {}  # of these buckets: what the old owner sent back,
        self._waiting: dict[int, list[Request]] = {}  # and what came after it
        self._strays: dict[int, list[Request]] = {}
        self._handoff_ns = HANDOFF_NS_FIRST  # how long handoffs from here take, the longest counting most
        self._frozen_ns: dict[int, int] = {}  # bucket id -> boot instant at which it was frozen
        self._over: dict[int, int] = {}  # bucket id -> number of the newest move with a known outcome

    # -- the supervisor's messages ----------------------------------------------------------------------------------

    def on_message(self, message: MoveOrder) -> None:
        """Takes a message of the supervisor about a move. A message that comes late or twice changes nothing."""
        number, bucket_id = message.number, message.bucket_id
        match message:
            case MoveOut() | MoveIn():
                is_over = number <= self._over.get(bucket_id, 0)
                if is_over or number in (self._leaving.get(bucket_id), self._arriving.get(bucket_id)):
                    return
                if self.held:
                    self._send(Unmoved(number, "a backup is being made, during which no bucket moves"))
                elif isinstance(message, MoveOut):
                    self._move_out(number, bucket_id, message.generation)
                else:
                    self._move_in(message)
            case MoveAbort():
                self._over[bucket_id] = max(number, self._over.get(bucket_id, 0))
                self._abort(number, bucket_id)
                self._send(Known(number))
            case NewOwner():
                self._over[bucket_id] = max(number, self._over.get(bucket_id, 0))
                self._changed(bucket_id, message.shard_id, message.generation)
                self._send(Served(number) if message.shard_id == self._host.shard.shard_id else Known(number))
            case _:
                assert_never(message)

    def is_still(self) -> bool:
        """Whether no bucket is moving from or to this shard."""
        return not self._leaving and not self._arriving

    def _move_out(self, number: int, bucket_id: int, generation: int) -> None:
        shard = self._host.shard
        if shard.held.get(bucket_id) != generation:
            held = shard.held.get(bucket_id, "none")
            self._send(Unmoved(number, f"the source holds generation {held}, not {generation}"))
            return
        self._leaving[bucket_id] = number
        began_ns = self._boot_ns()
        asyncio.get_running_loop().call_soon(self._try_freeze, number, bucket_id, began_ns)

    def _try_freeze(self, number: int, bucket_id: int, began_ns: int) -> None:
        if self._leaving.get(bucket_id) != number:
            return  # aborted meanwhile
        now_ns = self._boot_ns()
        waited_ns = now_ns - began_ns
        calls = self._calls.calls_in_flight(bucket_id)
        if calls and waited_ns > CALLS_WAIT_NS:
            self._abort(number, bucket_id)
            self._send(Unmoved(number, f"still in flight: {counted(calls, 'call')} of the bucket"))
            return
        is_hurried = waited_ns >= self.quiet_wait_ns
        self._pause(bucket_id, calls > 0 and is_hurried and not self._calls.calls_hang(bucket_id))
        if calls:
            held_up = f"{counted(calls, 'call')} of the bucket to end"
        elif not is_hurried and not self._is_quiet(bucket_id):
            held_up = f"a moment at which nothing of the bucket is due within {self._handoff_ns / 1e6:.0f} ms"
        else:
            self._freeze(number, bucket_id)
            return
        if held_up != self._held_up:
            self._held_up = held_up
            self._send(Holdup(number, held_up))
        took_s = (self._boot_ns() - now_ns) / 1e9  # looking at a large bucket must not become all that is done
        delay_s = max(QUIET_POLL_S, 10 * took_s)
        asyncio.get_running_loop().call_later(delay_s, self._try_freeze, number, bucket_id, began_ns)

    def _pause(self, bucket_id: int, is_to_pause: bool) -> None:
        """Begins no further call for the bucket, or goes on to begin calls."""
        if is_to_pause and bucket_id not in self._paused:
            self._paused.add(bucket_id)
            self._calls.pause_calls(bucket_id)
        elif not is_to_pause and bucket_id in self._paused:
            self._paused.discard(bucket_id)
            self._calls.take_up(bucket_id)

    def _is_quiet(self, bucket_id: int) -> bool:
        """Whether nothing in the bucket becomes due within the time that a handoff takes."""
        until_ns = self._host.fresh_now_ns() + self._handoff_ns
        return self._host.shard.machine.bucket_due_ns(bucket_id, until_ns) < 0

    def _freeze(self, number: int, bucket_id: int) -> None:
        self._calls.pause_calls(bucket_id)
        self._paused.discard(bucket_id)
        self._frozen_ns[bucket_id] = self._boot_ns()
        self._held_up = ""
        self._host.shard.freeze(bucket_id)
        self._send(Holdup(number, "its last batch to be durable"))
        self._host.when_durable(lambda: self._dump(number, bucket_id, self._host.shard.machine.dumping(bucket_id)))
        self._host.wake()

    def _dump(self, number: int, bucket_id: int, slices: Generator[None, None, bytes]) -> None:
        """Dumps a frozen bucket, one slice in each turn of the loop."""
        if self._leaving.get(bucket_id) != number:
            return
        began_ns = self._boot_ns()
        try:
            while self._boot_ns() - began_ns < SLICE_NS:
                next(slices)
        except StopIteration as done:
            size, most = len(done.value), self.block_bytes_max
            if size <= most:
                self._send(Payload(number, done.value, digest_of(done.value), self._host.fresh_now_ns()))
                return
            self._abort(number, bucket_id)
            self._send(Unmoved(number, f"its content is {size} bytes, a move carries {most} at most"))
        else:
            asyncio.get_running_loop().call_soon(self._dump, number, bucket_id, slices)

    def _move_in(self, order: MoveIn) -> None:
        shard, number, bucket_id, block = self._host.shard, order.number, order.bucket_id, order.block
        if digest_of(block) != order.digest:
            self._send(Unmoved(number, "the payload was damaged on its way to the target"))
            return
        if bucket_id in shard.present() or bucket_id in self._arriving:
            self._send(Unmoved(number, "the target has the bucket already"))
            return
        self._arriving[bucket_id] = number
        self._await_instant(order)

    def _await_instant(self, order: MoveIn) -> None:
        """Waits until this host's clock has reached the bucket's last instant, which another host stamped: instants of
        a bucket never go back.
        """
        number, bucket_id, block = order.number, order.bucket_id, order.block
        if self._arriving.get(bucket_id) != number:
            return  # aborted meanwhile
        shard, ahead_ns = self._host.shard, order.at_ns - self._host.fresh_now_ns()
        if ahead_ns > AHEAD_NS_MAX:
            del self._arriving[bucket_id]
            self._send(Unmoved(number, f"the clock of the source is {ahead_ns / 1e9:.3f} s ahead of the target's"))
        elif ahead_ns > 0:
            asyncio.get_running_loop().call_later(ahead_ns / 1e9, self._await_instant, order)
        else:
            self._load(number, bucket_id, order.generation, block, shard.machine.loading(bucket_id, block))

    def _load(
        self, number: int, bucket_id: int, generation: int, block: bytes, slices: Generator[None, None, object]
    ) -> None:
        """Loads a bucket, one slice in each turn of the loop, and records it."""
        if self._arriving.get(bucket_id) != number:
            return
        began_ns = self._boot_ns()
        try:
            while self._boot_ns() - began_ns < SLICE_NS:
                next(slices)
        except StopIteration as done:
            self._host.shard.take_in(bucket_id, generation, block, done.value)
            self._host.when_durable(lambda: self._send(Stored(number, digest_of(block))))
            self._host.wake()
        else:
            asyncio.get_running_loop().call_soon(self._load, number, bucket_id, generation, block, slices)

    def _chores(self) -> None:
        """Does what arming and dropping large buckets has left for later, one slice in each turn of the loop."""
        began_ns = self._boot_ns()
        chores = self._host.shard.chores
        while chores and self._boot_ns() - began_ns < SLICE_NS:
            if next(chores[0], self) is self:
                chores.popleft()
        if chores:
            asyncio.get_running_loop().call_soon(self._chores)
        self._host.wake()

    def _abort(self, number: int, bucket_id: int) -> None:
        shard = self._host.shard
        if self._arriving.get(bucket_id) == number:
            del self._arriving[bucket_id]
            if shard.is_arriving(bucket_id):
                shard.reject(bucket_id)
        if self._leaving.get(bucket_id) == number:
            del self._leaving[bucket_id]
            if shard.is_frozen(bucket_id):
                shard.thaw(bucket_id, self._host.fresh_now_ns())
            self._paused.discard(bucket_id)
            self._frozen_ns.pop(bucket_id, None)
            self._calls.take_up(bucket_id)
        self._chores()

    def _changed(self, bucket_id: int, owner: int, generation: int) -> None:
        """The COMMIT record is durable: the bucket has its new owner."""
        host, shard = self._host, self._host.shard
        old_owner = host.map.owner[bucket_id]
        if not host.map.follow(bucket_id, owner, generation):
            return
        if old_owner == shard.shard_id:
            self._leaving.pop(bucket_id, None)
            self._calls.forget_calls(bucket_id)
            self._measure(self._frozen_ns.pop(bucket_id, 0))
            waiting = shard.leave(bucket_id)
            self.routes[bucket_id] = owner
            for caller, token, kind, payload in waiting:
                if isinstance(caller, PeerCaller):
                    host.reply(caller, token, WrongBucket(bucket_id, shard.shard_id))
                else:
                    self._go_on((caller, token, kind, payload), bucket_id)
        else:
            if owner == shard.shard_id:
                self._arriving.pop(bucket_id, None)
                shard.activate(bucket_id, host.fresh_now_ns())
                self._calls.take_up(bucket_id)
            self._redirect(bucket_id, old_owner, owner)
        self._chores()

    def _measure(self, frozen_ns: int) -> None:
        """Measures how long a bucket that was given away had been frozen; the next ones are expected to take as long,
        or a little less.
        """
        took_ns = self._boot_ns() - frozen_ns if frozen_ns else 0
        self._handoff_ns = max(took_ns, self._handoff_ns * 7 // 8)

    def proved(self, shards: set[int]) -> None:
        """These shards were recovered, and their journals have their buckets: copies of those buckets need not be kept
        here any longer.
        """
        shard = self._host.shard
        for bucket_id in [orphan_id for orphan_id in shard.orphans if self._host.map.owner[orphan_id] in shards]:
            shard.forget(bucket_id)
        self._host.wake()

    def close(self) -> None:
        """Ends all moves here, and drops the requests that wait for one: nothing changes the shard from now on."""
        self._closed = True
        self._arriving.clear()
        self._leaving.clear()

    # -- requests on their way --------------------------------------------------------------------------------------

    def _redirect(self, bucket_id: int, old_owner: int, owner: int) -> None:
        link = self._host.links.get(old_owner)
        with_old = 0 if link is None else link.pending_of(bucket_id)
        strays = self._strays.pop(bucket_id, [])
        if bucket_id in self._with_old:  # it moved on before the owner before last had answered: they all wait for that
            self._returned[bucket_id] += strays
        elif link is not None and with_old:
            self.routes[bucket_id] = 0
            self._with_old[bucket_id] = (link, with_old)
            self._returned[bucket_id] = strays
            self._waiting[bucket_id] = []
        else:
            self.routes[bucket_id] = owner
            for request in strays:
                self._go_on(request, bucket_id)

    def _go_on(self, request: Request, bucket_id: int) -> None:
        """Carries out the requests that waited. Not after the end, when links close: nobody would get the replies, and
        a batch must not repeat what the last snapshot holds.
        """
        if not self._closed:
            self._host.request(request, bucket_id)

    def hold(self, request: Request, bucket_id: int) -> None:
        """Keeps a request for a bucket with route 0 until the bucket has an owner."""
        waiting = self._waiting[bucket_id]
        if len(waiting) < WAITING_MAX:
            waiting.append(request)
        else:
            self._host.reply(request[0], request[1], Moving(bucket_id))

    @property
    def redirecting(self) -> bool:
        """Whether `answered` is to be called for answers."""
        return bool(self._with_old)

    def answered(self, link: PeerLink, bucket_id: int) -> None:
        """A peer has answered a request for this bucket."""
        entry = self._with_old.get(bucket_id)
        if entry is None or entry[0] is not link:
            return
        remaining = entry[1] - 1
        if remaining:
            self._with_old[bucket_id] = (link, remaining)
            return
        del self._with_old[bucket_id]
        self.routes[bucket_id] = self._host.map.owner[bucket_id]
        for request in self._returned.pop(bucket_id) + self._waiting.pop(bucket_id):
            self._go_on(request, bucket_id)

    def strayed(self, request: Request, bucket_id: int, shard_id: int) -> None:
        """The worker of `shard_id` has answered that it does not serve the bucket."""
        if bucket_id in self._with_old:
            self._returned[bucket_id].append(request)
        elif self.routes[bucket_id] != shard_id:
            self._go_on(request, bucket_id)
        else:
            strays = self._strays.setdefault(bucket_id, [])
            strays.append(request)
            if len(strays) == 1:
                asyncio.get_running_loop().call_later(STRAY_WAIT_S, self._give_up, bucket_id, strays)

    def _give_up(self, bucket_id: int, strays: list[Request]) -> None:
        if self._strays.get(bucket_id) is strays:
            del self._strays[bucket_id]
            for caller, token, _, _ in strays:
                self._host.reply(caller, token, Unavailable(self._host.map.owner[bucket_id], "no owner found", "no"))


def before_serving(message: MoveOrder, bucket_map: BucketMap | None, send: Callable[[MoveReport], None]) -> None:
    """Answers a message about a move that comes before the worker serves. `bucket_map` is None before the map
    has come.
    """
    match message:
        case NewOwner():
            if bucket_map is not None:
                bucket_map.follow(message.bucket_id, message.shard_id, message.generation)
            send(Known(message.number))
        case MoveAbort():
            send(Known(message.number))
        case MoveOut() | MoveIn():
            send(Unmoved(message.number, "the worker does not serve yet"))
        case _:
            assert_never(message)
