"""The interface between a shard and the application: the state machine in each bucket.

A shard knows buckets, records and instants; it never looks inside a bucket. An application gives it a `Machine`: a
deterministic state machine per bucket. The same state and the same command at the same instant give the same outcome,
byte for byte, and `replay` checks just that. A machine reads no clock, touches no file and waits for nothing.

A machine adds its outputs to two lists: `records`, which the journal must hold before any reply leaves, and `notices`,
which are sent to the outside after that. The shard empties these lists; they stay the same objects.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, Protocol

Command = tuple[Any, ...]
Record = tuple[int, bytes]  # (bucket id, body); the body belongs to the machine
Effect = tuple[Any, ...]  # (kind, depends_ns, bucket id, …); depends_ns: see `Shard.take_early`


class Later(NamedTuple):
    """The reply of a machine to a query that it cannot answer from memory, or not at once. The application answers
    `query` instead, see `Hosted.answer`.
    """

    query: Command


ALL_BUCKETS = 0  # the bucket id of a query for later that concerns all buckets


class Machine(Protocol):
    """The state machine of one shard: the content of all its buckets."""

    records: list[Record]
    notices: list[Effect]

    def apply(self, bucket_id: int, command: Command, now_ns: int) -> object:
        """Carries out a command at its instant and returns the reply; a refusal is a reply, too."""

    def read(self, bucket_id: int, query: Command, now_ns: int) -> object:
        """Answers a query about one bucket; may first record what time has made due."""

    def survey(self, query: Command, now_ns: int) -> object:
        """Answers a query about all buckets of this shard, with plain data that can be merged with that of other
        shards, or `Later`.
        """

    def due(self, now_ns: int, limit: int) -> bool:
        """Carries out what is due by now, at most `limit` steps; returns True where more is due."""

    def next_due_ns(self) -> int:
        """The next instant at which `due` has something to do; -1 where there is none."""

    def bucket_due_ns(self, bucket_id: int, until_ns: int) -> int:
        """The next due instant of one bucket, up to `until_ns`; -1 where there is none."""

    def replay(self, bucket_id: int, body: bytes) -> None:
        """Applies a recorded command again; raises where the outcome differs from the recorded one."""

    def start(self, now_ns: int) -> None:
        """Begins service at this instant, after recovery. Called once, before the first `arm`, `apply`, `read` or
        `due`.
        """

    def arm(self, bucket_id: int) -> None:
        """Starts the timers of a bucket that was created, loaded or replayed."""

    def arming(self, bucket_id: int) -> Iterator[None]:
        """`arm` in slices: the bucket may be served from the first one on."""

    def disarm(self, bucket_id: int) -> None:
        """Stops the timers of a bucket: nothing in it becomes due until `arm`."""

    def create(self, bucket_id: int) -> None:
        """Makes an empty bucket."""

    def dump(self, bucket_id: int) -> bytes:
        """Returns the whole bucket as one block of bytes; equal states give equal bytes."""

    def dumping(self, bucket_id: int) -> Generator[None, None, bytes]:
        """`dump` in slices; the bucket is disarmed, and nothing changes it until the last slice."""

    def load(self, bucket_id: int, block: bytes) -> None:
        """Creates the bucket from a block that `dump` made; its timers are stopped until `arm`."""

    def loading(self, bucket_id: int, block: bytes) -> Generator[None, None, object]:
        """The first half of `load`, in slices: decodes `block` into what `put` takes."""

    def put(self, bucket_id: int, content: Any) -> None:
        """The second half of `load`: makes the decoded bucket part of the machine."""

    def drop(self, bucket_id: int) -> None:
        """Deletes a bucket."""

    def dropping(self, bucket_id: int) -> Iterator[None]:
        """`drop` in slices; the bucket is gone after the first one."""
