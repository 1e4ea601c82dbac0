"""What the publisher says of a message that was surely not written, by why it was not."""

from __future__ import annotations

from typing import cast

import pytest

from shards.journal import Unavailable
from shards.journal.jetstream.connection import Denied, Unreachable
from shards.journal.jetstream.publisher import PATIENCE_S, Publisher
from shards.journal.jetstream.streams import NotNow, Stream


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
