"""Requests to one stream: its state, a message, a run of messages, a publish at a sequence, a purge.

Reads are retried until an answer comes, for `patience_s`, and until every server was asked: leaders change, and servers
restart. A publish is sent once; its caller resolves the doubt that is left. Single messages and the state come from the
stream's leader, so they are not older than anything that was acknowledged; runs come from any replica.

A server that has just become the leader of JetStream may not know yet of a stream that exists. So a stream counts as
absent only once servers have said so for `absent_s`, and as many times as there are servers, each time over a
connection to the next one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import msgspec

from shards.journal import Unavailable, Unfit, Unknown
from shards.journal.jetstream.connection import Connection, Denied, NoAnswer, Unreachable

T = TypeVar("T")

API = "$JS.API"
RUN_MESSAGES, RUN_BYTES = 256, 4 << 20  # at most, in one answer to a run
RETRY_S = 0.05
ABSENT_S = 3.0  # how long servers must say that a stream is absent before it counts as absent
NO_ROOM_SHARE = 0.9  # of the stream's limit; the rest is for beats and for records that time causes
EXPECTED = "Nats-Expected-Last-Sequence"

# Errors of JetStream, by their number.
NOT_NOW = frozenset({10008, 10009, 10164})  # no leader at this moment, or another publish is being settled
FULL = frozenset({10002, 10023, 10028, 10047})  # a limit of the account or of a server is reached
NOT_STORED = 10077  # the leader has not stored a message: a limit of the stream was reached, or its storage failed
LIMIT = "maximum"  # is in the description of a limit; where storage failed, the replicas may have stored the message
WRONG_SEQUENCE = 10071
NO_MESSAGE, NO_STREAM = 10037, 10059


class NotNow(Exception):
    """The servers cannot answer at this moment."""


class NoRoom(Exception):
    """A limit of the stream is reached: the message was surely not written."""


class Superseded(Exception):
    """The stream's last sequence is not the expected one: the message was surely not written by this request."""


