"""A client for services and tools in Python: pipelined, reconnecting, one method per procedure.

    async with Client("127.0.0.1:3311") as client:
        account = await client.top_up("user_01", "12.5", request_id="invoice-4711")

Concurrent calls are written together, and their answers come in any order. A refusal is raised as its class of
`billing.client.errors`. Where a connection is lost, or no answer comes within `timeout_s`, the call raises
`Unavailable`, whose `applied` says whether the call may have had its effect.

**The client repeats a call only where that is harmless:** where the call has a `request_id`, which makes it take effect
once however often it arrives; where it only reads; or where its bucket was moving (`BUCKET_MOVING`: surely not
applied). The client repeats such a call, after errors that a retry can help, until `timeout_s` is over.

**A client that was never connected does not wait:** where nobody listens, its call raises `Unavailable` at once. After
a lost connection a call waits for the next one.

**A request goes straight to the owner** of the user's bucket where that is possible, by the daemon's own map. The
client follows buckets that move: a move is no error, and keeps the order of the calls for a user (see `routing`).

Programs that send a hundred thousand commands a second use `batch`: many at once, a callback per answer, no task or
future.
"""

import asyncio
import copy
import os
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from billing.client.batch import Batch, OnAnswer, OnRead
from billing.client.connection import BACKOFF_FIRST_S, BACKOFF_MAX_S, OnReply
from billing.client.errors import BillingError, BucketMoving, Forbidden, Unauthenticated, Unavailable
from billing.client.fan_out import FanOut
from billing.client.methods import ONLY_READS, Methods
from billing.client.routing import Routing

TIMEOUT_S: Final = 30.0

TOKEN: Final = "BILLING_TOKEN"
TOKEN_FILE: Final = "BILLING_TOKEN_FILE"


