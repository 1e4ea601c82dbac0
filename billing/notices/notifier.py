"""The follower process that sends one shard's notices: `python -m billing.notices.notifier FD`.

It gets every durable batch, or reads the batches that it missed from the journal. Its file holds the owed notices
(`store`); the next few are in memory (`window`). They are sent by the same delivery as cutoffs: at once, then after 0.2
s, 0.5 s and so on, one in flight per user, with connections and a circuit breaker of their own. A 2xx is recorded in
the file within `GROUP_WAIT_S`.

**Behind cutoffs.** Nothing of this runs in the worker, which only hands batches over, and the process has a lower
priority (`NICENESS`). However many notices are owed, no cutoff waits for one.

**Order across moves.** The notices of a bucket that arrived wait until those that its former shards owe were taken
over, however slow those shards are (`store.claim`). Notices that other shards took over from here are deleted here once
the others have proved them. Where the files of shards are on several hosts, none of this is done: each shard sends the
notices of its own journal, even those of a bucket that has left, and a bucket that arrived waits for nothing; so no
takeover can lose notices that were taken over. A shard that is gone for good, or was restored from an older copy, may
never record that it gave the bucket away: after `CLAIM_END_NS` the wait ends (`store.give_up`), the operator's log
reports it, and notices that are recorded later are sent late.
"""

from __future__ import annotations

import random
import sys
from typing import Any, Final

from billing.expirationd.delivery import (
    DELIVERED,
    FAILED_ATTEMPT,
    Delivery,
    DeliveryDependencies,
    DeliverySettings,
    EndpointOf,
    Obligations,
    Owed,
    one_by_one,
)
from billing.expirationd.endpoint import Endpoint
from billing.expirationd.routes import Routes
from billing.follower.process import Follower, run
from billing.follower.store import ShardFile, unconverted_files
from billing.notices.notice import webhook_id
from billing.notices.opening import open_store
from billing.notices.outages import OfNotices
from billing.notices.post import NoticeTemplate
from billing.notices.settings import NoticeSettings
from billing.notices.store import KIND, Row, Store
from billing.notices.window import Window
from shards.system.clock import MACHINE_CLOCKS, Clocks
from shards.system.disk import Disk, RealDisk

GROUP_WAIT_S: Final = 0.02  # from a batch, or a 2xx, to its commit
GROUP_ROWS_MAX: Final = 5_000
CHECKPOINT_S: Final = 5.0
TELL_S: Final = 1.0
CLAIM_S: Final = 0.1  # how often the files of a bucket's former shards are checked, while notices of theirs are awaited
CLAIM_LATE_S: Final = 10.0  # the same after the wait has ended
CLAIM_END_NS: Final = 3600 * 10**9  # the wait's limit
SLICE: Final = 256
SENDERS: Final = 16
NICENESS: Final = 10
DRAIN_S: Final = 1.0
NOTICE: Final = "notice"


