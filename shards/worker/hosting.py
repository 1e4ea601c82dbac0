"""What an application must be able to do, to be run by workers: besides its `shards.machine.Machine`, doors and calls.

The worker never looks inside; it hands over sockets, notices and an operator's questions.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from shards.buckets import BucketMap
from shards.machine import Command, Effect, Machine
from shards.moves.handoff import Calls

if TYPE_CHECKING:
    from shards.worker.worker import Worker


class Application(Calls, Protocol):
    """What an application gives the worker."""

    surveys: frozenset[str]  # operations that every shard answers and `merge` joins

    questions: frozenset[str]  # operations that the application of the worker which is asked answers, by `answer`

    @property
    def machine(self) -> Machine:
        """The content of the buckets."""

    def encode(self, msgid: int, mode: int, reply: object) -> bytes:
        """A whole reply as a client of that mode reads it; also of the reply types of `shards`."""

    def merge(self, operation: Command, parts: list[Any]) -> object:
        """One reply out of all shards' answers to a survey."""

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

    async def open(self, worker: Worker, listeners: list[tuple[str, socket.socket]]) -> None:
        """Starts answering and telling."""

    async def stop_listening(self) -> None:
        """No new connections, no new requests; what is in flight goes on."""

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

    def route(self, operation: Command, bucket_map: BucketMap) -> object:
        """What a smart client is told of who owns what."""