class Client(Methods):
    """A client of one daemon. It belongs to one event loop and makes any number of calls at once."""

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] = os.environ,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
        jitter: Callable[[], float] = random.random,
        direct: bool = True,
    ) -> None:
        """`address`: `host:port` or `unix:/path`, or several addresses of one daemon: where one does not answer, the
        client tries the next. `token`, or the file `token_file` that holds it; without both, BILLING_TOKEN or
        BILLING_TOKEN_FILE of the environment. `tls`: for a daemon with `rpc.tls_cert`; `tls_context` of
        `billing.client.connection` makes one from files. `timeout_s`: for a call that names no other. `direct`: whether
        requests go straight to the owners of buckets. Raises ValueError for a malformed address, OSError for a file
        that cannot be read.
        """
        self.timeout_s = timeout_s
        token = _token_of(token, token_file, environment)
        self._routing = Routing(address, token=token, tls=tls, jitter=jitter, direct=direct)
        self._link = self._routing.main
        self._batch = partial(Batch, address, token, tls, jitter)
        self._batch_at = partial(Batch, token=token, tls=tls, jitter=jitter, on_read=lambda: None)
        self._jitter = jitter

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:  # `__aexit__` is not called then, and the link would go on connecting
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def connect(self, timeout_s: float | None = None, *, tries: int | None = 1) -> None:
        """Connects; without this, the first call connects. Gives up after `tries` attempts at every address, and when
        the time is over (`tries` None: only then); the error's details say why (`unreached`). Raises BillingError.
        """
        seconds = self.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(seconds) as scope:
                await self._link.connected(tries)
        except TimeoutError:
            if not scope.expired():
                raise
            raise self._unreached(seconds) from None

    def close(self) -> None:
        """Ends the connections; unanswered calls raise `Unavailable`."""
        self._routing.close()

    @property
    def pending(self) -> int:
        """The number of requests that wait for their reply."""
        return self._routing.pending

    # -- for many commands at once ----------------------------------------------------------------------------------

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> None:
        """Sends a request without waiting; `on_reply(error, result)` is called exactly once, later. Where there is no
        connection the error is `Unavailable`, applied "no". The request leaves with `flush`, or at the end of this turn
        of the loop.
        """
        self._routing.send(method, params, on_reply)

    def flush(self) -> None:
        """Writes the requests that were sent, now."""
        for connection in self._routing.connections:
            connection.flush()

    def batch(self, on_answer: OnAnswer, on_read: OnRead = lambda: None) -> Batch:
        """Returns a batch, with a connection of its own for many commands at once: see `billing.client.batch`.
        `on_answer(number, error, result)` is called once for each command, `on_read()` before the answers of each read.
        """
        return self._batch(on_answer, on_read)

    def fan_out(self, on_answer: OnAnswer) -> FanOut:
        """As `batch`, with a connection to each owner: for very many commands about accounts, so that no worker has to
        pass a command on. See `billing.client.fan_out`.
        """
        return FanOut(
            self.batch(on_answer), self.route, self._link.address.host, partial(self._batch_at, on_answer=on_answer)
        )

    # -- one call ---------------------------------------------------------------------------------------------------

    async def call(self, method: str, *params: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """Calls any procedure and returns its result; options that are None are not sent. Raises BillingError."""
        sent_options = {name: value for name, value in options.items() if value is not None}
        arguments: list[Any] = [*params, sent_options] if sent_options else list(params)
        repeatable = "request_id" in sent_options or method in ONLY_READS
        seconds = self.timeout_s if timeout_s is None else timeout_s
        pause_s = BACKOFF_FIRST_S
        unknown = False  # whether an attempt may have had its effect
        last_refusal = ""  # why the last attempt was refused
        try:
            async with asyncio.timeout(seconds) as scope:
                if not self._link.was_connected:  # never connected: one attempt, and no waiting
                    await self._link.connected(1)
                while True:
                    unknown_before = unknown
                    try:
                        await self._routing.usable(method, arguments)
                        unknown = True
                        return await _ask(self._routing, method, arguments)
                    except BillingError as error:
                        last_refusal = error.message
                        unknown = unknown_before or error.applied == "unknown"
                        again = repeatable or type(error) is BucketMoving  # a call with that error is never applied
                        if not (again and error.retry) or self._link.closed:
                            raise (_of_all_attempts(error) if unknown_before else error) from None
                    await asyncio.sleep(pause_s * (1 + self._jitter()))
                    pause_s = min(pause_s * 2, BACKOFF_MAX_S)
        except TimeoutError:
            if not scope.expired():
                raise
            no_answer = self._no_answer(seconds, unknown, last_refusal)
            for connection in self._routing.connections:
                connection.watch()
            raise no_answer from None

    def _no_answer(self, seconds: float, unknown: bool, last_refusal: str = "") -> Unavailable:
        reason = last_refusal if self._link.connection is not None else self._link.why_not()
        why = f": {reason}" if reason else ""
        return Unavailable(f"no answer within {seconds:g} s{why}", applied="unknown" if unknown else "no")

    def _unreached(self, seconds: float) -> Unavailable:
        error = self._no_answer(seconds, False)
        error.details["unreached"] = f"nobody answered within {seconds:g} s ({self._link.why_not()})"
        if self._link.is_signing_in:
            error.details["listens"] = f"{SILENT} for {seconds:g} s: {SILENT_WHY}"
        return error


SILENT: Final = "has answered nothing"
SILENT_WHY: Final = "so does a daemon that is starting, and one that hangs; /readyz at its admin.listen tells which"


def _token_of(token: str | None, file: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> str | None:
    """Returns the token to sign in with, None for none. Raises OSError where the file cannot be read."""
    if token is not None:
        return token
    if file is None:
        if TOKEN in environment:
            return environment[TOKEN]
        file = environment.get(TOKEN_FILE)
    return None if file is None else Path(file).read_text("utf-8").strip()


def _of_all_attempts(error: BillingError) -> BillingError:
    """Returns the error of a call of which an earlier attempt may have had its effect. A refusal by the ledger, which
    knows the `request_id`, is about that attempt, too; one that came before the ledger was asked is not.
    """
    if error.applied != "no" or not (error.retry or isinstance(error, Unauthenticated | Forbidden)):
        return error
    told = copy.copy(error)  # other calls may have the same one
    told.args = error.args  # which the copy has with the name twice
    told.applied = "unknown"
    return told


async def _ask(routing: Routing, method: str, params: list[Any]) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def on_reply(error: BillingError | None, result: Any) -> None:
        if future.done():  # the call has timed out or was cancelled
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    routing.send(method, params, on_reply)
    return await future
