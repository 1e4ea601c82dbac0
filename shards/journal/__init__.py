"""The journal seam: the operations by which a shard makes its batches durable, and the errors of these operations.

A journal is a sequence of opaque payloads, numbered 1, 2, 3 … without a gap. The number is the *position*; one payload
is one batch, written and made durable as a whole or not at all. 0 is the position before the first one. Beside the
sequence it keeps snapshots: a position and opaque chunks that stand for everything up to and including that position.

What holds for every backend (the contract suite of `tests/shards/journal/contract.py` is this paragraph as code):

1. One owner. `open` raises the epoch durably before it returns; an older owner can append nothing afterwards. A backend
   that can tell that the older owner still lives may refuse the newer one instead. Either way the loser gets `Fenced`.
2. Durable on return. When `append` returns a position, that payload and all before it survive the loss of power
   (under `sync="always"`; "interval" and "never" weaken exactly this sentence, and only for the loss of power,
   and not for what was appended with `durable`).
3. One at a time. There is never more than one `append` under way, and the next begins after the last returned. So an
   existing batch proves that all before it were durable: thereby damage is told from an unfinished write.
4. Whole or refused. `open` finds every batch that was ever returned, in order and unchanged, or raises. A batch that
   never returned is found whole or not at all; from then on it stays what `open` found.
5. All that `open` and `replay` show is durable, also where a cache holds more: what might not be is written anew
   before `open` returns.
6. A failed write ends it. After `Unknown` or `Fenced` every further call but `close` raises the same again: a write
   or a sync is never repeated on a disk that failed once. Reopening looks at what is really there.
7. No room is not damage. `Unavailable` means: surely not written, and the same call may succeed later.
8. Time is granted. No instant at or after `granted_ns` may be used for a command, a read or a cutoff, and none before
   `Opened.began_ns`: so every billing instant of a shard belongs to one epoch. A backend whose older owner cannot live
   on beside a newer one grants all time there is.

Nothing above this seam knows of files, segments, offsets, directories or servers; the errors carry them as evidence for
people only, and what is told about a failure is the error's own text. `backends.open` makes a backend by its kind:
`file` keeps journals in local files, `jetstream` on a majority of servers.

Beside a shard's journal a backend has two more things: a `Reader`, which owns nothing and fences nothing, for the
doctor, dumps, backups and followers; and the `MapLog`, in which the supervisor decides the owners of buckets.

Threads: `append` and `idle_barrier` belong to one thread, which they block (the GIL is free meanwhile). `save_snapshot`
and `trim` may run in one other thread at the same time, `first`, `replay` and its iterator in a third one, as long as
nothing is trimmed that the iterator has yet to yield. Everything else is called while none of these is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

from shards import exits

__all__ = [
    "ALL_TIME_NS",
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
    "Torn",
    "Unavailable",
    "Unfit",
    "Unknown",
]

ALL_TIME_NS = (1 << 63) - 1  # what is granted where no newer owner can exist beside an older one


class JournalError(Exception):
    """Something is wrong with the journal. The class says what may be done about it, the rest is evidence.

    file: the file concerned, or "". offset: byte offset in it, or -1. position: batch concerned, or -1.
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
    """Another owner holds or has taken this shard. Nothing was written. Terminal for this journal object."""

    ending = exits.AGAIN


class Unavailable(JournalError):
    """Surely not written, and nothing is broken: no room, or the backend cannot be reached. Try again later."""

    ending = exits.UNREACHABLE


class Full(Unavailable):
    """Surely not written: a limit of the log leaves no room for it. A smaller record may still fit."""


class Unknown(JournalError):
    """The backend failed under a call: what was asked may or may not be there. Terminal: reopen and look."""


class Lost(Unknown):
    """The connection, or an answer beyond its deadline, is lost: terminal for this object, but nothing is broken. Any
    process that reaches the log may reopen it."""

    ending = exits.AGAIN


class Unfit(JournalError):
    """The place or the settings of the log are not fit for one, each fault named with its remedy. Nothing was changed;
    the configuration must change first."""

    ending = exits.CONFIG


class Absent(JournalError):
    """The place that was named holds no such log, and nothing says that it ever did: the name is wrong."""

    ending = exits.CONFIG


class Gap(JournalError):
    """Batches that must be there are missing as a whole: a file is gone, or was replaced by an older one."""

    ending = exits.DAMAGED


class Torn(JournalError):
    """The last batch is unfinished and was never answered. `open` settles this itself and mentions it in `warnings`;
    it is raised only by readers that may change nothing."""

    ending = exits.DAMAGED


class Corrupt(JournalError):
    """Bytes that had been durable are damaged. Nothing was changed; a person has to look."""

    ending = exits.DAMAGED


class OtherFormat(Corrupt):
    """Sound bytes of a format that this version does not read: another version wrote them. Nothing was changed."""

    ending = exits.CONFIG


