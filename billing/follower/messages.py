"""The messages between a worker and a follower over a `shards.system.links.Wire`.

A message is an array: its number, then its fields in the order of the class. `Batch(position=7, payload=b"…")` is `[1,
7, b"…"]`. Each end decodes with the union of the messages that it accepts; anything else is a protocol error and ends
the connection. Both ends have the same version: a worker starts its followers from its own program.

The types of fields annotated `Any` are defined by the kind of follower; arrays in them arrive as lists.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec

ANSWER_TIMEOUT_S: Final = 7.0  # a worker waits so long; clients time out after 10 s: they get the reason before that


class Message(msgspec.Struct, frozen=True, array_like=True):
    """The base of all messages."""


# -- worker → follower ------------------------------------------------------------------------------------------------


class Open(Message, frozen=True, tag=0):
    """The first message but for LogLevel: open the file of this shard."""

    directory: str
    shard_id: int
    first: int  # the first batch that the journal holds
    head: int  # the last one
    suspect: bool  # the process before ended on a disk error or on damage
    options: tuple[Any, ...]  # settings of the kind


class Batch(Message, frozen=True, tag=1):
    """The next batch; the first one is at the position after that of Opened."""

    position: int
    payload: bytes


class Ask(Message, frozen=True, tag=2):
    """A question; the follower replies with Answer or Refused."""

    number: int
    question: tuple[Any, ...]  # defined by the kind


class Close(Message, frozen=True, tag=3):
    """Commit, make durable, and end. A closed connection means the same."""


class Settle(Message, frozen=True, tag=4):
    """Commit and prove the file now."""


class Ping(Message, frozen=True, tag=5):
    """Send Reached at once: the worker has heard nothing for a while."""


class LogLevel(Message, frozen=True, tag=6):
    """From now on, send log records of this level and above: those that the log of whoever started the process takes.
    Sent before any other message, and whenever the level changes.
    """

    level: int


# -- follower → worker ------------------------------------------------------------------------------------------------


class Opened(Message, frozen=True, tag=16):
    """The file is open."""

    position: int  # the last batch in it
    remarks: list[str]  # for the operator's log


class Reached(Message, frozen=True, tag=17):
    """The progress of the file."""

    position: int  # the last committed batch
    payload_bytes: int  # payload received since the process started, committed or not
    durable: int  # the last proved batch
    owes: int  # the tasks that the follower must still finish before its shard may leave


class Answer(Message, frozen=True, tag=18):
    """The answer to the question with this number."""

    number: int
    answer: Any


class Refused(Message, frozen=True, tag=19):
    """The question with this number cannot be answered now."""

    number: int
    reason: str


class Failed(Message, frozen=True, tag=20):
    """The last message of a follower that ends with a failure."""

    code: int  # the exit code
    reason: str


class Remark(Message, frozen=True, tag=22):
    """A text for the operator's log."""

    text: str


class Told(Message, frozen=True, tag=21):
    """Figures for the operator."""

    figures: dict[str, Any]


class Logged(Message, frozen=True, tag=23):
    """A record of the process's own log; the process writes to no log itself."""

    level: int
    logger: str
    template: str  # unformatted, as in the source: the advice for operators is looked up by it
    values: tuple[Any, ...]


ToFollower = Open | Batch | Ask | Close | Settle | Ping | LogLevel
ToWorker = Opened | Reached | Answer | Refused | Failed | Told | Remark | Logged

to_follower: Final = msgspec.msgpack.Decoder(ToFollower).decode
to_worker: Final = msgspec.msgpack.Decoder(ToWorker).decode


def log_level() -> LogLevel:
    """Returns the message about the log level of this process."""
    return LogLevel(logging.getLogger().level)


def follow_level(message: LogLevel) -> None:
    """Sets the log level of this process to that of whoever started it."""
    logging.getLogger().setLevel(message.level)


def hand_on(message: Logged) -> None:
    """Passes a record of a follower's log to the logging of this process."""
    logger = logging.getLogger(message.logger)
    if logger.isEnabledFor(message.level):
        record = (message.logger, message.level, "", 0, message.template, message.values, None)
        logger.handle(logger.makeRecord(*record))
