"""The application that `shards.worker.process` hosts: the state machine, the doors, and the delivery of cutoffs.

It gives the worker its state machine, encodes replies for clients, merges the answers of all shards to a query about
the whole daemon, and makes the calls that become owed.

It has two phases, like the worker. While the shard recovers, only the machine and the startup hold exist. `open` makes
all other parts (`Serving`), which get each other in their constructors.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from billing.api.replies import RESULTS, reply_of
from billing.api.wire import ERRORS_AS_MAP, encode_reply
from billing.audit.recorder import Recorder
from billing.config.schema import Config
from billing.ledger import audit
from billing.ledger.cutoffs import SEQ_FLOOR_MAX
from billing.ledger.errors import Refused
from billing.ledger.ledger import ReplayDifference, Rules
from billing.worker.aggregate_rounds import AggregateRounds
from billing.worker.aggregates import Aggregates
from billing.worker.classes import rules_of_classes
from billing.worker.client_doors import ClientDoors
from billing.worker.dependencies import REAL, WorkerDependencies
from billing.worker.followers import Followers
from billing.worker.history_questions import HistoryQuestions
from billing.worker.machine import SHARD_BY_SHARD, SURVEYS, BillingMachine
from billing.worker.outgoing_calls import BucketCalls, OutgoingCalls, delivery_settings
from billing.worker.questions import Questions
from billing.worker.startup_hold import StartupHold
from shards.buckets import BucketMap, route_of
from shards.control import Begin
from shards.machine import Command, Effect
from shards.replies import Unavailable
from shards.restored import rewound_ns
from shards.worker.hosting import ServedShard


class Serving(NamedTuple):
    """The parts that exist once the shard is served."""

    followers: Followers
    calls: OutgoingCalls
    aggregates: AggregateRounds
    audit: Recorder
    doors: ClientDoors
    questions: Questions


class Billing:
    """Implements `shards.worker.hosting.Hosted`."""

    surveys = SURVEYS
    questions = frozenset({"audit", "entries"})
    query_mode = ERRORS_AS_MAP

    def __init__(
        self,
        config: Config,
        begin: Begin,
        dependencies: WorkerDependencies = REAL,
        recent: Sequence[tuple[int, int, str, str, str]] = (),
    ) -> None:
        """`recent`: the latest log lines of this process."""
        self.config = config
        self._begin = begin
        self._dependencies = dependencies
        self._recent = recent
        self._classes = rules_of_classes(config.cutoff)
        self._startup_hold = StartupHold(dependencies.disk, begin.directory, config.cutoff.hold_above)
        self._bucket_calls = BucketCalls(dependencies.clocks.boot_ns)
        rules = Rules(
            accrue=config.cutoff.after_exhaustion == "accrue",
            request_ids_per_bucket=config.ledger.request_ids_per_bucket,
            restore=bool(config.cutoff.restore_url),
            rate_lease_ns=round(config.ledger.rate_lease_s * 10**9),
            classes=self._classes,
            seq_floor=min(rewound_ns(dependencies.disk, begin.directory) // 10**9, SEQ_FLOOR_MAX),
        )
        hold = self._startup_hold
        self.machine = BillingMachine(rules, reply_of, self._release_held, lambda: hold.overdue, hold.held_until_ns)
        self.serving: Serving | None = None  # until `open`

    # -- the life ---------------------------------------------------------------------------------------------------

    async def open(self, worker: ServedShard, listeners: list[tuple[str, socket.socket]]) -> None:
        """Starts all parts of `Serving`: opens the doors, and takes up the calls that are still owed from before the
        start.
        """
        config, begin, dependencies, machine = self.config, self._begin, self._dependencies, self.machine
        clocks, disk, hold, cutoff = dependencies.clocks, dependencies.disk, self._startup_hold, config.cutoff
        settings = delivery_settings(config)
        followers = Followers(worker, begin, config, settings, dependencies)
        calls = OutgoingCalls(machine, worker, hold, self._bucket_calls, settings, cutoff.recheck_s, dependencies)
        aggregates = Aggregates(machine.ledger.books, self._classes, calls.is_held)
        rounds = AggregateRounds(aggregates, worker.fresh_now_ns)
        recorder = Recorder(disk, begin.directory, f"shard-{worker.shard_id}", clocks.wall_ns, dependencies.executor)
        doors = ClientDoors(worker, config, recorder, dependencies)
        of_history = HistoryQuestions(machine, worker, followers.history, bool(begin.log))
        questions = Questions(machine, worker, calls, recorder, of_history)
        self.serving = Serving(followers, calls, rounds, recorder, doors, questions)
        doors.listen(listeners)

    def configure(self, configuration: bytes) -> None:
        """Applies the settings that may change while the worker serves, see `billing.config.reload`. Calls in flight
        end with the old settings.
        """
        config = self.config = Config.from_json(configuration)
        logging.getLogger().setLevel(config.log.level.upper())
        if self.serving is not None:
            settings = delivery_settings(config)
            self.serving.doors.configure(config)
            self.serving.calls.configure(settings)
            self.serving.followers.configure(settings)

    async def stop_listening(self) -> None:
        """Accepts no new connections, begins no further calls, and takes no new requests; those under way are still
        answered.
        """
        if self.serving is not None:
            await self.serving.doors.stop_listening()
            await self.serving.calls.drain()
            self.serving.doors.drain()

    async def close(self) -> None:
        """Ends the connections and the delivery."""
        if self.serving is not None:
            self.serving.aggregates.close()
            await self.serving.calls.close()
            self.serving.doors.close()
            await self.serving.audit.close()

    async def end_followers(self) -> None:
        """Ends history and notices, after they have written what was committed."""
        if self.serving is not None:
            await self.serving.followers.close()

    # -- notifications from the worker ------------------------------------------------------------------------------

    def committed(self, position: int, payload: bytes) -> None:
        """Hands a durable batch on to the history and the notices."""
        serving = self.serving
        assert serving is not None, "committed before it was opened"
        serving.followers.hand(position, payload)

    def tell(self, notices: list[Effect]) -> None:
        """Makes the calls that became owed."""
        assert self.serving is not None, "told before it was opened"
        self.serving.calls.tell(notices)

    def renewed(self) -> None:
        """The journal's grant was renewed: takes up the owed calls that were not made while it had run out."""
        if self.serving is not None:  # else nothing was called yet
            self.serving.calls.renewed()

    def pause_calls(self, bucket_id: int) -> None:
        """Begins no further call for this bucket."""
        self._bucket_calls.paused.add(bucket_id)

    def calls_in_flight(self, bucket_id: int) -> int:
        """The number of calls for this bucket whose outcome is not known yet."""
        return self._bucket_calls.in_flight(bucket_id)

    def calls_hang(self, bucket_id: int) -> bool:
        """Whether one of these calls has been in flight for so long that it may never be answered."""
        return self._bucket_calls.hang(bucket_id)

    def take_up(self, bucket_id: int) -> None:
        """Makes the calls that this bucket owes, from now on."""
        self._bucket_calls.paused.discard(bucket_id)
        if self.serving is not None:  # else `open` takes up the owed calls of all buckets
            self.serving.calls.take_up(bucket_id)

    def forget_calls(self, bucket_id: int) -> None:
        """The bucket now belongs to another shard: drops its held calls."""
        self._bucket_calls.paused.discard(bucket_id)
        if self.serving is not None:
            self.serving.calls.forget(bucket_id)

    # -- requests from the worker -----------------------------------------------------------------------------------

    def encode(self, msgid: int, mode: int, reply: object) -> bytes:
        """Encodes a whole reply for a client that is connected to another worker."""
        if type(reply) not in RESULTS and self.serving is not None:
            self.serving.doors.note_error(reply)
        return encode_reply(msgid, mode, reply)

    def answer(self, bucket_id: int, query: Command, done: Callable[[object], None]) -> None:
        """Answers the queries for which the machine returned `Later`, and those in `questions`; see
        `billing.worker.questions`.
        """
        assert self.serving is not None, "asked before it was opened"
        self.serving.questions.answer(bucket_id, query, done)

    def merge(self, operation: Command, parts: list[Any]) -> object:
        """Joins the answers of all shards into one reply."""
        return self.machine.merge(operation, parts)

    def lacking(self, operation: Command, why: Unavailable) -> object:
        """The reply to a survey that one shard does not answer. Its reason says if a client may ask single shards."""
        if operation[0] not in SHARD_BY_SHARD:
            return why
        return why._replace(reason=f"{why.reason}; the option shard_id asks one of the others")

    def unknown_shard(self, shard_id: int, known: list[int]) -> object:
        """The reply to a request for a shard that does not exist."""
        return Refused("UNKNOWN_SHARD", f"shard {shard_id} is not one of {known}")

    def reply_of(self, plain: object) -> object:
        """The supervisor's answer as a reply."""
        if isinstance(plain, dict) and plain.get("applied") == "unknown":
            return Unavailable(0, plain["message"], "unknown")
        if isinstance(plain, dict) and "refused" in plain:
            return Refused(plain["refused"], plain["message"])
        return plain

    def replay_failed(self, error: BaseException) -> bool:
        """Whether `error` says that a replay made another entry than the journal has."""
        return isinstance(error, ReplayDifference)

    def route(self, operation: Command, bucket_map: BucketMap) -> object:
        """`("route", version)`, see `shards.buckets.route_of`."""
        return route_of(bucket_map, self._begin.direct, operation[1])

    def examine(self, bucket_id: int) -> None:
        """Asserts conservation of money in a bucket, see `billing.ledger.audit`."""
        audit.check(self.machine.ledger.books[bucket_id])

    def trim_floor(self) -> int:
        """The journal's position up to which history and notices have written everything."""
        return 0 if self.serving is None else self.serving.followers.trim_floor()

    def obstacle(self) -> str:
        """Why this shard, which has no bucket any more, cannot be removed yet: what its history and notices still need;
        "" if they need nothing.
        """
        return "" if self.serving is None else self.serving.followers.obstacle()

    def figures(self) -> dict[str, Any]:
        """Counters for the operator."""
        figures = self.machine.figures() | {"recent": list(self._recent)}
        if (serving := self.serving) is None:
            return figures | {"trouble": "", "settled": -1}
        for part in (serving.aggregates, serving.doors, serving.calls, serving.followers):
            figures |= part.figures()
        return figures

    def _release_held(self) -> int:
        return 0 if self.serving is None else self.serving.calls.release_held()