class Overtaken(JournalError):
    """Another decided first: the map's log is at `version`. Nothing was written: load the new records, look again."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the map has been changed meanwhile: it is at version {version}", position=version)
        self.version = version


class Opened(NamedTuple):
    """What `open` found: the epoch of this ownership (from 1, above any before), the last position (0: none), and the
    first billing instant that belongs to this epoch (0: any)."""

    epoch: int
    head: int
    began_ns: int


class Snapshot(NamedTuple):
    """A loaded snapshot: replay goes on at `position` + 1. The chunks come verified, in the order they were saved."""

    position: int
    chunks: Iterator[bytes]
    chunk_count: int = 0  # 0 where the backend does not know it before they are read


class Medium(NamedTuple):
    """Where a log is kept and how it fares there, for people: as of the last look at it, and of the last record."""

    leader: str = ""  # the server that leads it; "" where none does, as far as was seen
    used_bytes: int = -1  # of the log without its snapshots: what counts against the limit; -1: it is not told
    limit_bytes: int = 0  # what the log may take; 0: it has no limit of its own
    round_trip_ns: int = 0  # from sending the last record to its acknowledgement; 0: none was sent


class Retained(NamedTuple):
    """A snapshot that is kept: it stands for everything up to `position`, where the log's chain is `chain`; its chunks
    may hold effects up to position `reached`."""

    position: int
    chain: int
    reached: int


class Journal(Protocol):
    """One shard's journal. Call order: open · load_snapshot · replay · then append, idle_barrier, snapshots · close."""

    @property
    def head(self) -> int:
        """Position of the last batch; 0 when there is none."""

    @property
    def first(self) -> int:
        """Position of the oldest batch that can be replayed; head + 1 when there is none."""

    @property
    def last_time_ns(self) -> int:
        """Time stamp of the last batch, in ns of the clock passed in; never decreases; 0 before the first."""

    @property
    def stored_bytes(self) -> int:
        """Bytes taken on the medium by batches and snapshots together."""

    @property
    def no_room(self) -> str:
        """Why soon `append` will raise Unavailable: room for coming batches was looked for in vain. "": there is room.

        `append` and `idle_barrier` look again. To be asked while neither is under way.
        """

    @property
    def medium(self) -> Medium:
        """Where the log is kept, for people. May be asked from any thread."""

    @property
    def granted_ns(self) -> int:
        """The billing instant up to which, exclusive, this owner may act. May be asked from any thread."""

    @property
    def beat_s(self) -> float:
        """`idle_barrier` is to be called at least so often, or the grant runs out; 0: only after an append."""

    @property
    def warnings(self) -> list[str]:
        """What an operator should hear about, in English: a torn tail that was cut, a snapshot passed over, a tmpfs."""

    def open(self, shard: int, owner: str) -> Opened:
        """Take the shard for this owner (a name for people, at most 64 bytes of UTF-8), fencing all older ones durably.

        Raises Fenced (another owner lives, or may live still: try again), Unavailable (no room, or out of reach; try
        again), Unfit, Unknown, Gap, Corrupt.
        """

    def append(self, payload: bytes, durable: bool = False) -> int:
        """Append one batch (at least 1 byte) and return its position, durable per the sync mode. Blocks.

        durable: it and all before it are synced, whatever the mode. Raises Unavailable (surely not written, the journal
        goes on), Unknown or Fenced (terminal), ValueError (size).
        """

    def idle_barrier(self) -> None:
        """Put on record that the last batch was durable, so that damage to it can never pass for a torn write.

        To be called about 50 ms after the last append, and every `beat_s`, from the thread that appends; does nothing
        where nothing is due. It also renews the grant, and prepares room for coming appends. Takes no position, is
        never replayed. Raises as append does.
        """

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(position, payload) from position `start` (>= 1) to the head at this call, contiguous, every link verified.

        Raises Gap (start was trimmed, or lies beyond head + 1), Corrupt, Unknown (read error).
        """

    def save_snapshot(self, position: int, chunks: Iterable[bytes]) -> None:
        """Store a snapshot atomically: on return it is durable and read back; before, the older ones stand untouched.

        `position`: everything up to it is contained in the chunks; 0 <= position <= head, and not lower than that of
        the last one saved. A chunk may already hold effects of later batches (it says so itself, above this seam) but
        must not be yielded before `append` has returned for all that it holds. Chunks are taken one at a time, so the
        iterator may wait. If it raises, nothing is stored and the exception passes through.
        Raises Unavailable (no room, nothing stored), Unknown (terminal), ValueError (position).
        """

    def load_snapshot(self) -> Snapshot | None:
        """The snapshot that `open` chose: the newest good one from which the sequence is whole. None: replay from 1."""

    def trim(self, position: int) -> None:
        """Allow everything up to `position` to be forgotten: at most the position of the newest durable snapshot.

        The backend keeps what it needs to fall back to the snapshot before. Raises ValueError beyond it, Unknown.
        """

    def close(self) -> None:
        """Leave a mark of a clean stop and give the shard back; after an error only give it back. May be repeated."""


class Reader(Protocol):
    """One shard's log, or the map's (shard 0), for those who only look. It may be read while its owner goes on.

    What it shows may not be durable yet where the owner is still at it: who acts on it asks the owner how far it is.
    """

    @property
    def first(self) -> int:
        """Position of the oldest batch there is; head + 1 where there is none."""

    @property
    def head(self) -> int:
        """Position of the newest whole batch, as far as can be seen now; 0: none."""

    def replay(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(position, payload) from `start` (>= 1) to the head at this call, contiguous, every link verified.

        Raises Gap (`start` is not there any more, or lies beyond head + 1), Corrupt, Unknown (cannot be read).
        """

    def snapshots(self) -> list[Retained]:
        """The snapshots that are whole, oldest first. Raises Unknown."""

    def chunks(self, position: int) -> Iterator[bytes]:
        """The chunks of the snapshot at this position, verified. Raises Gap (there is none), Corrupt, Unknown."""

    def close(self) -> None:
        """Gives back what reading needed. May be repeated."""


