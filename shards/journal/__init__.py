"""The journal seam: the operations by which a shard makes its batches durable, and the errors of these operations.

A journal is a sequence of opaque payloads, numbered 1, 2, 3 … without a gap. The number is the *position*; one payload
is one batch, written and made durable as a whole or not at all. Position 0 is the one before the first batch. Beside
the sequence a journal keeps snapshots: a position, and opaque chunks that replace all batches up to and including it.

Every backend keeps these promises (the contract suite, `tests/shards/journal/contract.py`, is this list as code):

1. One owner. `open` raises the epoch durably before it returns; an older owner can append nothing afterwards. A backend
   that can tell that the older owner still lives may refuse the newer one instead. Either way the loser gets `Fenced`.
2. Durable on return. When `append` returns a position, that payload and all before it survive a loss of power. This
   holds under `sync="always"`. The modes "interval" and "never" weaken this promise alone, only for a loss of power,
   and not for a payload that was appended with `durable`.
3. One at a time. At most one `append` is under way, and the next begins after the last has returned. So a batch that
   exists proves that all before it were durable, which is how damage is told from an unfinished write.
4. Whole or refused. `open` finds every batch whose `append` ever returned, in order and unchanged, or raises. A batch
   whose `append` never returned is found whole or not at all, and later openings find the same.
5. Everything that `open` and `replay` show is durable. Where a cache may hold more than the medium, `open` writes the
   batches in doubt anew before it returns.
6. A failed write ends the journal object. After `Unknown` or `Fenced` every call but `close` raises the same error
   again: no write or sync is ever repeated on a disk that failed once. Reopening reads what is really there.
7. No room is not damage. `Unavailable` means that the batch was surely not written, and that the same call may succeed
   later.
8. Time is granted. No command, read or cutoff may have an instant at or after `granted_ns`, or before
   `Opened.began_ns`, so every billing instant of a shard belongs to one epoch. A backend whose older owner cannot live
   on beside a newer one grants all time there is.

Nothing above this seam knows of files, segments, offsets, directories or servers. The errors carry them only as
evidence for people, and an error's own text is what people are told of a failure. `backends.open` makes a backend by
its kind: `file` keeps journals in local files, `jetstream` on a majority of servers.

Beside journals a backend gives two more things: a `Reader`, which owns nothing and fences nothing, for the doctor,
dumps, backups and followers; and the `MapLog`, in which the supervisor records who owns which bucket.

Threads: one thread calls `append` and `idle_barrier`, which block it (the GIL is free meanwhile). At the same time
another thread may call `save_snapshot` and `trim`, and a third one `first`, `replay` and the iterator of `replay`, as
long as nothing is trimmed that the iterator has yet to yield. All else is called while none of these calls runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

from shards import exits

__all__ = [
    "ALL_TIME_NS",
    "Absent",
    "Backend",
    "Corrupt",
    "Fenced",
    "Full",
    "Gap",
    "Journal",
    "JournalError",
    "LastSign",
    "Lost",
    "MapLog",
    "Medium",
    "Opened",
    "OtherFormat",
    "Overtaken",
    "Reader",
    "Retained",
    "Snapshot",
    "Starved",
    "Torn",
    "Unavailable",
    "Unfit",
    "Unknown",
]

ALL_TIME_NS = (1 << 63) - 1  # the grant of a backend in which no newer owner can exist beside an older one


class JournalError(Exception):
    """A failure of the journal. Its class says what the caller may do about it; the rest is evidence.

    file: the file concerned, or "". offset: byte offset in that file, or -1. position: of the batch concerned, or -1.
    """

    ending: ClassVar[exits.Ending] = exits.LOG_FAILED

    def __init__(self, message: str, *, file: str = "", offset: int = -1, position: int = -1) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.offset = offset
        self.position = position

    def __str__(self) -> str:
        evidence = [
            f"{name} {value}"
            for name, value, absent in (
                ("file", self.file, ""),
                ("offset", self.offset, -1),
                ("position", self.position, -1),
            )
            if value != absent
        ]
        return f"{self.message} ({', '.join(evidence)})" if evidence else self.message


class Fenced(JournalError):
    """Another owner holds this shard, or has taken it. Nothing was written. Terminal for this journal object."""

    ending = exits.AGAIN


class Unavailable(JournalError):
    """The record was surely not written, and nothing is broken: there is no room, or the backend cannot be reached. The
    caller may try again later.
    """

    ending = exits.UNREACHABLE


class Full(Unavailable):
    """The record was surely not written: a limit of the log leaves no room for it. A smaller record may still fit."""


class Unknown(JournalError):
    """The backend failed during a call: the record may be there or not. Terminal for this journal object: the caller
    reopens the journal and reads.
    """


class Lost(Unknown):
    """The connection was lost, or no answer came before the deadline. Terminal for this journal object, but nothing is
    broken: any process that reaches the log may reopen it.
    """

    ending = exits.AGAIN


class Starved(Unknown):
    """The machine lacked file descriptors or memory for a call. Terminal for this journal object, but nothing is
    broken: any process may reopen the journal.
    """

    ending = exits.AGAIN


class Unfit(JournalError):
    """The log's location or settings cannot be used. The text names each fault and its remedy. Nothing was changed; an
    operator must change the configuration first.
    """

    ending = exits.CONFIG


class Absent(JournalError):
    """There is no log at the location that was named, nor any sign that one ever was there: the name is wrong."""

    ending = exits.CONFIG


class Gap(JournalError):
    """Whole batches that must be there are missing: a file is gone, or was replaced by an older one."""

    ending = exits.DAMAGED


class Torn(JournalError):
    """The last batch is unfinished, and its `append` never returned. `open` cuts it off and mentions it in `warnings`:
    this is evidence, and is not raised.
    """

    ending = exits.DAMAGED


class Corrupt(JournalError):
    """Bytes that were durable are damaged. Nothing was changed; a person has to look."""

    ending = exits.DAMAGED


class OtherFormat(Corrupt):
    """The bytes are sound, but another version wrote them, in a format that this version does not read. Nothing was
    changed.
    """

    ending = exits.CONFIG


class Overtaken(JournalError):
    """Another supervisor has decided first: the map's log is at `version`. Nothing was written. The caller loads the
    new records and decides again.
    """

    def __init__(self, version: int) -> None:
        super().__init__(f"the map has been changed meanwhile: it is at version {version}", position=version)
        self.version = version


class Opened(NamedTuple):
    """The result of `open`: the epoch of this ownership (at least 1, above all earlier ones), the position of the last
    batch (0: there is none), and the first billing instant that belongs to this epoch (0: any).
    """

    epoch: int
    head: int
    began_ns: int


class Snapshot(NamedTuple):
    """A loaded snapshot: replay continues at `position` + 1. The chunks come verified, in the order in which they were
    saved.
    """

    position: int
    chunks: Iterator[bytes]
    chunk_count: int = 0  # 0 where the backend does not know the number before the chunks are read


class Medium(NamedTuple):
    """Where a log is kept and how full it is, for people: as of the last look at the log, and of its last record."""

    leader: str = ""  # the server that leads the log's replicas; "" where none was known to lead
    used_bytes: int = -1  # of the log without its snapshots, which counts against the limit; -1: not known
    limit_bytes: int = 0  # that the log may take; 0: it has no limit of its own
    round_trip_ns: int = 0  # from sending the last record to its acknowledgement; 0: none was sent


class Retained(NamedTuple):
    """A snapshot that is kept. It replaces all batches up to `position`, where the log's chain is `chain`; its chunks
    may hold effects up to position `reached`.
    """

    position: int
    chain: int
    reached: int


class Journal(Protocol):
    """One shard's journal. Call order: open · load_snapshot · replay · then append, idle_barrier, snapshots · close."""

    @property
    def head(self) -> int:
        """Position of the last batch; 0 where there is none."""

    @property
    def first(self) -> int:
        """Position of the oldest batch that can be replayed; head + 1 where there is none."""

    @property
    def last_time_ns(self) -> int:
        """The instant before which no batch that follows is stamped, in ns of the clock passed in: the time stamp of
        the last batch, or, where a log grants no time and the machine was started anew since, `TOLD_AHEAD_NS` behind
        it. Never decreases; 0 before the first batch.
        """

    @property
    def stored_bytes(self) -> int:
        """Bytes that batches and snapshots take on the medium together."""

    @property
    def no_room(self) -> str:
        """Why `append` will soon raise Unavailable: the journal found no room for coming batches. "": there is room.

        `append` and `idle_barrier` look for room again. Read it while neither of them is under way.
        """

    @property
    def medium(self) -> Medium:
        """Where the log is kept, for people. May be read from any thread."""

    @property
    def granted_ns(self) -> int:
        """The billing instant up to which, exclusive, this owner may act. May be read from any thread."""

    @property
    def beat_s(self) -> float:
        """The caller calls `idle_barrier` at least this often, or the grant runs out; 0: only after an append."""

    @property
    def warnings(self) -> list[str]:
        """Messages for an operator, in English: of a torn tail that was cut, a damaged snapshot, a
        directory on tmpfs.
        """

    def open(self, shard: int, owner: str) -> Opened:
        """Takes the shard for this owner and durably fences all older ones.

        `owner`: a name for people, at most 64 bytes of UTF-8. Raises Fenced (another owner lives, or may still live:
        try again), Unavailable (no room, or the log cannot be reached: try again), Unfit, Unknown, Gap, Corrupt.
        """

    def append(self, payload: bytes, durable: bool = False) -> int:
        """Appends one batch of at least 1 byte and returns its position; it is durable as the sync mode says. Blocks.

        `durable`: syncs this batch and all before it, whatever the mode. Raises Unavailable (surely not written; the
        journal goes on), Unknown or Fenced (terminal), ValueError (size).
        """

    def idle_barrier(self) -> None:
        """Records that the last batch was durable, so that damage to it can never be taken for a torn write.

        The thread that appends calls this about 50 ms after the last append, and every `beat_s`; it does nothing where
        nothing is due. It also renews the grant and prepares room for coming appends. A barrier takes no position and
        is never replayed. Raises what `append` raises.
        """

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yields (position, payload) from `start` (>= 1) to the head at this call, contiguous, each link verified.

        Raises Gap (`start` was trimmed, or lies beyond head + 1), Corrupt, Unknown (read error).
        """

    def save_snapshot(self, position: int, chunks: Iterable[bytes]) -> None:
        """Stores a snapshot atomically. On return it is durable and was read back; until then the older ones stand.

        `position`: the chunks contain everything up to it; 0 <= position <= head, and not lower than that of the last
        snapshot. A chunk may hold effects of later batches (it says so itself, above this seam), but the iterator must
        not yield it before `append` has returned for all of them. Chunks are taken one at a time, so the iterator may
        wait. If the iterator raises, nothing is stored and its exception passes through.
        Raises Unavailable (no room, nothing stored), Unknown (terminal), ValueError (position).
        """

    def load_snapshot(self) -> Snapshot | None:
        """Returns the snapshot that `open` chose: the newest good one that the log continues. None: replay from 1."""

    def trim(self, position: int) -> None:
        """Lets the backend forget everything up to `position`, at most the position of the newest durable snapshot.

        The backend keeps what it needs to fall back to the snapshot before. Raises ValueError (position), Unknown.
        """

    def close(self) -> None:
        """Records a clean stop and gives the shard back; after an error, only gives the shard back. May be repeated."""


class Reader(Protocol):
    """The log of one shard, or of the map (shard 0), for those who only read. The owner may go on meanwhile.

    What a reader shows may not be durable yet while the owner writes: whoever acts on it asks the owner how far the log
    is durable. Every call but `close` may raise Unavailable, and Unfit where the log does not exist.
    """

    @property
    def first(self) -> int:
        """Position of the oldest batch; head + 1 where there is none."""

    @property
    def head(self) -> int:
        """Position of the newest whole batch that can be seen now; 0 where there is none."""

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yields (position, payload) from `start` (>= 1) to the head at this call, contiguous, each link verified.

        Raises Gap (`start` was trimmed, or lies beyond head + 1), Corrupt, Unknown (read error).
        """

    def snapshots(self) -> list[Retained]:
        """Returns the snapshots that are whole, oldest first; of several at one position the newest only. Raises
        Unknown.
        """

    def chunks(self, position: int) -> Iterator[bytes]:
        """Yields the verified chunks of the snapshot at this position. Raises Gap (there is none), Corrupt, Unknown."""

    def close(self) -> None:
        """Gives back the handles or connections of the reader. May be repeated."""


