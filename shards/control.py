"""Every message between the supervisor and its workers: what each says, and how it looks on the control wire.

    supervisor → worker     Begin, Serve, Stop                            its life
                            NewAnchor, ShardsChanged, Configure, Proved, Held     changes, told to all workers
                            ReadFigures, ReadObstacle, Examine, Query     questions, each with a number
                            Answer                                        to a worker's Ask
                            MoveOut, MoveIn, MoveAbort, NewOwner          see `shards.moves.move`
                            PassOn, PassAsk                               for a worker of another host
                            HoldFiles, Cut, AskShard                      see `shards.backup`
    worker → supervisor     Waiting, Progress, Recovered, Serving, Failed
                            Figures, Obstacle, Examined, QueryReply       the answers, each with its question's number
                            Ask                                           a request that only the supervisor can do
                            Payload, Stored, Served, Known, Unmoved, Holdup
                            Arriving, FarReport, FarAnswer                of moves and requests of other hosts
                            FilesHeld, CutAt, ShardTold                   see `shards.backup`

A message is an array: its name, then its fields in the order of the class. `Stop()` is `["stop"]`, and
`MoveAbort(number=7, bucket_id=3)` is `["move_abort", 7, 3]`. Each end decodes with the union of the messages that it
may receive. So a message that is unknown, of the wrong direction, too short or of wrong types is a
`msgspec.ValidationError`, never a message. Both ends are of one version: the supervisor starts its workers from its own
program.

Fields whose type is `Any` belong to the application; nothing here looks at them, and arrays in them arrive as lists.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple, Self

import msgspec

from shards.links.far import Far
from shards.machine import Command
from shards.system.clock import Anchor


class LinkSettings(NamedTuple):
    """How this worker is linked with workers of other hosts, where several hosts serve at once."""

    listen: str  # "host:port" at which other workers dial this one; port 0 takes a free one
    cluster: str  # the identity of the cluster that the log belongs to
    epoch: int  # of the shard's `own` record in the map
    life: int  # the number under which the map will record this process
    secret_file: str  # "": none
    certificates: tuple[str, str, str] | None  # files, see `shards.links.far.Certificates`


class WorkerSettings(NamedTuple):
    """The part of the configuration that a worker needs."""

    idle_barrier_s: float  # how long after the last commit `idle_barrier` proves it durable; 0: only with a beat
    snapshot_bytes: int  # a snapshot is made when the journal has grown by so many bytes


def _fits(number: int) -> bool:
    """Whether MessagePack has an integer of this size."""
    return -(2**63) <= number < 2**64


def _name_of(class_name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class Message(msgspec.Struct, frozen=True, array_like=True, tag=_name_of):
    """Base of all messages."""


# -- supervisor → worker: its life ------------------------------------------------------------------------------------


class Begin(Message, frozen=True):
    """The first message to a worker. Its paths and sockets are those of this host."""

    shard_id: int
    directory: str  # where this host keeps files of its own: sockets, history, notices
    founded: bool  # the map records that this shard has served before
    bucket_map: bytes
    peers: dict[int, str]  # shard id -> name of its socket in `directory`/run
    listeners: list[tuple[str, int]]  # (kind, inherited descriptor); kind: "tcp", "unix", "direct", "http", …
    direct: dict[int, str]  # shard id -> "host:port" of its own port, which only its worker answers
    journal: dict[str, Any]  # settings for `shards.journal.backends`
    settings: WorkerSettings
    configuration: bytes  # of the application, opaque here
    proved: list[int]  # shards that were recovered and hold all buckets that the map gives them
    settled: int  # position up to which the application owes nothing outside, by any host's record; −1: not known
    far: dict[int, Far]  # shards that other hosts serve
    links: LinkSettings | None  # None: no other host serves anything
    log: str  # the identity of a log that hosts share; "" where they share none


class Serve(Message, frozen=True):
    """Tells a recovered worker to serve: billing time has begun."""

    anchors: list[Anchor]  # ascending; the last one counts, those before it lead to it


class Stop(Message, frozen=True):
    """Tells a worker to stop in order."""


# -- supervisor → worker: what has changed for all --------------------------------------------------------------------


class NewAnchor(Message, frozen=True):
    """Billing time changes its pace: the relation between billing time and the boot clock is new."""

    anchor: Anchor


class ShardsChanged(Message, frozen=True):
    """The set of shards, or where they are served, has changed."""

    records: list[list[Any]]  # of the map's journal, for `BucketMap.apply`
    peers: dict[int, str]
    direct: dict[int, str]
    far: dict[int, Far]


class Configure(Message, frozen=True):
    """The configuration was reloaded; only keys that may change while the daemon serves differ."""

    settings: WorkerSettings
    configuration: bytes


class Proved(Message, frozen=True):
    """A shard was recovered, and its journal has all buckets that the map gives it."""

    shard_id: int


class Held(Message, frozen=True, tag="held"):
    """A shard is held: no worker serves it until an operator has it started again. An empty reason: it is being started
    again.
    """

    shard_id: int
    reason: str


# -- supervisor → worker: questions and answers -----------------------------------------------------------------------


class ReadFigures(Message, frozen=True):
    """Asks for the worker's counters; answered with Figures."""

    number: int