class MapLog(Protocol):
    """The log of decisions about the owners of buckets. Versions are positions; a payload is one decision. Any
    supervisor may write: a decision names the version it was made at, and is refused where that is not the newest any
    more.
    """

    @property
    def version(self) -> int:
        """The newest version that was loaded or decided here."""

    @property
    def warnings(self) -> list[str]:
        """What an operator should hear about after `load`."""

    def is_newest(self) -> bool:
        """Whether nothing was decided elsewhere since the last `load` or `decide` here. Raises Unavailable, Unknown."""

    def load(self, owner: str) -> tuple[int, list[bytes]]:
        """(version, everything that was decided, in order); the first may be what `compact` left. May be repeated after
        Unavailable and Overtaken. Raises Fenced, Unavailable, Unfit, Unknown, Gap, Corrupt.
        """

    def follow(self, callback: Callable[[int, bytes], None]) -> None:
        """`callback(version, payload)` for each decision that `decide` or a later `load` here did not itself make."""

    def decide(self, version: int, payload: bytes) -> int:
        """Write a decision that was made knowing everything up to `version`; durable on return. Its own version.

        Raises Overtaken (nothing written), Unavailable (surely not written), Unknown, Fenced.
        """

    def compact(self, version: int, payload: bytes) -> None:
        """`payload` stands for everything up to `version`, which may be forgotten. Raises Unavailable, Unknown."""

    def close(self) -> None:
        """Leaves a mark of a clean stop, and gives the log back. May be repeated."""


class LastSign(NamedTuple):
    """The newest record of a shard's journal, as a sign of its owner's life."""

    sequence: int  # moves with every record; 0 where there is none
    is_given_up: bool  # the owner has given the shard back, or there never was one
    epoch: int = 0  # of the owner; 0 where there is none
    until_ns: int = 0  # the billing instant up to which the owner was granted time
    position: int = 0  # of the newest whole batch; 0 where there is none


class Backend(Protocol):
    """One kind of log, with its settings: what the rest of the daemon has of it."""

    @property
    def node(self) -> str:
        """The name of this host among those that share the log; "" where no other host can own a shard of it."""

    @property
    def cluster(self) -> str:
        """Which log it is, where hosts share one: known after `prepare`, the same on all of them; else ""."""

    @property
    def grant_ns(self) -> int:
        """How long an owner that is not heard of may still be alive; 0 where no other host can own a shard."""

    def signs(self) -> dict[int, LastSign]:
        """The last sign of every shard's owner; empty where no other host can own one. Raises Unavailable, Unknown."""

    def settings_of_worker(self) -> dict[str, Any]:
        """The settings as a worker process takes them: with what was seen here of other owners."""

    def journal(self, shard: int, now_ns: Callable[[], int], line_ns: Callable[[], int] | None = None) -> Journal:
        """The journal of a shard, not open yet. `now_ns`: billing time, 0 before it has begun. `line_ns`: what the
        clock says, where billing time may stand still until that has come to it; grants are counted from there, so
        that they last no longer than they say. None: as `now_ns`.
        """

    def map_log(self, now_ns: Callable[[], int]) -> MapLog:
        """The map's log, not loaded yet."""

    def reader(self, shard: int) -> Reader:
        """What a shard's log holds, or the map's where `shard` is 0. Raises Gap (there is none), Corrupt, Unknown."""

    def holds(self, shard: int) -> bool:
        """Whether a shard's log was ever begun, whatever is in it. Raises Unavailable, Unknown."""

    def prepare(self) -> list[str]:
        """Before anything starts: looks whether the log is fit, and returns warnings. Raises Unfit, Unavailable."""
