"""The NATS protocol as the client speaks it: every event, cut anywhere, and everything that is none."""

from __future__ import annotations

import pytest

from shards.journal.jetstream import codec
from shards.journal.jetstream.codec import Decoder, Failure, Info, Message, Ping, Pong, ProtocolError

EVENTS = [
    (b'INFO {"version":"2.15.1","jetstream":true}\r\n', Info({"version": "2.15.1", "jetstream": True})),
    (b"PING\r\n", Ping()),
    (b"pong\r\n", Pong()),
    (b"-ERR 'Authorization Violation'\r\n", Failure("Authorization Violation")),
    (b"MSG _IN.x.1 1 5\r\nhello\r\n", Message("_IN.x.1", 0, {}, b"hello")),
    (b"MSG _IN.x.1 1 reply.to 2\r\n\r\n\r\n", Message("_IN.x.1", 0, {}, b"\r\n")),
    (b"MSG a 1 0\r\n\r\n", Message("a", 0, {}, b"")),
    (b"HMSG a 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", Message("a", 503, {}, b"")),
    (
        b"HMSG a 1 r 48 50\r\nNATS/1.0 204 EOB\r\nNats-Sequence: 7\r\nA:\tb : c\r\n\r\nhi\r\n",
        Message("a", 204, {"Nats-Sequence": "7", "A": "b : c"}, b"hi"),
    ),
]


@pytest.mark.parametrize(("data", "event"), EVENTS)
def test_each_event_is_decoded_however_it_is_cut(data: bytes, event: codec.Event) -> None:
    for cut in range(len(data) + 1):
        decoder = Decoder()
        assert decoder.feed(b"+OK\r\n" + data[:cut]) + decoder.feed(data[cut:]) == [event]


def test_events_come_in_the_order_they_were_sent_byte_by_byte() -> None:
    decoder = Decoder()
    events = [event for data, _ in EVENTS for byte in data for event in decoder.feed(bytes([byte]))]
    assert events == [event for _, event in EVENTS]


@pytest.mark.parametrize(
    "data",
    [
        b"HELLO there\r\n",
        b"INFO nothing\r\n",
        b"MSG a 1\r\n",
        b"MSG a 1 -5\r\n",
        b"MSG a 1 99999999999\r\n",
        b"MSG a 1 r x 5\r\n",
        b"HMSG a 1 9 5\r\n",
        b"MSG a 1 2\r\nhello\r\n",
        b"HMSG a 1 12 12\r\nHTTP/1.0\r\n\r\n\r\n",
        b"HMSG a 1 18 18\r\nNATS/1.0\r\nabcd\r\n\r\n\r\n",
        b"x" * (codec.LINE_BYTES_MAX + 1),
    ],
)
def test_what_is_not_the_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(data)


def test_what_is_sent_is_as_the_protocol_has_it() -> None:
    assert codec.publish("J.1", "_IN.1", b"hi", {}) == b"PUB J.1 _IN.1 2\r\nhi\r\n"
    sent = codec.publish("J.1", "_IN.1", b"hi", {"Nats-Expected-Last-Sequence": "7"})
    assert sent == b"HPUB J.1 _IN.1 44 46\r\nNATS/1.0\r\nNats-Expected-Last-Sequence: 7\r\n\r\nhi\r\n"
    assert codec.subscribe("_IN.*", 1) == b"SUB _IN.* 1\r\n"
    assert codec.connect({"verbose": False}) == b'CONNECT {"verbose":false}\r\n'
