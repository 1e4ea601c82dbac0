"""Questions of the supervisor's side to the application in a worker, over the control wire.

The supervisor serves no request; but only the workers know the details that it shows to operators (an account, owed
cutoffs, coming cutoffs). It asks any serving worker, which treats the question like a client's: it answers for its own
buckets, passes others on, and lets nothing leave that is not durable. An answer is a whole reply as the application
encodes it, in which the number of the question stands where a client's message id would.

It carries out questions only: a command has no way through here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from shards.control import QueryReply
from shards.machine import Command
from shards.replies import Unavailable
from shards.system.links import Wire


class Asked(Protocol):
    """The worker, which answers."""

    def bucket_of(self, key: bytes) -> int:
        """The bucket a key hashes to."""

    def read(self, caller: Any, token: Any, bucket_id: int, query: Command) -> None:
        """Answers a query about one bucket."""

    def operate(self, caller: Any, token: Any, operation: Command) -> None:
        """Answers a question about the whole daemon."""


class QueryCaller:
    """The caller that stands for the supervisor in a worker."""

    def __init__(
        self, wire: Wire, encode: Callable[[int, int, object], bytes], surveys: frozenset[str], mode: int
    ) -> None:
        """`encode(number, mode, reply)`, `surveys` and `mode` are those of the application."""
        self.mode = mode
        self._wire = wire
        self._encode = encode
        self._surveys = surveys
        self._staged: list[bytes] = []

    def ask(self, worker: Asked, number: int, key: bytes, query: Command) -> None:
        """Puts a question about the account `key`; with an empty key, about the whole daemon."""
        if key:
            worker.read(self, number, worker.bucket_of(key), query)
        elif query[0] in self._surveys:
            worker.operate(self, number, query)
        else:
            self.relay(self._encode(number, self.mode, Unavailable(0, f"{query[0]} is not asked this way", "no")))

    def answer(self, token: int, reply: object) -> None:
        """Stages a reply until the next `flush`."""
        self._staged.append(self._encode(token, self.mode, reply))

    def flush(self) -> None:
        """Sends the staged replies."""
        staged, self._staged = self._staged, []
        for data in staged:
            self.relay(data)

    def relay(self, data: bytes) -> None:
        """Sends a reply that another worker encoded, and that is durable there."""
        self._wire.send(QueryReply(data))

    def relay_flush(self) -> None:
        """Does nothing: relayed replies are sent at once."""

    def refuse(self, token: int, reply: object) -> None:
        """Sends a reply at once that depends on no stored state."""
        self.relay(self._encode(token, self.mode, reply))