class MapLog(Protocol):
    """The log of decisions about the owners of buckets. A version is a position, and a payload is one decision. Any
    supervisor may write: a decision names the version that it was made at, and is refused where that is no longer the
    newest.
    """

    @property
    def version(self) -> int:
        """The newest version that this object has loaded or decided."""

    @property
    def warnings(self) -> list[str]:
        """What an operator should hear of after `load`."""

    def is_newest(self) -> bool:
        """Returns whether nobody else has decided since the last `load` or `decide` of this object. Raises Unavailable,
        Unknown.
        """

    def load(self, owner: str) -> tuple[int, list[bytes]]:
        """Returns (version, all decisions in order); the first payload may be a state that `compact` wrote.

        May be repeated after Unavailable and Overtaken. Raises Fenced, Unavailable, Unfit, Unknown, Gap, Corrupt.
        """

    def follow(self, callback: Callable[[int, bytes], None]) -> None:
        """Has `callback(version, payload)` called for each decision of others that a later `load` finds."""

    def decide(self, version: int, payload: bytes) -> int:
        """Writes a decision made with the knowledge of all up to `version`; durable on return. Returns its own version.

        Raises Overtaken (nothing written), Unavailable (surely not written), Unknown, Fenced.
        """

    def compact(self, version: int, payload: bytes) -> None:
        """Writes `payload` as the state that replaces all up to `version`, which may then be forgotten.

        Raises Unavailable, Unknown.
        """

    def close(self) -> None:
        """Records a clean stop and gives the log back. May be repeated."""


