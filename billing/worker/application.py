"""What runs in a worker process beside the shard: the machine, the doors, and the delivery of cutoffs.

This is the application that `shards.worker.process` hosts. It gives the worker its state machine, encodes replies for
clients, merges the answers of all shards where a question concerns the whole daemon, and turns what became owed into
calls: the worker tells it notices only once all that they tell is durable, and what became of a call goes back to the
ledger as a command, through the journal like every other.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
from collections.abc import Callable, Generator, Sequence
from ssl import SSLContext
from typing import Any, NamedTuple

from billing import __version__
from billing.api.auth import Guard
from billing.api.connection_limits import limits_of
from billing.api.door import Door
from billing.api.opening import Doors
from billing.api.replies import RESULTS, reply_of
from billing.api.tls import server_context
from billing.api.wire import ERRORS_AS_MAP, encode_reply
from billing.audit.reading import UnknownCursor
from billing.audit.recorder import Recorder, TooManyReads
from billing.audit.trail import Record
from billing.config.schema import Config
from billing.expirationd.delivery import (
    DELIVERED,
    FAILED_ATTEMPT,
    STARTED,
    Delivery,
    DeliverySettings,
    EndpointOf,
    Obligations,
    Owed,
    Surroundings,
)
from billing.expirationd.endpoint import Endpoint
from billing.expirationd.routes import CUTOFF, RESTORE
from billing.follower.link import FollowedShard, FollowerLink
from billing.history import link as history
from billing.history.cursor import NoCursor, identity_of_log
from billing.history.link import HistoryLink, HistorySettings
from billing.ledger import audit
from billing.ledger import commands as ops
from billing.ledger.errors import Refused
from billing.ledger.ledger import RETRY, ReplayDifference, Rules
from billing.ledger.posting import SUPERSEDED
from billing.notices import link as notices
from billing.notices.settings import NoticeSettings
from billing.signature import parse_secrets
from billing.worker.aggregates import PAUSE_S, STEPS_MAX, Aggregates
from billing.worker.classes import calls_of_classes, rules_of_classes
from billing.worker.explain import explain
from billing.worker.feed import PART, REACHED, WHERE, FeedQuestion, SharedFeedQuestion, place_in
from billing.worker.machine import PERIODS, SHARD_BY_SHARD, SURVEYS, BillingMachine
from billing.worker.pages import Selection, account_page, cutoff_page
from billing.worker.periodic_checks import PeriodicChecks
from billing.worker.startup_hold import StartupHold
from shards.buckets import BucketMap, route_of
from shards.control import Begin
from shards.machine import Command, Effect
from shards.replies import Unavailable
from shards.system.clock import MACHINE_CLOCKS, Clocks
from shards.system.disk import Disk, RealDisk, read_file
from shards.system.serial_executor import ExecutorOf, SerialExecutor
from shards.worker.hosting import ServedShard

log = logging.getLogger("billing.worker.application")

DRAIN_DELIVERY_S = 2.0
FOLLOWERS_AFTER_S = 0.3  # where hosts take shards over: a process that starts takes a core from the first answers

_REPORTS = {
    (CUTOFF, STARTED): ops.CUTOFF_STARTED,
    (CUTOFF, DELIVERED): ops.CUTOFF_DELIVERED,
    (CUTOFF, FAILED_ATTEMPT): ops.CUTOFF_FAILED,
    (RESTORE, STARTED): ops.RESTORE_STARTED,
    (RESTORE, DELIVERED): ops.RESTORE_DELIVERED,
    (RESTORE, FAILED_ATTEMPT): ops.RESTORE_FAILED,
}


NoticesOf = Callable[[FollowedShard, NoticeSettings, int], FollowerLink | None]  # up to which batch all is settled


class Outside(NamedTuple):
    """What the application has of the world, beside the doors that it opens; a simulation passes its own."""

    clocks: Clocks
    disk: Disk
    rng: random.Random
    history: Callable[[FollowedShard, HistorySettings], HistoryLink]
    endpoint: EndpointOf
    notices: NoticesOf = notices.opened
    executor: ExecutorOf = SerialExecutor


REAL = Outside(MACHINE_CLOCKS, RealDisk(), random.Random(), history.opened, Endpoint)


def build(begin: Begin) -> Billing:
    """The application of one worker process."""
    return Billing(Config.from_json(begin.configuration), begin)


class Billing:
    """Implements `shards.worker.hosting.Hosted`."""

    surveys = SURVEYS
    questions = frozenset({"audit", "entries"})
    query_mode = ERRORS_AS_MAP

    def __init__(self, config: Config, begin: Begin, outside: Outside = REAL) -> None:
        self.config = config
        self._outside = outside
        self.machine = BillingMachine(
            Rules(
                accrue=config.cutoff.after_exhaustion == "accrue",
                request_ids_per_bucket=config.ledger.request_ids_per_bucket,
                restore=bool(config.cutoff.restore_url),
                rate_lease_ns=round(config.ledger.rate_lease_s * 10**9),
                classes=rules_of_classes(config.cutoff),
            ),
            reply_of,
        )
        self._aggregates = Aggregates(self.machine.ledger.books, rules_of_classes(config.cutoff), self._is_held)
        self._counting: asyncio.TimerHandle | None = None  # the next step of the sums
        self._classless = 0  # accounts in a class that is gone, as it was told last
        self._begin = begin
        self.recent: Sequence[tuple[int, int, str, str, str]] = ()  # what this process has logged lately
        self._disk = outside.disk
        self._startup_hold = StartupHold(self._disk, begin.directory, config.cutoff.hold_above)
        self._worker: ServedShard | None = None
        self._door: Door | None = None
        self._audit: Recorder | None = None
        self._delivery: Delivery | None = None
        self._history: HistoryLink | None = None
        self._notices: FollowerLink | None = None
        self._checks: PeriodicChecks | None = None
        self._doors: Doors | None = None
        self._tls: SSLContext | None = None
        self._changing: asyncio.Task[None] | None = None
        self._paused: set[int] = set()  # buckets on their way out: no call is begun for them
        self._calls: dict[int, set[bytes]] = {}  # bucket id -> users for whom a call is in flight

    # -- what the worker asks ---------------------------------------------------------------------------------------

    def encode(self, msgid: int, mode: int, reply: object) -> bytes:
        """A whole reply as bytes, for the client of another worker."""
        if self._door is not None and type(reply) not in RESULTS:
            self._door.note_error(reply)
        return encode_reply(msgid, mode, reply)

    def merge(self, operation: Command, parts: list[Any]) -> object:
        """One reply out of all shards' answers."""
        return self.machine.merge(operation, parts)

    def lacking(self, operation: Command, why: Unavailable) -> object:
        """The reply to a survey that one shard does not answer; it says where the others can be asked one by one."""
        if operation[0] not in SHARD_BY_SHARD:
            return why
        return why._replace(reason=f"{why.reason}; the option shard_id asks one of the others")

    def unknown_shard(self, shard_id: int, known: list[int]) -> object:
        """The reply to who asks for a shard that is not there."""
        return Refused("UNKNOWN_SHARD", f"shard {shard_id} is not one of {known}")

    def tell(self, notices: list[Effect]) -> None:
        """An account that owes a call goes to the outbox, which asks the ledger for the call itself right before it
        sends.
        """
        delivery = self._delivery
        assert delivery is not None, "told before it was opened"
        now_ns = delivery.now_ns()
        for kind, _, bucket_id, user_id, seq in notices:
            class_name = self.machine.class_of(bucket_id, user_id) if delivery.settings.classes else ""
            if kind in (CUTOFF, RESTORE):
                held = kind == CUTOFF and self._startup_hold.holds_back(self.machine, delivery, bucket_id, user_id, seq)
                if not held:
                    delivery.owe(bucket_id, user_id, kind, now_ns, seq=seq, class_name=class_name)
            elif kind == RETRY:
                known = (bucket_id, user_id) in delivery.outbox  # and keeps what it was told
                delivery.owe(bucket_id, user_id, CUTOFF, now_ns, True, -1 if known else seq, class_name)
            elif kind == SUPERSEDED:
                delivery.outbox.superseded(bucket_id, user_id, seq)
        delivery.rouse(now_ns)

    def committed(self, position: int, payload: bytes) -> None:
        """Hands a durable batch on to the history."""
        if self._history is not None:
            self._history.hand(position, payload)
        if self._notices is not None:
            self._notices.hand(position, payload)

    def answer(self, bucket_id: int, query: Command, done: Callable[[object], None]) -> None:
        """`("history", user_id, limit, before)`: rows out of the history; `("statement", user_id, from_ns, to_ns, by,
        limit, now_ns)` and `("balance_at", user_id, at_ns, now_ns)`: what follows from them. `("accounts", after,
        limit, *selection)` and `("pending_cutoffs", after, limit)`: this shard's part of a page, in slices between
        which others are served.
        """
        if query[0] == "pending_cutoffs":
            _, after, limit = query
            self._go_on(cutoff_page(self.machine.ledger.books, after, limit, self._is_held), done)
            return
        if query[0] == "accounts":
            assert self._worker is not None, "asked before it was opened"
            _, after, limit, *selection = query
            now_ns = self._worker.fresh_now_ns()
            self._go_on(account_page(self.machine.ledger, now_ns, after, limit, Selection(*selection)), done)
            return
        if query[0] in ("forecast", "expirationd_stats"):
            assert self._checks is not None
            self._go_on(self._checks.answer(self._begin.shard_id, query), done)
            return
        if query[0] == REACHED:

            def send(reply: object) -> None:  # to another worker goes plain data
                done(reply.message if isinstance(reply, Refused) else reply)

            self._when_handed_over(lambda link: link.reached(send), send)
            return
        if query[0] in (PART, WHERE):
            self._answer_part(query, done)
            return
        if query[0] == "entries":
            self._when_handed_over(lambda link: self._ask_entries(link, query, done), done)
            return
        if query[0] == "audit":
            self._ask_audit(query, done)
            return
        if query[0] == "explain" and self._worker is not None and self._delivery is not None:
            done(explain(self.machine, bucket_id, query[1], self._worker, self._delivery))
            return
        if self._worker is None:
            done(Refused("UNAVAILABLE", "the history is not there yet"))
            return
        newest = self._newest(bucket_id, query)

        def ask() -> None:  # the history is handed a batch right after it became durable
            asyncio.get_running_loop().call_soon(self._ask_history, bucket_id, query, newest, done)

        self._worker.when_durable(ask)

    def _newest(self, bucket_id: int, query: Command) -> tuple[Any, ...]:
        """What the ledger knows of an account now, as far as the history needs it for this question."""
        if query[0] not in PERIODS:
            return self.machine.newest_entry(bucket_id, query[1])
        standing = self.machine.standing(bucket_id, query[1])
        if query[0] == "statement" and query[4]:  # by resource
            return *standing, self.machine.lines(bucket_id, query[1])
        return standing

    def _when_handed_over(self, ask: Callable[[HistoryLink], None], done: Callable[[object], None]) -> None:
        """Asks the history, once it has been handed all that is recorded now; it is, right after that is durable."""
        history, worker = self._history, self._worker
        if history is None or worker is None:
            done(Refused("UNAVAILABLE", "the history is not there yet"))
        else:
            loop = asyncio.get_running_loop()

            def durable() -> None:
                loop.call_soon(ask, history)

            worker.when_durable(durable)

    def _ask_audit(self, query: Command, done: Callable[[object], None]) -> None:
        """A page of the operators' record of this host."""
        assert self._audit is not None, "asked before it was opened"
        _, after, limit, actor, act = query

        def on_page(found: list[Record] | Exception) -> None:
            if isinstance(found, UnknownCursor):
                done(Refused("UNKNOWN_CURSOR", str(found)))
            elif isinstance(found, TooManyReads):
                done(Refused("BUSY", str(found)))
            elif isinstance(found, Exception):
                done(Refused("UNAVAILABLE", f"the record cannot be read: {found}"))
            else:
                done(found)

        self._audit.read(after.decode(), limit, actor.decode(), act.decode(), on_page)

    def _ask_entries(self, link: HistoryLink, query: Command, done: Callable[[object], None]) -> None:
        assert self._worker is not None
        operate, (cursor, limit) = self._worker.operate, query[1:]
        if self._begin.log:
            shards = len(self._worker.map.weights)
            SharedFeedQuestion(operate, cursor.decode(), limit, shards, self._go_on, done).ask()
        else:
            FeedQuestion(link, operate, cursor.decode(), limit, done).ask()

    def _answer_part(self, query: Command, done: Callable[[object], None]) -> None:
        """This shard's part of a page of the feed, or where entries are, for a worker of any host: plain data."""

        def send(reply: object) -> None:
            if isinstance(reply, str):
                reply = Refused("UNKNOWN_CURSOR", reply)
            done({"refused": reply.name, "message": reply.message} if isinstance(reply, Refused) else reply)

        name, *asked = query
        if name == WHERE:
            self._when_handed_over(lambda link: link.locate(asked[0], send), send)
            return
        try:
            place = place_in(asked[0], self._begin.shard_id)
        except NoCursor as error:
            send(f"{error}; the empty text is the beginning")
        else:
            self._when_handed_over(lambda link: link.part(place, asked[1], send), send)

    def _ask_history(
        self, bucket_id: int, query: Command, newest: tuple[Any, ...], done: Callable[[object], None]
    ) -> None:
        """`newest`: the account's newest entry when it was asked, durable by now: the answer has it, or says so."""
        name, user_id, asked = query[0], query[1], query[2:]
        generation = None if self._worker is None else self._worker.shard.held.get(bucket_id)
        if self._history is None or generation is None:
            done(Refused("UNAVAILABLE", "the history is not there yet"))
        elif name == "history":
            limit, before = asked
            self._history.history(bucket_id, generation, user_id, limit, before, newest, done)
        else:
            self._history.period(bucket_id, generation, user_id, (name, *asked), newest, done)

    def _is_held(self, bucket_id: int, user_id: bytes) -> bool:
        return self._delivery is not None and self._delivery.outbox.is_held(bucket_id, user_id)

    def _go_on(self, slices: Generator[None, None, object], done: Callable[[object], None]) -> None:
        try:
            next(slices)
        except StopIteration as end:
            done(end.value)
        else:
            asyncio.get_running_loop().call_soon(self._go_on, slices, done)

    def reply_of(self, plain: object) -> object:
        """What the supervisor answered, as a reply."""
        if isinstance(plain, dict) and "refused" in plain:
            return Refused(plain["refused"], plain["message"])
        return plain

    def replay_failed(self, error: BaseException) -> bool:
        """Whether a replay came to another result than the journal has."""
        return isinstance(error, ReplayDifference)

    def route(self, operation: Command, bucket_map: BucketMap) -> object:
        """`("route", version)`, see `shards.buckets.route_of`."""
        return route_of(bucket_map, self._begin.direct, operation[1])

    def trim_floor(self) -> int:
        """The journal's position up to which history and notices have everything."""
        floor = 0 if self._history is None else self._history.trim_floor()
        return floor if self._notices is None else min(floor, self._notices.trim_floor())

    def obstacle(self) -> str:
        """Why this shard cannot go yet, though it has no bucket any more: what its history and notices still need."""
        parts = (self._history, self._notices)
        return next((found for part in parts if part is not None and (found := part.obstacle())), "")

    def figures(self) -> dict[str, Any]:
        """Counters for the operator."""
        told = self.machine.figures() | self._aggregate_figures()
        for part in (self._history, self._door, self._delivery, self._checks, self._notices):
            told |= {} if part is None else part.figures()
        told["recent"] = list(self.recent)
        parts = (self._history, self._notices)
        told["trouble"] = "; ".join(silent for part in parts if part is not None and (silent := part.silence()))
        if self._worker is not None and self._notices is None:  # nobody is told
            told["settled"] = notices.settled_untold(self._begin.settled, self._worker.journal.head)
        else:
            told["settled"] = told.get("notices_settled", -1)
        if "notices_owed" in told and self._worker is not None:
            at_ns = told["notices_oldest_at_ns"] if told["notices_owed"] else 0
            told["notices_oldest_ns"] = max(0, self._worker.fresh_now_ns() - at_ns) if at_ns else -1
        return told

    def _aggregate_figures(self) -> dict[str, Any]:
        if self._worker is None:
            return {}
        if self._counting is None and self._aggregates.is_due(self._worker.fresh_now_ns()):
            self._count_on(STEPS_MAX)
        figures = self._aggregates.figures(self._worker.fresh_now_ns())
        if (classless := figures["unknown_class_accounts"]) > self._classless:
            log.warning(
                "accounts in cutoff classes that the configuration does not have: %d; the default serves them",
                classless,
            )
        self._classless = classless
        return figures

    def _count_on(self, steps: int) -> None:
        """Takes a step of the sums, and the others up to the end of the round or of `steps` a little later each."""
        assert self._worker is not None
        is_whole = self._aggregates.step(self._worker.fresh_now_ns())
        is_over = is_whole or steps == 1
        self._counting = None if is_over else asyncio.get_running_loop().call_later(PAUSE_S, self._count_on, steps - 1)

    # -- the life ---------------------------------------------------------------------------------------------------

    async def open(self, worker: ServedShard, listeners: list[tuple[str, socket.socket]]) -> None:
        """Opens the doors, and takes up what was owed when the last life ended."""
        self._worker = worker
        clocks = self._outside.clocks
        self._open_followers(worker)
        self._delivery = self._new_delivery()
        self._startup_hold.take_up(self.machine, self._delivery, worker.fresh_now_ns())
        self._startup_hold.ask(worker.operate, len(worker.map.weights), self._release_held)
        recheck_s = self.config.cutoff.recheck_s
        self._checks = PeriodicChecks(
            self.machine, self._delivery, worker.fresh_now_ns, worker.apply, worker.wake, recheck_s, clocks.boot_ns
        )
        self._checks.start()
        limits = limits_of(self.config.rpc, self.config.cutoff.concurrency)
        name, executor = f"shard-{worker.shard_id}", self._outside.executor
        audit = self._audit = Recorder(self._disk, self._begin.directory, name, clocks.wall_ns, executor)
        door = self._door = Door(worker, self._guard(), clocks.boot_ns, self._server_info, limits, worker.fail, audit)
        door.start()
        self._tls = server_context(self.config.rpc)
        doors = self._doors = Doors(door, self._tls, clocks.wall_ns, secrets.token_bytes)
        for kind, listener in listeners:
            await doors.listen(kind, listener)

    def _open_followers(self, worker: ServedShard) -> None:
        """History and notices begin to follow the journal."""
        begin, config, calls = self._begin, self.config, self._delivery_settings()
        accepts_loss = config.journal.sync != "always"  # then a loss of power may take the journal's last batches
        shard = FollowedShard(f"{begin.directory}/history", worker.shard_id, worker.journal)
        identity = identity_of_log(begin.log) if begin.log else b""
        self._history = self._outside.history(shard, HistorySettings(accepts_loss, config.history.keep_days, identity))
        self._history.start(FOLLOWERS_AFTER_S if begin.log else 0.0)
        settings = NoticeSettings(
            config.notify.url,
            calls.secrets,
            calls.timeout_s,
            calls.connect_timeout_s,
            accepts_loss,
            is_apart=begin.links is not None,  # a bucket may come from a shard whose files another host has
        )
        shard = shard._replace(directory=f"{begin.directory}/notices")
        self._notices = self._outside.notices(shard, settings, begin.settled)

    def configure(self, configuration: bytes) -> None:
        """Takes up what may change while it serves, see `billing.config.reload`. Calls under way end as they began."""
        self.config = Config.from_json(configuration)
        logging.getLogger().setLevel(self.config.log.level.upper())
        if self._door is not None:
            self._door.take_guard(self._guard())
            self._door.limits = limits_of(self.config.rpc, self.config.cutoff.concurrency)
        if self._tls is not None:
            self._tls.load_cert_chain(self.config.rpc.tls_cert, self.config.rpc.tls_key)
        if self._delivery is not None and self._delivery_settings() != self._delivery.settings:
            self._changing = asyncio.get_running_loop().create_task(self._change_delivery())

    async def _change_delivery(self) -> None:
        """Another delivery takes over all that is owed, once the calls of the old one have ended."""
        old = self._delivery
        assert old is not None
        await old.drain(DRAIN_DELIVERY_S)
        await old.close()
        self._delivery = self._new_delivery()
        if self._checks is not None:
            self._checks.delivery = self._delivery
        self._owe(list(self.machine.owed()))

    def examine(self, bucket_id: int) -> None:
        """Asserts that a bucket's accounts add up."""
        audit.check(self.machine.ledger.books[bucket_id])

    def _guard(self) -> Guard:
        file = self.config.rpc.tokens_file
        return Guard(read_file(self._disk, file).decode() if file else None)

    def _new_delivery(self) -> Delivery:
        worker, outside = self._worker, self._outside
        assert worker is not None
        delivery = Delivery(
            Obligations(self._owed, self._report, worker.may_act),
            self._delivery_settings(),
            worker.fresh_now_ns,
            worker.fail,
            Surroundings(outside.clocks, outside.rng, outside.endpoint),
        )
        delivery.start()
        self.machine.release_held = self._release_held
        return delivery

    def pause_calls(self, bucket_id: int) -> None:
        """Begins no further call for this bucket."""
        self._paused.add(bucket_id)

    def calls_in_flight(self, bucket_id: int) -> int:
        """Calls for this bucket whose outcome is not known yet."""
        return len(self._calls.get(bucket_id, ()))

    def take_up(self, bucket_id: int) -> None:
        """Makes what calls this bucket owes, from now on."""
        self._paused.discard(bucket_id)
        self._owe(list(self.machine.owed_in(bucket_id)))
        if self._checks is not None:
            self._checks.take_up(bucket_id)

    def forget_calls(self, bucket_id: int) -> None:
        """The bucket is another's: whatever the outbox still has of it turns out not to be owed."""
        self._paused.discard(bucket_id)
        if self._delivery is not None:
            self._delivery.outbox.leave(bucket_id)

    def _release_held(self) -> int:
        assert self._delivery is not None
        return self._startup_hold.release(self.machine, self._delivery)

    def _owe(self, owed: list[tuple[int, bytes, str, int, int, str]]) -> None:
        """Lets the delivery know of all this, once what determined it is durable."""

        def durable() -> None:
            assert self._delivery is not None
            self._startup_hold.hand_over(owed, self._delivery)

        if owed:
            assert self._worker is not None
            self._worker.when_durable(durable)

    async def stop_listening(self) -> None:
        """No new connections; what was asked is still answered."""
        if self._doors is not None:
            self._doors.stop_listening()
        if self._delivery is not None:
            await self._delivery.drain(DRAIN_DELIVERY_S)
        if self._door is not None:
            self._door.drain()

    async def close(self) -> None:
        """Ends the connections and the delivery."""
        if self._checks is not None:
            self._checks.close()
        if self._counting is not None:
            self._counting.cancel()
        if self._delivery is not None:
            await self._delivery.close()
        if self._door is not None:
            self._door.close()
        if self._audit is not None:
            await self._audit.close()

    async def end_followers(self) -> None:
        """Lets history and notices write what was committed, and ends them."""
        links = [link for link in (self._history, self._notices) if link is not None]
        await asyncio.gather(*(link.close() for link in links))

    # -- delivery ---------------------------------------------------------------------------------------------------

    def renewed(self) -> None:
        """Takes up again what was not called while the journal's grant had run out."""
        self._owe(list(self.machine.owed()))

    def _owed(self, bucket_id: int, user_id: bytes) -> Owed | None:
        if bucket_id in self._paused or self._worker is None or not self._worker.may_act():
            return None  # another owner may make this call: `take_up` or `renewed` comes where it is this one's
        call = self.machine.ledger.owed(bucket_id, user_id)
        if call is None:
            return None
        class_name = call.class_name.decode()
        if self._delivery is None or not self._delivery.calls(call.kind, class_name):
            return None  # a restore of before, of an account whose class has no restore URL now
        return (call.kind, call.event_id, call.seq, call.exhausted_at_ns, call.attempts, call.due_ns, class_name)

    def _report(self, kind: str, bucket_id: int, user_id: bytes, seq: int, outcome: str, error: str) -> None:
        assert self._worker is not None
        op = _REPORTS[kind, outcome]
        unbegun = op == ops.CUTOFF_FAILED and user_id not in self._calls.get(bucket_id, ())
        if outcome == STARTED:
            self._calls.setdefault(bucket_id, set()).add(user_id)
        elif bucket_id in self._calls:
            self._calls[bucket_id].discard(user_id)
            if not self._calls[bucket_id]:
                del self._calls[bucket_id]
        self._worker.report(bucket_id, (op, user_id, seq, int(unbegun), 0, b"", b"", error.encode()[:255], b"", b""))
        if op == ops.CUTOFF_DELIVERED and self._checks is not None:
            self._checks.delivered(bucket_id, user_id, seq)

    def _delivery_settings(self) -> DeliverySettings:
        cutoff = self.config.cutoff
        secrets = parse_secrets(read_file(self._disk, cutoff.secret_file).decode()) if cutoff.secret_file else ()
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

    def _server_info(self) -> dict[str, object]:
        assert self._worker is not None
        return {
            "version": __version__,
            "shard_id": self._worker.shard_id,
            "shards": len(self._worker.map.weights),
            "bucket_count": self._worker.map.bucket_count,
            "now_ns": self._worker.now_ns(),
            "journal_sync": self.config.journal.sync,
            "after_exhaustion": self.config.cutoff.after_exhaustion,
            "request_ids_per_bucket": self.config.ledger.request_ids_per_bucket,
        }
