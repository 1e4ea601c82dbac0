"""The journal seam: what a shard needs of the thing that makes its batches durable, and how that thing says no.

A journal is a sequence of opaque payloads, numbered 1, 2, 3 … without a gap. The number is the *position*; one payload
is one batch, written and made durable as a whole or not at all. 0 is the position before the first one. Beside the
sequence it keeps snapshots: a position and opaque chunks that stand for everything up to and including that position.

What holds for every backend (the contract suite of `tests/shards/journal/contract.py` is this paragraph as code):

1. One owner. `open` raises the epoch durably before it returns; an older owner can append nothing afterwards. A backend
   that can tell that the older owner still lives may refuse the newer one instead. Either way the loser gets `Fenced`.
2. Durable on return. When `append` returns a position, that payload and all before it survive the loss of power
   (under `sync="always"`; "interval" and "never" weaken exactly this sentence, and only for the loss of power,
   and not for what was appended with `durable`).
3. One at a time. There is never more than one `append` under way, and the next begins after the last returned. So a
   batch that exists proves that all before it were durable, which is how damage is told from an unfinished write.
4. Whole or refused. `open` finds every batch that was ever returned, in order and unchanged, or raises. A batch that
   never returned is found whole or not at all; from then on it stays what `open` found.
5. What `open` and `replay` show is durable, whatever caches say: what might not be is written anew before `open`
   returns.
6. A failed write ends it. After `Unknown` or `Fenced` every further call but `close` raises the same again: a write
   or a sync is never repeated on a disk that failed once. Reopening looks at what is really there.
7. Disk full is not damage. `Unavailable` means: surely not written, and the same call may succeed later.

Nothing above this seam knows of files, segments or offsets; the errors carry them as evidence for people only.

Threads: `append` and `idle_barrier` belong to one thread, which they block (the GIL is free meanwhile). `save_snapshot`
and `trim` may run in one other thread at the same time, `first`, `replay` and its iterator in a third one, as long as
nothing is trimmed that the iterator has yet to yield. Everything else is called while none of these is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

__all__ = [
    "Corrupt",
    "Fenced",
    "Gap",
    "Journal",
    "JournalError",
    "Opened",
    "OtherFormat",
    "Snapshot",
    "Torn",
    "Unavailable",
    "Unknown",
]


class JournalError(Exception):
    """Something is wrong with the journal. The class says what may be done about it, the rest is evidence.

    file: the file concerned, or "". offset: byte offset in it, or -1. position: batch concerned, or -1.
    """

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


class Unavailable(JournalError):
    """Surely not written, and nothing is broken: no room, or the backend cannot be reached. Try again later."""


class Unknown(JournalError):
    """The disk failed under a call: what was asked may or may not be there. Terminal: reopen and look."""


class Gap(JournalError):
    """Batches that must be there are missing as a whole: a file is gone, or was replaced by an older one."""


class Torn(JournalError):
    """The last batch is unfinished and was never answered. `open` settles this itself and mentions it in `warnings`;
    it is raised only by readers that may change nothing."""


class Corrupt(JournalError):
    """Bytes that had been durable are damaged. Nothing was changed; a person has to look."""


class OtherFormat(Corrupt):
    """Sound bytes of a format that this version does not read: a newer version wrote them. Nothing was changed."""


class Opened(NamedTuple):
    """What `open` found: the epoch of this ownership (from 1, above any before) and the last position (0: none)."""

    epoch: int
    head: int


class Snapshot(NamedTuple):
    """A loaded snapshot: replay goes on at `position` + 1. The chunks come verified, in the order they were saved."""

    position: int
    chunks: Iterator[bytes]


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
    def is_short(self) -> bool:
        """Whether room for coming batches was looked for in vain: soon `append` will raise Unavailable.

        `append` and `idle_barrier` look again. To be asked while neither is under way.
        """

    @property
    def warnings(self) -> list[str]:
        """What an operator should hear about, in English: a torn tail that was cut, a snapshot passed over, a tmpfs."""

    def open(self, shard: int, owner: str) -> Opened:
        """Take the shard for this owner (a name for people, at most 64 bytes of UTF-8), fencing all older ones durably.

        Raises Fenced (another owner lives), Unavailable (no room; try again), Unknown (the disk failed), Gap, Corrupt.
        """

    def append(self, payload: bytes, durable: bool = False) -> int:
        """Append one batch (at least 1 byte) and return its position, durable per the sync mode. Blocks.

        durable: it and all before it are synced, whatever the mode. Raises Unavailable (surely not written, the journal
        goes on), Unknown or Fenced (terminal), ValueError (size).
        """

    def idle_barrier(self) -> None:
        """Put on record that the last batch was durable, so that damage to it can never pass for a torn write.

        To be called about 50 ms after the last append, from its thread; does nothing when nothing was appended since.
        It also prepares room for coming appends. Takes no position, is never replayed. Raises as append does.
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