class ReadObstacle(Message, frozen=True):
    """Asks whether a drained shard may be retired; answered with Obstacle."""

    number: int


class Examine(Message, frozen=True):
    """Asks which buckets the shard holds, and whether their content is consistent; answered with Examined."""

    number: int


class Query(Message, frozen=True):
    """A query to the application, in the form in which a client sends it; answered with QueryReply."""

    number: int
    key: bytes  # of the account that the query concerns; empty: the whole daemon
    query: Command


class Answer(Message, frozen=True):
    """The supervisor's answer to the Ask of that number."""

    number: int
    reply: Any


# -- supervisor → worker: moves and backups ---------------------------------------------------------------------------


class MoveOut(Message, frozen=True):
    """Tells the source of a move to freeze the bucket and dump it."""

    number: int  # of the move, in this and every other message about it
    bucket_id: int
    generation: int  # of the source's ownership


class MoveIn(Message, frozen=True):
    """Tells the target of a move to store the bucket."""

    number: int
    bucket_id: int
    generation: int  # that it will have there
    block: bytes
    digest: bytes
    at_ns: int  # billing instant at the source, after every change of the bucket there


class MoveAbort(Message, frozen=True):
    """The move was aborted. Sent again until the worker answers Known."""

    number: int
    bucket_id: int


class NewOwner(Message, frozen=True):
    """The move was committed. Sent to every worker until it answers Known, or, from the target, Served."""

    number: int
    bucket_id: int
    shard_id: int
    generation: int


class AskShard(Message, frozen=True):
    """A step of a backup that this worker passes on over its link to a shard of another host."""

    shard_id: int
    step: Command


class PassOn(Message, frozen=True):
    """A move order that this worker passes on to a shard of another host; the report of that shard comes back as
    FarReport.
    """

    shard_id: int  # the shard whose worker is to get the order
    number: int  # of the move
    source: int  # the shard that the bucket leaves
    voice: tuple[int, int]  # the life of the source's worker in which the move began, as `own` number and `life`
    order: bytes  # a MoveOrder, encoded


class PassAsk(Message, frozen=True):
    """An operator's request that only the supervisor of another shard's host can carry out; answered with FarAnswer."""

    shard_id: int
    number: int
    operation: Command


class HoldFiles(Message, frozen=True):
    """While `held`, the worker makes no snapshot and trims nothing. It answers FilesHeld once that is so."""

    held: bool


class Cut(Message, frozen=True):
    """Tells the worker to close its batch at one instant; answered with CutAt."""

    at_ns: int
    stand_ns: int  # how long before `at_ns` the worker begins to stand still


# -- worker → supervisor: its life ------------------------------------------------------------------------------------


class Waiting(Message, frozen=True):
    """The worker cannot open its journal yet."""

    reason: str


class Progress(Message, frozen=True):
    """How far the recovery has come, counted in parts of the snapshot and batches."""

    done: int
    total: int


class Recovered(Message, frozen=True):
    """The worker has opened its journal and replayed it."""

    last_instant_ns: int  # the last billing instant in the journal: the shard's time never goes back before it
    took_ns: int
    parts: int  # of a snapshot, loaded
    records: int  # replayed
    warnings: list[str]


class Serving(Message, frozen=True):
    """The worker accepts clients."""

    pid: int
    accounts: int
    links: str  # "host:port" at which workers of other hosts dial it; "": nowhere


class Failed(Message, frozen=True):
    """The last message of a worker that ends because of a failure."""

    code: int  # of its exit
    text: str


# -- worker → supervisor: answers and questions -----------------------------------------------------------------------


