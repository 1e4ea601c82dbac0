"""Sends many commands at once, with a callback for each answer: for programs that send tens of thousands a second.

    async with client.batch(on_answer) as batch:
        batch.send([("top_up", ["user_01", 5]), ("get_account", ["user_02"])], number=0)
        await batch.answered()

    def on_answer(number, error, result): ...

A task and a future for each command would cost more than all the rest of a call; here a command costs its encoding, one
entry in a table, and the decoding of its answer. The caller chooses a number for each command: any integer that no
other open command has, such as an index into the caller's own columns.

**Each number is answered exactly once**, never from within `add` or `send`: with a result, with the daemon's refusal,
or with `Unavailable`, whose `applied` says whether the command may have had its effect. A batch sends nothing twice;
the caller repeats the commands whose `request_id` makes that harmless.

A batch has a connection of its own, and opens it again after a loss. Commands of one batch reach the daemon in the
order in which they were added.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Self

from billing.client.connection import Address, Connection, Link, foreign_words, too_large
from billing.client.errors import BillingError, Unavailable, error_of
from billing.client.wire import DECODE_ERRORS, MSGID_MAX, REQUEST, RESPONSE, stage

OnAnswer = Callable[[int, BillingError | None, Any], None]  # number, error, result
OnRead = Callable[[], None]
Request = tuple[str, Sequence[Any]]  # method, params

OPEN_MAX: Final = 1_000_000  # commands not answered; more are refused with Unavailable
# Longer than of a call. The kernel takes a daemon that reads nothing for gone, too, and while its disk or log stands
# still, the daemon reads no more of a batch than may be in flight.
BATCH_GONE_S: Final = 120


class BatchConnection(Connection):
    """A connection that also takes numbered commands."""

    gone_s: ClassVar[int] = BATCH_GONE_S

    __slots__ = ("_numbers", "_on_answer", "_on_read")

    def __init__(self, on_lost: Callable[[Connection], None], on_answer: OnAnswer, on_read: OnRead) -> None:
        super().__init__(on_lost)
        self._numbers: dict[int, int] = {}  # msgid -> number of an unanswered command
        self._on_answer = on_answer
        self._on_read = on_read

    @property
    def open(self) -> int:
        """The number of commands that wait for their answer."""
        return len(self._numbers)

    def add(self, number: int, method: str, params: Sequence[Any]) -> bool:
        """Stages a command, which leaves with `flush`; returns False, and does nothing, where it is too long."""
        msgid = self._msgid
        if not stage((REQUEST, msgid, method, params), self._staged):
            return False
        self._msgid = (msgid + 1) & MSGID_MAX
        self._numbers[msgid] = number
        return True

    def data_received(self, data: bytes) -> None:
        numbers, on_answer = self._numbers, self._on_answer
        self._on_read()
        try:
            self._unpacker.feed(data)
            for message in self._unpacker:
                try:
                    kind, msgid, error, result = message
                except TypeError:  # no array at all
                    raise ValueError("not a response") from None
                number = numbers.pop(msgid, None)
                if number is None:
                    self._other(kind, msgid, error, result)
                elif kind != RESPONSE:
                    raise ValueError("not a response")
                else:
                    on_answer(number, None if error is None else error_of(error), result)
        except DECODE_ERRORS as error:
            self._foreign = foreign_words(data, error)
            self.close()

    def _other(self, kind: int, msgid: int | None, error: Any, result: Any) -> None:
        """Takes a message that answers no numbered command: the reply to the sign-in, or an error about the connection
        itself.
        """
        if kind != RESPONSE:
            raise ValueError("not a response")
        if msgid is None:
            self._server_error = str(error_of(error))
            return
        on_reply = self._pending.pop(msgid, None)
        if on_reply is not None:
            on_reply(None if error is None else error_of(error), result)

    def connection_lost(self, exc: Exception | None) -> None:
        numbers, self._numbers = self._numbers, {}
        reason = "the connection was lost" + (f": {why}" if (why := self._foreign or self._server_error or exc) else "")
        super().connection_lost(exc)
        for number in numbers.values():
            self._on_answer(number, Unavailable(reason, applied="unknown"), None)


class Batch:
    """See the module. Made by `Client.batch`; usable from one event loop."""

    def __init__(
        self,
        address: Address | str | Sequence[str],
        token: str | None,
        tls: ssl.SSLContext | None,
        jitter: Callable[[], float],
        on_answer: OnAnswer,
        on_read: OnRead,
    ) -> None:
        self._user_on_answer = on_answer
        self._on_read = on_read
        self._refused = 0  # open commands that will get Unavailable in the next turn of the loop
        self._waiting: list[asyncio.Future[None]] = []
        self._link = Link(address, token=token, tls=tls, jitter=jitter, make=self._make)

    def _make(self, on_lost: Callable[[Connection], None]) -> BatchConnection:
        return BatchConnection(on_lost, self._on_answer, self._on_read)

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:  # `__aexit__` is not called then, and the link would go on connecting
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def connect(self) -> None:
        """Waits for a connection that is signed in. Raises BillingError where the daemon does not let the client in."""
        await self._link.connected()

    def close(self) -> None:
        """Ends the connection; unanswered commands get `Unavailable`."""
        self._link.close()

    @property
    def open(self) -> int:
        """The number of commands that wait for their answer."""
        connection = self._link.connection
        return self._refused + (connection.open if isinstance(connection, BatchConnection) else 0)

    def add(self, number: int, method: str, params: Sequence[Any]) -> None:
        """Stages one command; it leaves with `flush`. Raises TypeError, ValueError or OverflowError for what is no
        MessagePack.
        """
        connection = self._link.connection
        error: BillingError
        if isinstance(connection, BatchConnection) and connection.open < OPEN_MAX:
            if connection.add(number, method, params):
                return
            error = too_large()
        else:
            reason = self._link.why_not() if connection is None else "too many commands are not answered yet"
            error = Unavailable(reason)
        self._refused += 1
        asyncio.get_running_loop().call_soon(self._refuse, number, error)

    def flush(self) -> None:
        """Writes all added commands, in one write."""
        if self._link.connection is not None:
            self._link.connection.flush()

    def send(self, requests: Sequence[Request], number: int = 0) -> None:
        """Adds commands, numbered from `number`, and writes them."""
        for method, params in requests:
            self.add(number, method, params)
            number += 1
        self.flush()

    async def answered(self) -> None:
        """Waits until no command is open."""
        while self.open:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    def _on_answer(self, number: int, error: BillingError | None, result: Any) -> None:
        self._user_on_answer(number, error, result)
        if self._waiting and not self.open:
            self._wake()

    def _refuse(self, number: int, error: BillingError) -> None:
        self._refused -= 1
        self._on_answer(number, error, None)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
