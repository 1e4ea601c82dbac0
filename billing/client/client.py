"""A client for services and tools in Python: pipelined, reconnecting, one method per procedure.

    async with Client("127.0.0.1:3311") as client:
        account = await client.top_up("user_01", "12.5", request_id="invoice-4711")

Calls made at once travel together, and their answers come in any order. A refusal is raised as its class of
`billing.client.errors`. Where a connection is lost, or no answer comes in `timeout_s`, that is `Unavailable`, and
`applied` says whether the call may have had its effect.

**A call is repeated only where that is harmless:** with a `request_id`, which makes it take effect once however often
it arrives, where it only reads, or where it met a bucket that moves (`BUCKET_MOVING`: surely not applied). Then it is
repeated until `timeout_s` is over; otherwise never.

**Where nobody listens, it says so at once.** Only a connection that there was is waited for.

**It goes straight to the owner** of the user's bucket where it can, by the daemon's own map, and follows buckets that
move: that is no error, and keeps the order of the calls for a user (see `routing`).

Who sends a hundred thousand commands a second uses `batch`: many at once, a callback per answer, no task or future.
"""

import asyncio
import os
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from billing.client.batch import Batch, OnAnswer, OnRead
from billing.client.connection import BACKOFF_FIRST_S, BACKOFF_MAX_S, OnReply
from billing.client.errors import BillingError, BucketMoving, Unavailable
from billing.client.fan_out import FanOut
from billing.client.methods import ONLY_READS, Methods
from billing.client.routing import Routing

TIMEOUT_S: Final = 30.0

TOKEN: Final = "BILLING_TOKEN"
TOKEN_FILE: Final = "BILLING_TOKEN_FILE"


class Client(Methods):
    """A client of one daemon. Usable from one event loop; any number of calls at once."""

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
        """`address`: `host:port` or `unix:/path`, or several of one daemon: where one does not answer, the next is
        tried. `token`, or `token_file`, which holds it; else BILLING_TOKEN or BILLING_TOKEN_FILE of the
        environment. `tls`: for a daemon with `rpc.tls_cert`; `tls_context` of `billing.client.connection` makes one
        from files. `timeout_s`: for a call, unless it names its own. `direct`: whether to go straight to the owners of
        buckets. Raises ValueError for an address that is none, OSError for a file that cannot be read.
        """
        self.timeout_s = timeout_s
        token = _token_of(token, token_file, environment)
        self._routing = Routing(address, token=token, tls=tls, jitter=jitter, direct=direct)
        self._link = self._routing.main
        self._batch = partial(Batch, address, token, tls, jitter)
        self._batch_at = partial(Batch, token=token, tls=tls, jitter=jitter, on_read=lambda: None)
        self._jitter = jitter

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def connect(self, timeout_s: float | None = None, *, tries: int | None = 1) -> None:
        """Connects; without it, the first call does. Gives up after so many `tries` at every address, or where that is
        None when the time is over; the error's details say why (`unreached`). Raises BillingError.
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
        """Ends the connections; calls that are not answered raise `Unavailable`."""
        self._routing.close()

    @property
    def pending(self) -> int:
        """Requests that wait for their reply."""
        return self._routing.pending

    # -- for many commands at once ----------------------------------------------------------------------------------

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> None:
        """Asks without waiting; `on_reply(error, result)` is called exactly once, later. Where there is no connection
        the error is `Unavailable`, applied "no". It leaves with `flush`, or at the end of this turn of the loop.
        """
        self._routing.send(method, params, on_reply)

    def flush(self) -> None:
        """Lets what was sent leave now."""
        for connection in self._routing.connections:
            connection.flush()

    def batch(self, on_answer: OnAnswer, on_read: OnRead = lambda: None) -> Batch:
        """A connection of its own for many commands at once: see `billing.client.batch`. `on_answer(number, error,
        result)` is called once for each command, `on_read()` before the answers that one read brought.
        """
        return self._batch(on_answer, on_read)

    def fan_out(self, on_answer: OnAnswer) -> FanOut:
        """As `batch`, with a connection to each owner: for a great many commands about accounts, none of which a worker
        has to pass on. See `billing.client.fan_out`.
        """
        return FanOut(
            self.batch(on_answer), self.route, self._link.address.host, partial(self._batch_at, on_answer=on_answer)
        )

    # -- one call ---------------------------------------------------------------------------------------------------

    async def call(self, method: str, *params: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """The result of any procedure; options that are None are not sent. Raises BillingError."""
        sent_options = {name: value for name, value in options.items() if value is not None}
        arguments: list[Any] = [*params, sent_options] if sent_options else list(params)
        repeatable = "request_id" in sent_options or method in ONLY_READS
        seconds = self.timeout_s if timeout_s is None else timeout_s
        pause_s = BACKOFF_FIRST_S
        unknown = False  # whether an attempt may have had its effect
        last_refusal = ""  # why the last attempt was refused
        try:
            async with asyncio.timeout(seconds) as scope:
                if not self._link.was_connected:  # nobody listens there: no reason to wait for
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
                        again = repeatable or type(error) is BucketMoving  # which never was applied
                        if not (again and error.retry) or self._link.closed:
                            raise
                    await asyncio.sleep(pause_s * (1 + self._jitter()))
                    pause_s = min(pause_s * 2, BACKOFF_MAX_S)
        except TimeoutError:
            if not scope.expired():
                raise
            raise self._no_answer(seconds, unknown, last_refusal) from None

    def _no_answer(self, seconds: float, unknown: bool, last_refusal: str = "") -> Unavailable:
        reason = last_refusal if self._link.connection is not None else self._link.why_not()
        why = f": {reason}" if reason else ""
        return Unavailable(f"no answer within {seconds:g} s{why}", applied="unknown" if unknown else "no")

    def _unreached(self, seconds: float) -> Unavailable:
        error = self._no_answer(seconds, False)
        error.details["unreached"] = f"nobody answered within {seconds:g} s ({self._link.why_not()})"
        return error


def _token_of(token: str | None, file: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> str | None:
    """The token to sign in with, None for none. Raises OSError where the file cannot be read."""
    if token is not None:
        return token
    if file is None:
        if TOKEN in environment:
            return environment[TOKEN]
        file = environment.get(TOKEN_FILE)
    return None if file is None else Path(file).read_text("utf-8").strip()


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