class Figures(Message, frozen=True):
    """The worker's counters by name. A number of more than 64 bits, as a sum over many accounts may be, has no place in
    a message: it goes as decimal text in `wide`.
    """

    number: int
    narrow: dict[str, Any]
    wide: dict[str, str]

    @classmethod
    def of(cls, number: int, figures: dict[str, Any]) -> Self:
        """The answer to the question with this number."""
        wide = {name: str(value) for name, value in figures.items() if type(value) is int and not _fits(value)}
        return cls(number, {name: value for name, value in figures.items() if name not in wide}, wide)

    @property
    def figures(self) -> dict[str, Any]:
        """All counters, as the worker has them."""
        return self.narrow | {name: int(text) for name, text in self.wide.items()}


class Obstacle(Message, frozen=True):
    """Why the shard cannot be retired yet; an empty text where it can."""

    number: int
    text: str


class Examined(Message, frozen=True):
    """Which buckets the shard holds, and the inconsistencies that were found."""

    number: int
    held: list[tuple[int, int]]  # (bucket id, generation)
    faults: list[str]  # each names a bucket


class QueryReply(Message, frozen=True):
    """A whole reply as the application encodes it for clients; its message id is the number of the Query."""

    reply: bytes


class Ask(Message, frozen=True):
    """An operation that only the supervisor can carry out."""

    number: int
    operation: Command


# -- worker → supervisor: moves and backups ---------------------------------------------------------------------------


class Payload(Message, frozen=True):
    """The bucket's content, from the source, where the bucket is frozen and the freeze is durable."""

    number: int
    block: bytes
    digest: bytes
    at_ns: int  # billing instant after every change of the bucket


class Stored(Message, frozen=True):
    """The target has the bucket's content durably."""

    number: int
    digest: bytes


class Served(Message, frozen=True):
    """The target has recorded that it owns the bucket, and serves it."""

    number: int


class Known(Message, frozen=True):
    """The worker has recorded the outcome of the move."""

    number: int


class Unmoved(Message, frozen=True):
    """The worker cannot do its part of the move."""

    number: int
    reason: str


class Holdup(Message, frozen=True):
    """What the source is waiting for before it dumps the bucket."""

    number: int
    reason: str


MoveOrder = MoveOut | MoveIn | MoveAbort | NewOwner  # from the supervisor to workers
MoveReport = Payload | Stored | Served | Known | Unmoved | Holdup  # from workers to the supervisor


class Arriving(Message, frozen=True):
    """Another host moves a bucket to a shard of this host; sent before Stored. The map will have the outcome."""

    number: int
    bucket_id: int
    generation: int  # that it will have here
    source: int
    voice: tuple[int, int]  # of the source's worker


class FarReport(Message, frozen=True):
    """The report of a worker on another host about a move order that was passed on to it."""

    shard_id: int
    voice: tuple[int, int]  # the life of that worker; (0, 0): it was not reached, which `report` says
    report: MoveReport


class FarAnswer(Message, frozen=True):
    """The answer to the PassAsk of that number."""

    number: int
    reply: Any


class FilesHeld(Message, frozen=True):
    """From now on this worker makes no snapshot and trims nothing."""


class CutAt(Message, frozen=True):
    """Everything stamped at or before the instant is durable up to this position, which includes nothing that is
    stamped later.
    """

    position: int  # -1: the order came too late


class ShardTold(Message, frozen=True):
    """The answer of a shard on another host to a step of a backup."""

    shard_id: int
    position: int  # as in CutAt; 0 for other steps
    error: str  # why the shard has not answered; "": it has


# -- unions -----------------------------------------------------------------------------------------------------------

QuestionReply = Figures | Obstacle | Examined  # answers to the supervisor's own questions
BackupReport = FilesHeld | CutAt | ShardTold
ToWorker = (
    Begin | Serve | Stop | NewAnchor | ShardsChanged | Configure | Proved | Held
    | ReadFigures | ReadObstacle | Examine | Query | Answer | MoveOrder | PassOn | PassAsk | HoldFiles | Cut
    | AskShard
)  # fmt: skip
ToSupervisor = (
    Waiting | Progress | Recovered | Serving | Failed | QuestionReply | QueryReply | Ask | MoveReport
    | Arriving | FarReport | FarAnswer | BackupReport
)  # fmt: skip

to_order: Final = msgspec.msgpack.Decoder(MoveOrder).decode  # of PassOn
to_report: Final = msgspec.msgpack.Decoder(MoveReport).decode
to_worker: Final = msgspec.msgpack.Decoder(ToWorker).decode
to_supervisor: Final = msgspec.msgpack.Decoder(ToSupervisor).decode
