"""What a worker and a follower say to each other over a `shards.system.links.Wire`, as typed messages.

A message is an array: its number, then its fields in the order of the class. `Batch(position=7, payload=b"…")` is
`[1, 7, b"…"]`. Each end decodes with the union of what it may be told; whatever else arrives is no message and ends the
wire. Both ends are of one version: a worker starts its followers from its own program.

Fields whose type is `Any` belong to the kind of follower; arrays in them arrive as lists.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What all messages are."""


# -- worker → follower ------------------------------------------------------------------------------------------------


class Open(Message, frozen=True, tag=0):
    """First of all."""

    directory: str
    shard_id: int
    first: int  # the journal holds the batches from this one
    head: int  # to this one
    suspect: bool  # the process before ended on the disk or on damage
    options: tuple[Any, ...]  # of the kind


class Batch(Message, frozen=True, tag=1):
    """In order, from the position after that of Opened."""

    position: int
    payload: bytes


class Ask(Message, frozen=True, tag=2):
    """A question; answered with Answer or Refused."""

    number: int
    question: tuple[Any, ...]  # as the kind knows it


class Close(Message, frozen=True, tag=3):
    """Commit, make durable, end; so does a closed wire."""


class Settle(Message, frozen=True, tag=4):
    """Commit, and prove it, now."""


class Ping(Message, frozen=True, tag=5):
    """Say how far the file is: whether it answers at all is not known."""


# -- follower → worker ------------------------------------------------------------------------------------------------


class Opened(Message, frozen=True, tag=16):
    """The file is open."""

    position: int  # it ends with this batch
    remarks: list[str]  # for the operator's log


class Reached(Message, frozen=True, tag=17):
    """How far the file is."""

    position: int  # committed up to here
    payload_bytes: int  # so much of payload, in this life of the process
    durable: int  # proved up to here
    owes: int  # so many things are still to be done by this shard's follower


class Answer(Message, frozen=True, tag=18):
    """To the question of that number."""

    number: int
    answer: Any


class Refused(Message, frozen=True, tag=19):
    """The question of that number cannot be answered now."""

    number: int
    reason: str


class Failed(Message, frozen=True, tag=20):
    """The last message of a follower that ends with a failure."""

    code: int  # of its exit
    reason: str


class Remark(Message, frozen=True, tag=22):
    """For the operator's log."""

    text: str


class Told(Message, frozen=True, tag=21):
    """For the operator."""

    figures: dict[str, Any]


class Logged(Message, frozen=True, tag=23):
    """A record of the process's own log, which has no other way out."""

    level: int
    logger: str
    template: str  # as it stands in the program, by which the operator's advice is found
    values: tuple[Any, ...]


ToFollower = Open | Batch | Ask | Close | Settle | Ping
ToWorker = Opened | Reached | Answer | Refused | Failed | Told | Remark | Logged

to_follower: Final = msgspec.msgpack.Decoder(ToFollower).decode
to_worker: Final = msgspec.msgpack.Decoder(ToWorker).decode


def hand_on(message: Logged) -> None:
    """Gives a record of a follower's log to this process's own."""
    logger = logging.getLogger(message.logger)
    if logger.isEnabledFor(message.level):
        record = (message.logger, message.level, "", 0, message.template, message.values, None)
        logger.handle(logger.makeRecord(*record))
