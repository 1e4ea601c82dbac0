"""The callers of a shard, and the answers to requests that did not reach their bucket.

A reply is staged with `answer` while the batch that it tells of is being written, and leaves with `flush` once that is
durable. A reply that depends on no stored state leaves by `refuse`, which never takes staged replies along.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Caller(Protocol):
    """Where a reply goes: a client's connection, or a link to another worker."""

    def answer(self, token: object, reply: object) -> None:
        """Encodes a reply into the caller's buffer; nothing leaves yet."""

    def flush(self) -> None:
        """Lets the replies that were answered until now leave."""

    def refuse(self, token: object, reply: object) -> None:
        """Sends a reply that depends on no stored state, at once; replies that were answered and not flushed stay
        behind.
        """


class Moving(NamedTuple):
    """The reply where too many requests wait for a bucket that is being moved."""

    bucket_id: int


class WrongBucket(NamedTuple):
    """The reply where this shard does not serve the bucket (at that generation)."""

    bucket_id: int
    shard_id: int


class Unavailable(NamedTuple):
    """The reply where the owner of a bucket cannot be asked, or refuses for now. `applied` is "no" or "unknown"."""

    shard_id: int
    reason: str
    applied: str


Reply = tuple[Caller, object, object]  # caller, token, reply