class LastSign(NamedTuple):
    """The newest record of a shard's journal, as a sign that its owner lives."""

    sequence: int  # rises with every record; 0 where there is no record
    is_given_up: bool  # the owner has given the shard back, or the shard never had an owner
    epoch: int = 0  # of the owner; 0 where there is none
    until_ns: int = 0  # the billing instant up to which, exclusive, the owner may act
    position: int = 0  # of the newest whole batch; 0 where there is none


class Backend(Protocol):
    """One kind of log, with its settings, as the rest of the daemon uses it."""

    @property
    def node(self) -> str:
        """The name of this host among those that share the log; "" where no other host can own a shard."""

    @property
    def cluster(self) -> str:
        """The identity of a log that hosts share, the same on all of them, once `prepare` has returned; else ""."""

    @property
    def grant_ns(self) -> int:
        """How long an owner may still live after its last record; 0 where no other host can own a shard."""

    def signs(self) -> dict[int, LastSign]:
        """Returns the last sign of each shard's owner; empty where no other host can own a shard.

        Raises Unavailable, Unfit, Unknown.
        """

    def settings_of_worker(self) -> dict[str, Any]:
        """Returns the settings for a worker process, with what this process has seen of other owners."""

    def journal(self, shard: int, now_ns: Callable[[], int], line_ns: Callable[[], int] | None = None) -> Journal:
        """Returns the journal of a shard, not open yet.

        `now_ns`: billing time; 0 before it has begun. `line_ns`: the billing instant that the clock shows, also where
        `now_ns` stands still until the clock has caught up with it; grants are counted from `line_ns`, so that none
        lasts longer than it says. None: `now_ns` serves for both.
        """

    def map_log(self, now_ns: Callable[[], int]) -> MapLog:
        """Returns the map's log, not loaded yet."""

    def reader(self, shard: int) -> Reader:
        """Returns a reader of a shard's log, or of the map's where `shard` is 0. Raises Absent where there is none."""

    def holds(self, shard: int) -> bool:
        """Returns whether a shard's log was ever begun; one that was opened and got no batch may count as not begun.

        Raises Unavailable, Unknown.
        """

    def prepare(self) -> list[str]:
        """Checks whether the log is fit, before anything starts. Returns warnings. Raises Unfit, Unavailable."""