class Notifier(Follower):
    """The process of one shard: one connection to its worker, one file, one endpoint."""

    def __init__(self, disk: Disk, clocks: Clocks, rng: random.Random, endpoint_of: EndpointOf = Endpoint) -> None:
        super().__init__(disk, clocks)
        self._rng = rng
        self._endpoint_of = endpoint_of
        self._store: Store | None = None
        self._delivery: Delivery | None = None
        self._window = Window()
        self._awaited_ns: dict[int, int] = {}  # bucket -> boot instant since when its former shards are awaited
        self._owed = 0  # notices owed in the file when last counted
        self._figures: dict[str, Any] = {}
        self._ahead_ns = self.clocks.wall_ns() - self.clocks.boot_ns()

    @property
    def store(self) -> Store | None:
        return self._store

    def _now_ns(self) -> int:
        """The wall clock at the start plus the time since: it never goes back."""
        return self.clocks.boot_ns() + self._ahead_ns

    # -- batches -----------------------------------------------------------------------------------------------------

    def on_open(self, file: ShardFile, suspect: bool, options: tuple[Any, ...]) -> tuple[Store, list[str]]:
        notice_settings = NoticeSettings(*options)
        served, now_ns = notice_settings.served, self.clocks.wall_ns()
        for gone in unconverted_files(file.directory, KIND, served, self.disk) if served else ():
            open_store(gone, suspect=False, file_id=self._rng.getrandbits(62), now_ns=now_ns)[0].close()
        self._store, remarks = open_store(
            file,
            suspect=suspect,
            file_id=self._rng.getrandbits(62),
            now_ns=now_ns,
            accept_loss=notice_settings.accept_loss,
        )
        self._store.is_apart = notice_settings.is_apart
        self._owed = self._store.owed()
        settings = DeliverySettings(
            url=notice_settings.url,
            concurrency=SENDERS,
            timeout_s=notice_settings.timeout_s,
            connect_timeout_s=notice_settings.connect_timeout_s,
            warm=0,
        )
        template = NoticeTemplate(notice_settings.url, notice_settings.secrets, self._body_of)
        self._delivery = Delivery(
            Obligations(self._owed_of, one_by_one(self._report)),
            settings,
            self._now_ns,
            self.end,
            DeliveryDependencies(self.clocks, self._rng, self._endpoint_of),
            Routes({NOTICE: template}),
            OfNotices(),
        )
        self._delivery.start()
        self._fill()
        self.later("claim", 0, self._claim)
        self.later("claim late", CLAIM_LATE_S, self._claim_late)
        self.later("tell", 0, self._tell)
        self.later("checkpoint", 0, self.checkpoint)  # proves what an earlier process claimed
        return self._store, remarks

    def on_batch(self, position: int, payload: bytes) -> None:
        store = self._store
        assert store is not None
        for bucket_id in store.take(position, payload, self.clocks.wall_ns()):
            self._window.drop(bucket_id)
        self._group()
        if store.pending:
            self.later("claim", 0, self._claim)

    def on_ask(self, number: int, question: tuple[Any, ...]) -> None:
        self.refuse(number, "nobody asks a notifier")

    def _group(self) -> None:
        assert self._store is not None
        if self._store.changes >= GROUP_ROWS_MAX:
            self._write()
        else:
            self.later("write", GROUP_WAIT_S, self._write)

    def _write(self) -> None:
        if self.flush():
            self.tell_reached()

    def flush(self) -> bool:
        """Commits the open group, and schedules the sending of its notices and a checkpoint."""
        self.cancel("write")
        if self._store is None or not self._store.flush():
            return False
        self.later("checkpoint", CHECKPOINT_S, self.checkpoint)
        self.later("fill", 0, self._fill)
        return True

    def checkpoint(self) -> bool:
        store = self._store
        assert store is not None
        self.flush()
        self._owed = store.owed()
        is_proved = super().checkpoint()
        if is_proved:
            store.publish_claims()
        return is_proved

    def owes(self) -> int:
        return self._owed

    def _tell(self) -> None:
        """Reports the figures. It counts what is owed in the file, since `claim` and `delete_claimed` change
        that, too.
        """
        store, delivery = self._store, self._delivery
        assert store is not None
        assert delivery is not None
        if store.has_departed():
            self.flush()
            store.delete_claimed()
        owed, self._owed = self._owed, store.owed()
        figures = {
            "notices_owed": self._owed,
            "notices_oldest_at_ns": store.oldest_ns(),
            "notices_settled": store.settled(),
            "notices_sent": delivery.delivered,
            "notices_failed": delivery.failures,
            "notices_error": delivery.last_error,
            "notices_endpoint_shut": int(delivery.outbox.lanes[0].shut),
            "notices_awaited_buckets": len(store.pending) + len(store.given_up),
        }
        if figures != self._figures:
            self._figures = figures
            self.tell(figures)
        if owed != self._owed:
            self.tell_reached()
        self.later("tell", TELL_S, self._tell)

    # -- sending -----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Puts the next owed notices into the window, and calls itself again while there are more and the window has
        room.
        """
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
            self.later("fill", 0, self._fill)

    def _is_ours(self, row: Row) -> bool:
        """Whether this process is to send the notice now."""
        assert self._store is not None
        return (row[1], row[2]) not in self._store.departed and row[1] not in self._store.pending

    def _body_of(self, user_id: bytes, seq: int) -> bytes:
        following = self._window.queues[user_id].waiting[0]
        assert following.seq == seq, "what is written is what was owed"
        return following.body

    def _owed_of(self, bucket_id: int, user_id: bytes) -> Owed | None:
        """Returns the next notice of an account. It is due since its instant, which is billing time and may be ahead of
        the wall clock if that was set back: then it is due now.
        """
        while self._window.is_unloaded(user_id):
            self._refill(user_id, 1)
        following = self._window.first(bucket_id, user_id)
        if following is None or self.is_ending:
            return None
        name = webhook_id(user_id, following.name)
        return (NOTICE, name, following.seq, following.at_ns, 0, min(following.at_ns, self._now_ns()), "")

    def _report(
        self, kind: str, bucket_id: int, user_id: bytes, seq: int, outcome: str, error: str, now_ns: int
    ) -> None:
        store, window = self._store, self._window
        assert store is not None
        had_room = window.has_room
        if outcome == DELIVERED:
            queue = window.done(user_id, seq)
            store.acknowledge(seq)
            self._group()
            if queue is not None:
                self._refill(user_id, window.each_max if had_room else 1)
        elif outcome == FAILED_ATTEMPT:
            window.unload(user_id, seq)
        if window.has_room and (not had_room or window.cursor < store.seq):
            self.later("fill", 0, self._fill)

    def _refill(self, user_id: bytes, limit: int) -> None:
        store, window = self._store, self._window
        assert store is not None
        is_to_go_on = True
        while is_to_go_on:
            rows = store.of_user(user_id, window.queues[user_id].last_seq, window.cursor, limit)
            is_to_go_on = window.refill(user_id, rows, limit, self._is_ours)

    # -- moves -------------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Takes over the notices that former shards owe of buckets that arrived, as soon as these have recorded the
        departure.
        """
        store = self._store
        assert store is not None
        if not store.pending:
            self._awaited_ns.clear()
            return
        self.flush()
        now_ns = self.clocks.boot_ns()
        awaited = {bucket_id: self._awaited_ns.get(bucket_id, now_ns) for bucket_id in store.pending}
        self._awaited_ns = {bucket_id: since for bucket_id, since in awaited.items() if not store.claim(bucket_id)}
        for bucket_id, since_ns in self._awaited_ns.items():
            if now_ns - since_ns > CLAIM_END_NS:
                store.give_up(bucket_id)
                self.remark(
                    f"what former shards of bucket {bucket_id} owed is not on record after {CLAIM_END_NS // 10**9} s; "
                    "the bucket's own notices are told without it, and it follows if it comes"
                )
                self.later("claim late", CLAIM_LATE_S, self._claim_late)
        if store.pending.keys() != awaited.keys():
            self._fill()
            self.later("checkpoint", CHECKPOINT_S, self.checkpoint)
        if store.pending:
            self.later("claim", CLAIM_S, self._claim)

    def _claim_late(self) -> None:
        """Does the same for buckets whose wait has ended."""
        store = self._store
        assert store is not None
        self.flush()
        for bucket_id in list(store.given_up):
            if store.claim(bucket_id):
                self._window.drop(bucket_id)  # its notices have new seqs now
                self._fill()
                self.later("checkpoint", CHECKPOINT_S, self.checkpoint)
        if store.given_up:
            self.later("claim late", CLAIM_LATE_S, self._claim_late)

    async def finish(self) -> None:
        if self._delivery is not None:
            await self._delivery.drain(DRAIN_S)
            await self._delivery.close()


def main(arguments: list[str]) -> None:
    """The main function of the process; the last argument is the number of the connection's descriptor."""
    run(int(arguments[-1]), NICENESS, lambda: Notifier(RealDisk(), MACHINE_CLOCKS, random.Random()))


if __name__ == "__main__":
    main(sys.argv[1:])
