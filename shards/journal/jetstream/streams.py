"""What is asked of one stream: its state, a message, a run of messages, a publish at a sequence, a purge.

Reading is repeated until an answer comes, for `patience_s`, and until every server was asked: leaders change, and
servers restart. A publish is asked once; whoever publishes resolves the doubt that is left. Single messages and the
state come from the stream's leader, so they are not older than anything that was acknowledged; runs come from any
replica.

A server that has just become the leader of JetStream may not know yet of a stream that exists. That there is no such
stream is believed only once it was said for `absent_s`, and over a connection to each server that can be reached.
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
RUN_MESSAGES, RUN_BYTES = 256, 4 << 20  # of one answer to a run
RETRY_S = 0.05
ABSENT_S = 3.0  # so long a stream must be said to be absent, until it is
EXPECTED = "Nats-Expected-Last-Sequence"

# Errors of JetStream, by their number.
NOT_NOW = frozenset({10008, 10009, 10164})  # no leader at this moment, or another publish is being settled
FULL = frozenset({10002, 10023, 10028, 10047})  # a limit of the account or of a server is reached
NOT_STORED = 10077  # the leader has not stored it: a limit of the stream, or its storage failed under it
LIMIT = "maximum"  # begins the description of the former; the replicas may have stored what the latter tells of
WRONG_SEQUENCE = 10071
NO_MESSAGE, NO_STREAM = 10037, 10059


class NotNow(Exception):
    """The servers cannot answer at this moment."""


class NoRoom(Exception):
    """A limit of the stream is reached: surely not written."""


class Superseded(Exception):
    """The stream's last sequence is not the expected one: surely not written by this request."""


class Refused(Exception):
    """The servers say no, and will say so again. `code`: the number of the error."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def opening() -> Iterator[None]:
    """What servers refuse while a log is opened, as the seam's errors. Raises Unfit where an operator has to mend the
    configuration or make the streams, else Unknown.
    """
    try:
        yield
    except Denied as error:
        raise Unfit(f"cluster.credentials_file, cluster.servers: {error}") from error
    except Refused as error:
        if error.code == NO_STREAM:
            raise Unfit(f"there is no stream {error}: make the streams with `billing cluster init`") from error
        raise Unknown(f"the log's servers refuse: {error}") from error


class State(NamedTuple):
    """A stream, as its leader has it."""

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
        """Raises Unavailable, Refused (NO_STREAM: there is none), Denied."""
        return self._patiently(self.glance)

    def glance(self) -> State:
        """As `state`, asked once. Raises Unreachable, NoAnswer, NotNow, Refused, Denied."""
        answer = self._api(f"STREAM.INFO.{self.name}", {})
        state = answer["state"]
        first = state["first_seq"] if state["messages"] else state["last_seq"] + 1
        return State(first, state["last_seq"], state["bytes"], answer["config"], answer.get("cluster") or {})

    def message(self, sequence: int) -> Stored | None:
        """One message; None where it is not there. Raises as `state` does."""
        return self._fetch({"seq": sequence})

    def last_of(self, subject: str) -> Stored | None:
        """The newest message of a subject."""
        return self._fetch({"last_by_subj": subject})

    def run(self, sequence: int) -> list[Stored]:
        """Messages from this sequence on, ascending; none where a replica has none yet. Raises Unavailable, Denied."""

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
        """Every message from `sequence` to `last`; a hole shows as a sequence that jumps. Raises Unavailable."""
        waited_ns = 0
        while sequence <= last:
            messages = self.run(sequence)
            if not messages:  # a replica that is behind the leader, or messages that are gone
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
        """Publishes behind the sequence `expected`; the new last one. Asked once.

        Raises Unreachable, NotNow, NoRoom, Superseded, Refused: surely not written by this request. NoAnswer: in doubt.
        """
        answer = self.connection.request(subject, payload, {EXPECTED: str(expected)})
        if answer.status:
            raise NotNow(f"nobody takes messages of {self.name} at this moment")
        return int(self._checked(answer.payload)["seq"])

    def purge(self, below: int) -> None:
        """Forgets all messages below this sequence. Raises Unavailable."""
        self._patiently(lambda: self._api(f"STREAM.PURGE.{self.name}", {"seq": below}))

    def create(self, config: dict[str, Any]) -> None:
        """Makes the stream; one that is there with the same settings is left as it is. Raises Unavailable, Refused."""
        self._patiently(lambda: self._api(f"STREAM.CREATE.{self.name}", config))

    # -- asking -----------------------------------------------------------------------------------------------------

    def _fetch(self, wish: dict[str, Any]) -> Stored | None:
        try:
            message = self._patiently(lambda: self._api(f"STREAM.MSG.GET.{self.name}", wish))["message"]
        except Refused as refused:
            if refused.code == NO_MESSAGE:
                return None
            raise
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
