"""The process that tells one shard's notices, a child of the shard's worker: `python -m billing.notices.notifier FD`.

It lives on one wire, speaks with its worker as the history's projector does (`history.messages`), and gets every
durable batch, or reads behind where it was away. What is owed stands in its file (`store`); the next few are in
memory (`window`), and go out by the same delivery as cutoffs: at once, then after 0.2 s, 0.5 s and so on, one in
flight per user, with connections and a breaker of their own. A 2xx is recorded in the file within `GROUP_WAIT_S`.

**Behind cutoffs.** Nothing of this runs in the worker, which only passes batches on; and the process is the one that
yields where cores are short (`NICENESS`). However many notices are owed, no cutoff waits for one.

Whatever goes wrong with its file ends it, after it has told why: the worker starts another.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from typing import Any, Final

import uvloop

from billing.expirationd.delivery import DELIVERED, FAILED_ATTEMPT, Delivery, DeliverySettings, Owed
from billing.history.messages import BATCH, CLOSE, FAILED, OPEN, OPENED, REACHED, TOLD
from billing.notices.notice import webhook_id
from billing.notices.post import PostTemplate
from billing.notices.store import NoticesError, Store
from billing.notices.window import Row, Window
from shards.system.clock import boot_now_ns, wall_now_ns
from shards.system.disk import DirectoryRefused, RealDisk
from shards.system.links import Wire

GROUP_WAIT_S: Final = 0.02  # from a batch, or a 2xx, to its commit
GROUP_ROWS_MAX: Final = 5_000
CHECKPOINT_S: Final = 5.0
TELL_S: Final = 1.0
CLAIM_S: Final = 0.1  # how often it is looked for what a former shard of a bucket owed, while that is awaited
CLAIM_WAIT_NS: Final = 60 * 10**9  # after that long the bucket's own notices wait no more
CLAIM_AGAIN_S: Final = 60.0  # how often it is looked for such as came too late
SLICE: Final = 256
SENDERS: Final = 16
NICENESS: Final = 10
DRAIN_S: Final = 1.0
NOTICE: Final = "notice"


class Notifier:
    """One wire, one file, one endpoint."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._disk = RealDisk()
        self._wire: Wire | None = None
        self._store: Store | None = None
        self._delivery: Delivery | None = None
        self._window = Window()
        self._ending = False
        self._bytes = 0
        self._filling = False
        self._awaited_ns: dict[int, int] = {}  # bucket -> since when its former shard is awaited
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._told: dict[str, Any] = {}
        self._ahead_ns = wall_now_ns() - boot_now_ns()

    def _now_ns(self) -> int:
        """Near the wall clock, and never going back."""
        return boot_now_ns() + self._ahead_ns

    # -- the wire ----------------------------------------------------------------------------------------------------

    def wire(self) -> Wire:
        """The protocol for the worker's end."""
        return Wire(self._on_frame, self._on_closed, self._on_connected)

    def _on_connected(self, wire: Wire) -> None:
        self._wire = wire

    def _on_frame(self, wire: Wire, message: Any) -> None:
        if self._ending:
            return
        try:
            kind = message[0]
            if kind == BATCH:
                self._on_batch(message[1], message[2])
            elif kind == OPEN:
                self._on_open(*message[1:])
            else:
                assert kind == CLOSE, f"a message of kind {kind}"
                self._end("")
        except Exception as error:
            self._end(_reason_of(error))

    def _on_closed(self, wire: Wire) -> None:
        self._wire = None
        self._end("")

    def _send(self, *message: Any) -> None:
        if self._wire is not None:
            self._wire.send(message)

    def _end(self, reason: str) -> None:
        if not self._ending:
            self._ending = True
            self._loop.create_task(self._finish(reason))

    async def _finish(self, reason: str) -> None:
        if self._delivery is not None:
            await self._delivery.drain(DRAIN_S)
            await self._delivery.close()
        for timer in self._timers.values():
            timer.cancel()
        if not reason and self._store is not None:
            try:
                self._store.close()
                self._tell_reached()
            except Exception as error:
                reason = _reason_of(error)
        if reason:
            self._send(FAILED, reason)
        if self._wire is not None:
            self._wire.close()
        await asyncio.sleep(0)
        self.closed.set()

    def _later(self, name: str, delay_s: float, work: Any) -> None:
        """Calls `work` once, in so many seconds, unless that is ahead already."""
        if name in self._timers or self._ending:
            return

        def guarded() -> None:
            del self._timers[name]
            if not self._ending:
                try:
                    work()
                except Exception as error:
                    self._end(_reason_of(error))

        self._timers[name] = self._loop.call_later(delay_s, guarded)

    # -- batches -----------------------------------------------------------------------------------------------------

    def _on_open(
        self,
        directory: str,
        shard: int,
        first: int,
        head: int,
        url: str,
        secrets: tuple[bytes, ...],
        timeout_s: float,
        connect_timeout_s: float,
    ) -> None:
        assert self._store is None, "opened twice"
        self._store = store = Store(directory, shard, self._disk)
        missing = store.settle(first, head)
        if missing:
            print(f"billing: {missing} batches of shard {shard} are gone; nobody is told of them", file=sys.stderr)
        settings = DeliverySettings(
            url=url, concurrency=SENDERS, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, warm=1
        )
        template = PostTemplate(url, secrets, self._body_of)
        self._delivery = Delivery(
            self._owed,
            self._report,
            settings,
            self._now_ns,
            random.Random(),
            self._broke,
            templates={NOTICE: template},
        )
        self._delivery.start()
        self._send(OPENED, store.position, 1)
        self._tell_reached()
        self._fill()
        self._claim()
        self._later("again", CLAIM_AGAIN_S, self._claim_again)

    def _on_batch(self, position: int, payload: bytes) -> None:
        store = self._store
        assert store is not None, "a batch before OPEN"
        for bucket_id in store.take(position, payload):
            self._window.drop(bucket_id)
        self._bytes += len(payload)
        self._group()
        if store.pending:
            self._later("claim", 0, self._claim)

    def _group(self) -> None:
        assert self._store is not None
        if self._store.changes >= GROUP_ROWS_MAX:
            self._flush()
        else:
            self._later("flush", GROUP_WAIT_S, self._flush)

    def _flush(self) -> None:
        store = self._store
        assert store is not None
        if store.flush():
            self._later("checkpoint", CHECKPOINT_S, self._checkpoint)
            self._tell_reached()
            self._fill()

    def _checkpoint(self) -> None:
        assert self._store is not None
        self._store.flush()
        if not self._store.checkpoint():
            self._later("checkpoint", CHECKPOINT_S, self._checkpoint)
        self._tell_reached()

    def _tell_reached(self) -> None:
        assert self._store is not None
        self._send(REACHED, self._store.position, self._bytes, self._store.durable)
        self._later("tell", TELL_S, self._tell)

    def _tell(self) -> None:
        store, delivery = self._store, self._delivery
        assert store is not None
        assert delivery is not None
        told = {
            "notices_owed": store.owed,
            "notices_oldest_at_ns": store.oldest_ns(),
            "notices_sent": delivery.delivered,
            "notices_failed": delivery.failures,
            "notices_error": delivery.last_error,
            "notices_endpoint_shut": int(delivery.outbox.lanes[0].shut),
        }
        if told != self._told:
            self._told = told
            self._send(TOLD, told)
            self._later("tell", TELL_S, self._tell)

    # -- what goes next ----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Takes a slice of what is owed into the window, and comes again while there is more and room for it."""
        store, window, delivery = self._store, self._window, self._delivery
        assert store is not None
        assert delivery is not None
        rows = store.after(window.cursor, SLICE) if window.has_room else []
        for row in rows:
            if not window.has_room:
                break
            if not self._is_ours(row):
                window.skip(row[0])
            elif window.put(row):
                delivery.notify(row[1], row[3], NOTICE, row[4])
        if rows and window.has_room:
            self._later("fill", 0, self._fill)

    def _is_ours(self, row: Row) -> bool:
        """Whether it is to be told from here, and now."""
        assert self._store is not None
        return (row[1], row[2]) not in self._store.departed and row[1] not in self._store.pending

    def _body_of(self, user_id: bytes, seq: int) -> bytes:
        following = self._window.queues[user_id].waiting[0]
        assert following.seq == seq, "what is written is what was owed"
        return following.body

    def _owed(self, bucket_id: int, user_id: bytes) -> Owed | None:
        following = self._window.first(bucket_id, user_id)
        if following is None or self._ending:
            return None
        return (NOTICE, webhook_id(user_id, following.name), following.seq, following.at_ns, 0, False)

    def _report(self, kind: str, bucket_id: int, user_id: bytes, seq: int, outcome: str, error: str) -> None:
        store, window = self._store, self._window
        assert store is not None
        if outcome == FAILED_ATTEMPT:
            self._later("tell", TELL_S, self._tell)
        if outcome != DELIVERED:
            return
        had_room = window.has_room
        queue = window.done(user_id, seq)
        store.acknowledge(seq)
        self._group()
        if queue is not None:
            rows = store.of_user(user_id, queue.last_seq, window.cursor, window.each_max)
            window.refill(user_id, [row for row in rows if self._is_ours(row)])
        if window.has_room and (not had_room or window.cursor < store.seq):
            self._later("fill", 0, self._fill)

    def _broke(self, error: BaseException) -> None:
        self._end(_reason_of(error))

    # -- moves -------------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Of buckets that came: takes over what their former shard owed, as soon as it has recorded the departure."""
        store = self._store
        assert store is not None
        if not store.pending:
            self._awaited_ns.clear()
            return
        store.flush()
        now_ns = boot_now_ns()
        for bucket_id in list(store.pending):
            since_ns = self._awaited_ns.setdefault(bucket_id, now_ns)
            if store.claim(bucket_id, now_ns - since_ns > CLAIM_WAIT_NS):
                self._awaited_ns.pop(bucket_id, None)
        self._fill()
        if store.pending:
            self._later("claim", CLAIM_S, self._claim)

    def _claim_again(self) -> None:
        """What a former shard recorded after it was waited for is told late, but told."""
        store = self._store
        assert store is not None
        store.flush()
        for bucket_id in store.orphans() - store.pending.keys():
            store.claim(bucket_id, True)
        self._fill()
        self._later("again", CLAIM_AGAIN_S, self._claim_again)


def _reason_of(error: BaseException) -> str:
    if isinstance(error, NoticesError | DirectoryRefused):
        return str(error)
    return f"{type(error).__name__}: {error}"


async def _run(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(False)
    notifier = Notifier()
    await asyncio.get_running_loop().create_connection(notifier.wire, sock=connection)
    await notifier.closed.wait()


def main(arguments: list[str]) -> None:
    """The main function of the process; the argument is the number of the wire's descriptor."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