class Refused(Exception):
    """The servers refuse the request, and would refuse it again. `code`: JetStream's number of the error."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


KEYS = "cluster.credentials_file, cluster.servers"  # concerned where servers refuse this host


@contextmanager
def opening() -> Iterator[None]:
    """Raises the journal's errors for what servers refuse while a log is opened: Denied with the keys concerned, Unfit
    where an operator has to make the streams, otherwise Unknown.
    """
    try:
        yield
    except Denied as error:
        raise Denied(f"{KEYS}: {error}") from error
    except Refused as error:
        if error.code == NO_STREAM:
            raise Unfit(f"there is no stream {error}: make the streams with `billing cluster init`") from error
        raise Unknown(f"the log's servers refuse: {error}") from error


class State(NamedTuple):
    """The state of a stream, according to its leader."""

    first: int  # sequence of the first message; last + 1 where there is none
    last: int
    stored_bytes: int
    config: dict[str, Any]
    cluster: dict[str, Any]


class Stored(NamedTuple):
    """One message of a stream."""

    sequence: int
    subject: str
    payload: bytes


class Stream:
    """One stream, over one connection."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        patience_s: float,
        boot_ns: Callable[[], int],
        absent_s: float = ABSENT_S,
    ) -> None:
        self.connection = connection
        self.name = name
        self.patience_s = patience_s
        self._absent_s = absent_s
        self._boot_ns = boot_ns

    def state(self) -> State:
        """Returns the state of the stream. Raises Unavailable, Refused (NO_STREAM: there is none), Denied."""
        return self._patiently(self.glance)

    def glance(self) -> State:
        """Returns what `state` returns, and asks only once. Raises Unreachable, NoAnswer, NotNow, Refused,
        Denied.
        """
        answer = self._api(f"STREAM.INFO.{self.name}", {})
        state = answer["state"]
        first = state["first_seq"] if state["messages"] else state["last_seq"] + 1
        return State(first, state["last_seq"], state["bytes"], answer["config"], answer.get("cluster") or {})

    def message(self, sequence: int) -> Stored | None:
        """Returns the message at this sequence; None where there is none. Raises what `state` raises."""
        return self._fetch({"seq": sequence})

    def last_of(self, subject: str) -> Stored | None:
        """Returns the newest message of a subject; None where there is none. Raises what `state` raises."""
        return self._fetch({"last_by_subj": subject})

    def run(self, sequence: int) -> list[Stored]:
        """Returns messages from this sequence on, ascending; an empty list where the replica that answers has none yet.
        Raises Unavailable, Denied.
        """

        def ask() -> list[Stored]:
            wish = {"seq": sequence, "batch": RUN_MESSAGES, "max_bytes": RUN_BYTES}
            messages = []
            for answer in self.connection.collect(f"{API}.DIRECT.GET.{self.name}", msgspec.json.encode(wish)):
                if answer.status == 503:
                    raise NotNow("no replica answers")
                if not answer.status:
                    headers = answer.headers
                    messages.append(Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], answer.payload))
            return messages

        return self._patiently(ask)

    def walk(self, sequence: int, last: int) -> Iterator[Stored]:
        """Yields every message from `sequence` to `last`; where messages are missing, the sequence jumps. Raises
        Unavailable, Denied.
        """
        waited_ns = 0
        while sequence <= last:
            messages = self.run(sequence)
            if not messages:  # the replica is behind the leader, or the messages are gone
                waited_ns = waited_ns or self._boot_ns()
                if self._boot_ns() - waited_ns > self.patience_s * 1e9:
                    raise Unavailable(f"sequence {sequence} of {self.name} is not shown by any replica")
                self.connection.pause(RETRY_S)
                continue
            waited_ns = 0
            for stored in messages:
                if stored.sequence > last:
                    return
                yield stored
                sequence = stored.sequence + 1

    def publish(self, subject: str, payload: bytes, expected: int) -> int:
        """Publishes behind the sequence `expected` and returns the new last one. Asks only once.

        Raises Unreachable, NotNow, NoRoom, Superseded, Refused: surely not written by this request. NoAnswer: in doubt.
        Denied.
        """
        answer = self.connection.request(subject, payload, {EXPECTED: str(expected)})
        if answer.status:
            raise NotNow(f"nobody takes messages of {self.name} at this moment")
        return int(self._checked(answer.payload)["seq"])

    def purge(self, below: int) -> None:
        """Deletes all messages below this sequence. Raises Unavailable, Refused, Denied."""
        self._patiently(lambda: self._api(f"STREAM.PURGE.{self.name}", {"seq": below}))

    def create(self, config: dict[str, Any]) -> None:
        """Makes the stream; one with the same settings that exists is left as it is. Raises Unavailable, Refused,
        Denied.
        """
        self._patiently(lambda: self._api(f"STREAM.CREATE.{self.name}", config))

    # -- asking -----------------------------------------------------------------------------------------------------

    def _fetch(self, wish: dict[str, Any]) -> Stored | None:
        def ask() -> Any:
            try:
                return self._api(f"STREAM.MSG.GET.{self.name}", wish)["message"]
            except Refused as refused:
                if refused.code == NO_MESSAGE:
                    return None
                raise

        message = self._patiently(ask)
        if message is None:
            return None
        return Stored(message["seq"], message["subject"], base64.b64decode(message.get("data", "")))

    def _api(self, subject: str, wish: dict[str, Any]) -> Any:
        answer = self.connection.request(f"{API}.{subject}", msgspec.json.encode(wish) if wish else b"")
        if answer.status:
            raise NotNow("no server of the log offers JetStream at this moment")
        return self._checked(answer.payload)

    def _checked(self, payload: bytes) -> Any:
        try:
            answer = msgspec.json.decode(payload)
        except msgspec.DecodeError as error:
            raise NotNow(f"an answer that is none: {error}") from None
        refusal = answer.get("error")
        if refusal is None:
            return answer
        code, text = refusal.get("err_code", 0), f"{self.name}: {refusal.get('description', 'refused')}"
        if code in NOT_NOW:
            raise NotNow(text)
        if code in FULL or (code == NOT_STORED and LIMIT in text):
            raise NoRoom(text)
        if code == NOT_STORED:
            raise NoAnswer(text)
        if code == WRONG_SEQUENCE:
            raise Superseded(text)
        raise Refused(text, code)

    def _patiently(self, ask: Callable[[], T]) -> T:
        until_ns = self._boot_ns() + int(self.patience_s * 1e9)
        unasked = self.connection.servers  # a server that does not answer may use up all of the patience
        absent = absent_since_ns = 0  # how often the stream was said to be absent, and since when
        while True:
            try:
                return ask()
            except Refused as refused:
                if refused.code != NO_STREAM:
                    raise
                absent += 1
                absent_since_ns = absent_since_ns or self._boot_ns()
                is_over = self._boot_ns() - absent_since_ns >= self._absent_s * 1e9
                if absent >= self.connection.servers and is_over:
                    raise
                self.connection.leave()
            except (Unreachable, NoAnswer, NotNow) as error:
                unasked -= 1
                if unasked <= 0 and self._boot_ns() > until_ns:
                    raise Unavailable(f"the log cannot be reached: {error}") from error
            self.connection.pause(RETRY_S)


class ReadStream(Stream):
    """A stream for those who only read it. It raises the errors of the seam where servers refuse a request (see
    `opening`): an operator has to mend a missing stream or insufficient credentials.
    """

    def _patiently(self, ask: Callable[[], T]) -> T:
        with opening():
            return super()._patiently(ask)
