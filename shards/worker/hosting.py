"""What an application must be able to do, to be run by workers: besides its `shards.machine.Machine`, doors and calls.

The worker never looks inside; it hands over sockets, notices and an operator's questions.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shards.buckets import BucketMap
from shards.journal import Journal
from shards.machine import Command, Effect, Machine
from shards.moves.handoff import Calls
from shards.replies import Unavailable
from shards.shard import Shard


class ServedShard(Protocol):
    """What an application has of the worker that hosts it. A caller is a connection, or stands for one."""

    shard_id: int
    shard: Shard
    journal: Journal
    map: BucketMap

    def now_ns(self) -> int:
        """The billing instant of this turn of the loop."""

    def fresh_now_ns(self) -> int:
        """The billing instant, read anew."""

    def may_act(self) -> bool:
        """Whether the journal's grant of time holds at this very moment."""

    def arrived(self) -> None:
        """Requests have just been read: none of them is stamped with an instant before that."""

    def bucket_of(self, key: bytes) -> int:
        """The bucket a key hashes to."""

    def submit(self, caller: Any, token: Any, bucket_id: int, command: Command) -> None:
        """Carries out a command here or at its owner; the reply comes to `caller` once it is durable."""

    def before_turn(self, work: Callable[[], None]) -> None:
        """Calls `work` once, at the beginning of the worker's next turn, which comes soon."""

    def submit_all(self, requests: Sequence[tuple[Any, Any, int, Command]]) -> None:
        """The same for commands that were read together, (caller, token, bucket id, command) each, in their order."""

    def read(self, caller: Any, token: Any, bucket_id: int, query: Command) -> None:
        """Answers a query about one bucket, here or at its owner."""

    def operate(self, caller: Any, token: Any, operation: Command) -> None:
        """Answers a question about the whole daemon, or carries out an operator's wish."""

    def report(self, reports: Sequence[tuple[int, Command]], now_ns: int) -> list[object]:
        """Applies what became of things told outside, (bucket id, command) each, at a billing instant that was read in
        this turn; no other instant depends on it. Returns the replies.
        """

    def apply(self, bucket_id: int, command: Command) -> object:
        """Applies a command that no client waits for."""

    def when_durable(self, function: Callable[[], None]) -> None:
        """Calls back when all that was recorded until now is durable."""

    def wake(self) -> None:
        """Lets the worker's next turn come."""

    def fail(self, error: BaseException) -> None:
        """Ends the worker with the exit code that the error asks for."""


class Application(Calls, Protocol):
    """What an application gives the worker."""

    surveys: frozenset[str]  # operations that every shard answers and `merge` joins

    questions: frozenset[str]  # operations that the application of the worker which is asked answers, by `answer`

    query_mode: int  # how `encode` is to encode replies to the supervisor's side

    @property
    def machine(self) -> Machine:
        """The content of the buckets."""

    def encode(self, msgid: int, mode: int, reply: object) -> bytes:
        """A whole reply as a client of that mode reads it; also of the reply types of `shards`."""

    def route(self, operation: Command, bucket_map: BucketMap) -> object:
        """The bucket map as a smart client gets it."""

    def merge(self, operation: Command, parts: list[Any]) -> object:
        """One reply out of the answers of all shards that were asked in a survey."""

    def lacking(self, operation: Command, why: Unavailable) -> object:
        """The reply to a survey of all shards, one of which has no answer."""

    def unknown_shard(self, shard_id: int, known: list[int]) -> object:
        """The reply to who asks for a shard that is not there."""

    def answer(self, bucket_id: int, query: Command, done: Callable[[object], None]) -> None:
        """Answers a query that the machine left for later; `done(reply)` may come at any time, once."""

    def committed(self, position: int, payload: bytes) -> None:
        """The batch at this position of the journal is durable. What it holds was answered a moment ago, in this same
        turn of the loop: nobody can have asked anything since.
        """

    def tell(self, notices: list[Effect]) -> None:
        """Takes what is to be told outside; all that it tells is durable."""

    def renewed(self) -> None:
        """The journal's grant of time had run out, and holds again: what was not begun meanwhile may be begun."""


class Hosted(Application, Protocol):
    """An application as a process needs it: besides what the worker asks, doors that open and close."""

    async def open(self, worker: ServedShard, listeners: list[tuple[str, socket.socket]]) -> None:
        """Starts answering and telling."""

    async def stop_listening(self) -> None:
        """No new connections, no new requests; what is in flight goes on."""

    async def end_followers(self) -> None:
        """Lets whoever follows the journal take in what was committed, and ends them; nothing is committed any more."""

    async def close(self) -> None:
        """Closes connections after what was answered has left, and stops telling."""

    def reply_of(self, plain: object) -> object:
        """What the supervisor answered, as a reply for clients."""

    def replay_failed(self, error: BaseException) -> bool:
        """Whether an error of the machine means damaged data rather than a bug."""

    def trim_floor(self) -> int:
        """The journal's position up to which the application needs nothing of it any more."""

    def obstacle(self) -> str:
        """Why a shard without buckets cannot go yet, for want of what the application makes of its journal; empty where
        it can. Asked again and again: what can be hastened is.
        """

    def configure(self, configuration: bytes) -> None:
        """Takes up a changed configuration, in what may change while it serves."""

    def examine(self, bucket_id: int) -> None:
        """Raises AssertionError, which says what, where the content of a bucket does not agree with itself."""

    def figures(self) -> dict[str, Any]:
        """Counters for the operator, as plain data."""
