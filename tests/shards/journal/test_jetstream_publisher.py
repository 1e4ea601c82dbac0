"""What the publisher says of a message that was surely not written, by why it was not."""

from __future__ import annotations

from typing import cast

import pytest

from shards.journal import Lost, Unavailable
from shards.journal.jetstream.connection import Denied, NoAnswer, Unreachable
from shards.journal.jetstream.publisher import PATIENCE_S, Publisher
from shards.journal.jetstream.streams import NotNow, Stored, Stream, Superseded


class FailingStream:
    """A stream at which each publication fails alike; a pause takes the time that the publisher has patience for."""

    name = "J-1"

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.tried = 0
        self.now_ns = 1
        self.connection = self

    def publish(self, subject: str, message: bytes, expected: int) -> int:
        self.tried += 1
        raise self.error

    def pause(self, seconds: float) -> None:
        self.now_ns += int(PATIENCE_S * 10**9)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Unreachable("nobody answers at nats://a:4222"), "the log cannot be reached: nobody answers at nats://a:4222"),
        (NotNow("no leader"), "the log cannot be reached: no leader"),
        (
            Denied("nats://a:4222: 'Permissions Violation for Publish to \"J.1\"'"),
            "the log's servers do not let this host in: nats://a:4222: 'Permissions Violation for Publish to \"J.1\"'",
        ),
    ],
)
def test_what_was_surely_not_written_is_unavailable_with_its_reason(error: Exception, text: str) -> None:
    stream = FailingStream(error)
    publisher = Publisher(cast(Stream, stream), 7, lambda: stream.now_ns)
    with pytest.raises(Unavailable) as raised:
        publisher.put("J.1", b"x")
    assert str(raised.value).startswith(text)
    assert stream.tried > 1, "it was tried again first"
    assert publisher.sequence == 7


class DoubtfulStream(FailingStream):
    """It takes a message without an answer, and then cannot be read."""

    def publish(self, subject: str, message: bytes, expected: int) -> int:
        self.tried += 1
        raise NoAnswer("it went away") if self.tried == 1 else Superseded("wrong last sequence", 10071)

    def message(self, sequence: int) -> Stored | None:
        raise self.error


@pytest.mark.parametrize("error", [Unavailable("nobody leads it"), Denied("nats://a:4222 refuses the credentials")])
def test_a_message_that_may_stand_is_not_called_surely_unwritten_where_it_cannot_be_read_back(error: Exception) -> None:
    stream = DoubtfulStream(error)
    publisher = Publisher(cast(Stream, stream), 7, lambda: stream.now_ns)
    with pytest.raises(Lost, match="it is not known whether J-1 took a message: "):
        publisher.put("J.1", b"x")
    assert publisher.sequence == 7
