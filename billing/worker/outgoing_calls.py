"""The calls that a worker makes for its accounts, cutoffs and restores, from the notice to the outcome.

The worker passes on notices once their cause is durable. They go to the delivery, which asks the ledger for the call
itself right before it sends (`_owed`). The outcome of a call goes back to the ledger as a command, through the journal
like every other (`_report`). No call is made for a bucket that is leaving the shard, nor after the journal's grant has
run out. Cutoffs that were overdue at the start wait as `startup_hold` decides.

When the configuration changes, a new delivery takes over at once. The former one only ends the calls that it has begun;
until then the new one makes no call for these users, so that two calls for one user never run at once. If calls go to
another URL now, those that are under way to the former one end within `DRAIN_DELIVERY_S`: they may never be answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from billing.config.schema import Config
from billing.expirationd.delivery import (
    DELIVERED,
    FAILED_ATTEMPT,
    STARTED,
    Delivery,
    DeliveryDependencies,
    DeliverySettings,
    Obligations,
    Owed,
    Report,
)
from billing.expirationd.routes import CUTOFF, RESTORE
from billing.ledger import commands as ops
from billing.ledger.ledger import RETRY
from billing.ledger.posting import SUPERSEDED
from billing.signature import parse_secrets
from billing.worker.classes import calls_of_classes
from billing.worker.dependencies import WorkerDependencies
from billing.worker.machine import BillingMachine, OwedRow
from billing.worker.periodic_checks import PeriodicChecks
from billing.worker.startup_hold import StartupHold
from shards.machine import Command, Effect
from shards.worker.hosting import ServedShard

DRAIN_DELIVERY_S: Final = 2.0
HANGS_NS: Final = 500_000_000  # a call without an outcome for so long holds up no other one of its bucket

_REPORTS: Final = {
    (CUTOFF, STARTED): ops.CUTOFF_STARTED,
    (CUTOFF, DELIVERED): ops.CUTOFF_DELIVERED,
    (CUTOFF, FAILED_ATTEMPT): ops.CUTOFF_FAILED,
    (RESTORE, STARTED): ops.RESTORE_STARTED,
    (RESTORE, DELIVERED): ops.RESTORE_DELIVERED,
    (RESTORE, FAILED_ATTEMPT): ops.RESTORE_FAILED,
}


def delivery_settings(config: Config) -> DeliverySettings:
    """The settings of delivery from the configuration, with the secrets of their file."""
    cutoff = config.cutoff
    secrets = parse_secrets(config.text_of(cutoff.secret_file)) if cutoff.secret_file else ()
    return DeliverySettings(
        url=cutoff.url,
        restore_url=cutoff.restore_url,
        method=cutoff.method,
        secrets=tuple(secrets),
        concurrency=cutoff.concurrency,
        timeout_s=cutoff.timeout_s,
        connect_timeout_s=cutoff.connect_timeout_s,
        warm=cutoff.warm_connections,
        classes=calls_of_classes(cutoff),
    )


class BucketCalls:
    """The buckets that are leaving the shard, and the users for whom a call is in flight. This object exists before the
    first call can be made, because a move may begin before the doors are open. `boot_ns`: the boot clock.
    """

    def __init__(self, boot_ns: Callable[[], int]) -> None:
        self._boot_ns = boot_ns
        self.paused: set[int] = set()  # bucket ids: no call is begun for them
        # Bucket id -> users for whom a call is in flight -> since when, the oldest first.
        self._users: dict[int, dict[bytes, int]] = {}

    def begin(self, bucket_id: int, user_id: bytes) -> None:
        """A call for this user has begun."""
        self._users.setdefault(bucket_id, {})[user_id] = self._boot_ns()

    def end(self, bucket_id: int, user_id: bytes) -> None:
        """The call for this user has ended, or could not begin."""
        users = self._users.get(bucket_id)
        if users is not None:
            users.pop(user_id, None)
            if not users:
                del self._users[bucket_id]

    def is_begun(self, bucket_id: int, user_id: bytes) -> bool:
        """Whether a call for this user is in flight."""
        return user_id in self._users.get(bucket_id, ())

    def in_flight(self, bucket_id: int) -> int:
        """The number of calls in flight for this bucket."""
        return len(self._users.get(bucket_id, ()))

    def hang(self, bucket_id: int) -> bool:
        """Whether one of these has been in flight for `HANGS_NS`."""
        since_ns = next(iter(self._users.get(bucket_id, {}).values()), None)
        return since_ns is not None and self._boot_ns() - since_ns >= HANGS_NS


class OutgoingCalls:
    """The outgoing calls of one served shard, and the periodic checks of them (`checks`)."""

    def __init__(
        self,
        machine: BillingMachine,
        worker: ServedShard,
        startup_hold: StartupHold,
        bucket_calls: BucketCalls,
        settings: DeliverySettings,
        recheck_s: float,
        dependencies: WorkerDependencies,
    ) -> None:
        """Takes up the calls that are still owed from before the start."""
        self._machine = machine
        self._ledger_owed = machine.ledger.owed
        self._worker = worker
        self._may_act = worker.may_act
        self._startup_hold = startup_hold
        self._bucket_calls = bucket_calls
        self._paused = bucket_calls.paused
        self._settings = settings
        self._delivery_dependencies = DeliveryDependencies(dependencies.clocks, dependencies.rng, dependencies.endpoint)
        self._former: dict[Delivery, asyncio.Task[None]] = {}  # retired, with calls under way
        self._is_ending = False
        self._taken_up = set(machine.ledger.books)  # bucket ids; one that arrives is not among them yet
        now_ns = worker.fresh_now_ns
        self.delivery = self._new_delivery()
        startup_hold.take_up(machine, self.delivery, now_ns())
        startup_hold.ask(worker.operate, len(worker.map.weights), self.release_held)
        boot_ns = dependencies.clocks.boot_ns
        self.checks = PeriodicChecks(machine, self.delivery, now_ns, worker.apply, worker.wake, recheck_s, boot_ns)
        self.checks.start()

    def _new_delivery(self) -> Delivery:
        worker = self._worker
        obligations = Obligations(self._owed, self._report, worker.may_act)
        delivery = Delivery(obligations, self._settings, worker.fresh_now_ns, worker.fail, self._delivery_dependencies)
        delivery.start()
        return delivery

    # -- what becomes owed ------------------------------------------------------------------------------------------

    def tell(self, notices: list[Effect]) -> None:
        """Passes durable notices on to the delivery, which asks the ledger for each call right before it sends."""
        delivery, machine = self.delivery, self._machine
        classes, hold = delivery.settings.classes, self._startup_hold
        now_ns, may_hold = delivery.now_ns(), hold.may_hold
        for kind, _, bucket_id, user_id, seq in notices:
            class_name = machine.class_of(bucket_id, user_id) if classes else ""
            if kind == CUTOFF:
                if not (may_hold and hold.holds_back(machine, delivery, bucket_id, user_id, seq)):
                    delivery.owe(bucket_id, user_id, kind, now_ns, False, seq, class_name)
            elif kind == RESTORE:
                delivery.owe(bucket_id, user_id, kind, now_ns, False, seq, class_name)
            elif kind == RETRY:
                hold.let_go(bucket_id, user_id)
                is_in_outbox = (bucket_id, user_id) in delivery.outbox  # its item then keeps what was notified
                delivery.owe(bucket_id, user_id, CUTOFF, now_ns, True, -1 if is_in_outbox else seq, class_name)
            elif kind == SUPERSEDED:
                delivery.outbox.superseded(bucket_id, user_id, seq)
        delivery.rouse(now_ns)

    def take_up(self, bucket_id: int) -> None:
        """Makes the calls that this bucket owes, from now on: it has arrived, or its move has paused them."""
        owed = list(self._machine.owed_in(bucket_id))
        if owed and bucket_id not in self._taken_up:
            worker = self._worker
            self._startup_hold.arrive(bucket_id, worker.fresh_now_ns(), worker.operate, self._owe_bucket)
        self._taken_up.add(bucket_id)
        self._owe(owed)
        self.checks.take_up(bucket_id)

    def forget(self, bucket_id: int) -> None:
        """The bucket now belongs to another shard: drops its held calls. `_owed` names no call for its other items."""
        self._taken_up.discard(bucket_id)
        self.delivery.outbox.leave(bucket_id)

    def renewed(self) -> None:
        """The journal's grant was renewed: takes up the owed calls that were not made while it had run out."""
        self._owe(list(self._machine.owed()))

    def release_held(self) -> int:
        """Releases the cutoffs that have waited since the start; returns for how many accounts."""
        return self._startup_hold.release(self._machine, self.delivery)

    def is_held(self, bucket_id: int, user_id: bytes) -> bool:
        """Whether this user's cutoffs wait for a release."""
        return self.delivery.outbox.is_held(bucket_id, user_id)

    def delivery_for(self, bucket_id: int, user_id: bytes) -> Delivery:
        """The delivery that has a call for this user under way, or else makes the next one."""
        if self._bucket_calls.is_begun(bucket_id, user_id):
            for former in self._former:
                if (bucket_id, user_id) in former.under_way():
                    return former
        return self.delivery

    def _owe_bucket(self, bucket_id: int) -> None:
        if bucket_id in self._machine.ledger.books and bucket_id not in self._paused:
            self._owe(list(self._machine.owed_in(bucket_id)))

    def _owe(self, owed: list[OwedRow]) -> None:
        """Hands owed calls over to the delivery, once everything recorded so far is durable."""
        if owed:
            self._worker.when_durable(lambda: self._startup_hold.hand_over(owed, self.delivery))

    # -- for the delivery -------------------------------------------------------------------------------------------

    def _owed(self, bucket_id: int, user_id: bytes) -> Owed | None:
        if bucket_id in self._paused or not self._may_act():
            return None  # another owner may make this call; if not, `take_up` or `renewed` will hand it over again
        if self._former and self._bucket_calls.is_begun(bucket_id, user_id):
            return None  # a former delivery has a call under way; `_report` hands what is owed then over again
        call = self._ledger_owed(bucket_id, user_id)
        if call is None:
            return None
        class_name = call.class_name.decode()
        if call.kind != CUTOFF and not self.delivery.calls(call.kind, class_name):
            return None  # an older restore of an account whose class has no restore URL now
        return (call.kind, call.event_id, call.seq, call.exhausted_at_ns, call.attempts, call.due_ns, class_name)

    def _report(self, reports: Sequence[Report], now_ns: int) -> list[bool]:
        commands: list[tuple[int, Command]] = []
        calls = self._bucket_calls
        for kind, bucket_id, user_id, seq, outcome, error in reports:
            op = _REPORTS[kind, outcome]
            unbegun = op == ops.CUTOFF_FAILED and not calls.is_begun(bucket_id, user_id)
            if outcome == STARTED:
                calls.begin(bucket_id, user_id)
            else:
                calls.end(bucket_id, user_id)
            why = error.encode()[:255] if error else b""
            commands.append((bucket_id, (op, user_id, seq, int(unbegun), 0, b"", b"", why, b"", b"")))
        replies = self._worker.report(commands, now_ns)
        for kind, bucket_id, user_id, seq, outcome, _ in reports:
            if outcome == DELIVERED and kind == CUTOFF:
                self.checks.delivered(bucket_id, user_id, seq)
            if self._former and outcome != STARTED:
                self._owe_again(bucket_id, user_id)
        return [reply is not False for reply in replies]

    def _owe_again(self, bucket_id: int, user_id: bytes) -> None:
        """No call of a former delivery is under way for this user any more: hands over what is owed now, unless the
        delivery has an item for the account.
        """
        if (bucket_id, user_id) not in self.delivery.outbox:
            self._owe(list(self._machine.owed_by(bucket_id, user_id)))

    # -- configuration and shutdown ---------------------------------------------------------------------------------

    def configure(self, settings: DeliverySettings) -> None:
        """Changes to a delivery with these settings. Calls in flight end with the old ones."""
        former = self.delivery
        if settings == former.settings or self._is_ending:
            return
        self._settings = settings
        self.delivery = self.checks.delivery = self._new_delivery()
        self.delivery.take_over(former)
        ends_s = former.call_s_max if former.settings.urls == settings.urls else DRAIN_DELIVERY_S
        self._former[former] = asyncio.get_running_loop().create_task(self._end(former, ends_s))
        self._owe(list(self._machine.owed()))

    async def _end(self, former: Delivery, ends_s: float) -> None:
        """Closes a retired delivery once its calls have ended, after `ends_s` at the latest."""
        await former.drain(ends_s)
        unended = former.under_way()
        await former.close()
        del self._former[former]
        for bucket_id, user_id in unended:
            self._bucket_calls.end(bucket_id, user_id)
            self._owe_again(bucket_id, user_id)

    def figures(self) -> dict[str, Any]:
        """Counters for the operator."""
        figures = self.delivery.figures() | self.checks.figures()
        for former in self._former:
            under_way = len(former.under_way())
            figures["calls_in_flight"] += under_way
            figures["users_waiting"] += under_way
        return figures

    async def drain(self) -> None:
        """Begins no further call, and waits up to `DRAIN_DELIVERY_S` for those in flight."""
        self._is_ending = True
        deliveries = (self.delivery, *self._former)
        await asyncio.gather(*(delivery.drain(DRAIN_DELIVERY_S) for delivery in deliveries))

    async def close(self) -> None:
        """Ends at once. Calls in flight stay owed."""
        self._is_ending = True
        self.checks.close()
        former = dict(self._former)
        for task in former.values():
            task.cancel()
        await asyncio.gather(*former.values(), return_exceptions=True)
        for delivery in (self.delivery, *former):
            await delivery.close()
