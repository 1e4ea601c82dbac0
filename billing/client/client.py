"""A client for services and tools in Python: pipelined, reconnecting, one method per procedure.

    async with Client("127.0.0.1:3311") as client:
        account = await client.top_up("user_01", "12.5", request_id="invoice-4711")

Calls made at once travel together, and their answers come in any order. A refusal is raised as its class of
`billing.client.errors`. Where a connection is lost, or no answer comes in `timeout_s`, that is `Unavailable`, and
`applied` says whether the call may have had its effect.

**A call is repeated only where that is harmless:** with a `request_id`, which makes it take effect once however often
it arrives, where it only reads, or where it met a bucket that moves (`BUCKET_MOVING`: surely not applied). Then it is
repeated until `timeout_s` is over; otherwise never.

**It goes straight to the owner** of the user's bucket where it can, by the daemon's own map, and follows buckets that
move: that is no error, and keeps the order of the calls for a user (see `routing`).

Who sends a hundred thousand commands a second uses `batch`: many at once, a callback per answer, no task or future.
"""

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Self

from billing.api.methods import LOCAL, METHODS, READ
from billing.client.batch import Batch, OnAnswer, OnRead
from billing.client.connection import BACKOFF_FIRST_S, BACKOFF_MAX_S, OnReply
from billing.client.errors import BillingError, BucketMoving, Unavailable
from billing.client.routing import Routing

TIMEOUT_S: Final = 30.0

UserId = str | int
Amount = int | str  # nanos, or a decimal string of coins
Account = dict[str, Any]
Rows = list[dict[str, Any]]

_ONLY_READS = frozenset(name for name, row in METHODS.items() if row.role == READ or row.kind == LOCAL)


class Client:
    """A client of one daemon. Usable from one event loop; any number of calls at once."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
        jitter: Callable[[], float] = random.random,
        direct: bool = True,
    ) -> None:
        """`address`: `host:port` or `unix:/path`. `tls`: for a daemon with `rpc.tls_cert`; `tls_context` of
        `billing.client.connection` makes one from files. `timeout_s`: for a call, unless it names its own. `direct`:
        whether to go straight to the owners of buckets. Raises ValueError for an address that is none.
        """
        self.timeout_s = timeout_s
        self._routing = Routing(address, token=token, tls=tls, jitter=jitter, direct=direct)
        self._link = self._routing.main
        self._batch = partial(Batch, address, token, tls, jitter)
        self._jitter = jitter

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def connect(self, timeout_s: float | None = None, *, tries: int | None = None) -> None:
        """Waits for the first connection; without it, the first call waits. With `tries`, gives up after so many
        attempts that failed instead of when the time is over; the error's details say why (`unreached`). Raises
        BillingError.
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

    # -- one call ---------------------------------------------------------------------------------------------------

    async def call(self, method: str, *params: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """The result of any procedure; options that are None are not sent. Raises BillingError."""
        given = {name: value for name, value in options.items() if value is not None}
        arguments: list[Any] = [*params, given] if given else list(params)
        repeatable = "request_id" in given or method in _ONLY_READS
        seconds = self.timeout_s if timeout_s is None else timeout_s
        pause_s = BACKOFF_FIRST_S
        unknown = False  # whether an attempt may have had its effect
        try:
            async with asyncio.timeout(seconds) as scope:
                while True:
                    unknown_before = unknown
                    try:
                        await self._routing.usable(method, arguments)
                        unknown = True
                        return await _ask(self._routing, method, arguments)
                    except BillingError as error:
                        unknown = unknown_before or error.applied == "unknown"
                        again = repeatable or type(error) is BucketMoving  # which never was applied
                        if not (again and error.retry) or self._link.closed:
                            raise
                    await asyncio.sleep(pause_s * (1 + self._jitter()))
                    pause_s = min(pause_s * 2, BACKOFF_MAX_S)
        except TimeoutError:
            if not scope.expired():
                raise
            raise self._no_answer(seconds, unknown) from None

    def _no_answer(self, seconds: float, unknown: bool) -> Unavailable:
        why = "" if self._link.connection is not None else f": {self._link.why_not()}"
        return Unavailable(f"no answer within {seconds:g} s{why}", applied="unknown" if unknown else "no")

    def _unreached(self, seconds: float) -> Unavailable:
        error = self._no_answer(seconds, False)
        error.details["unreached"] = f"nobody answered within {seconds:g} s ({self._link.why_not()})"
        return error

    # -- accounts ---------------------------------------------------------------------------------------------------

    async def top_up(
        self, user_id: UserId, amount: Amount, *, request_id: str | bytes | None = None, message: str | None = None
    ) -> Account:
        """Adds money; creates the account if it is new."""
        result: Account = await self.call("top_up", user_id, amount, request_id=request_id, message=message)
        return result

    async def set_rate(
        self,
        user_id: UserId,
        rate: Amount,
        *,
        per: str | None = None,
        resource: str | None = None,
        rate_seq: int | None = None,
        min_runway_ns: int | None = None,
        ttl_ns: int | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Account:
        """Sets the rate of one rate line, per second unless `per` says minute or hour; with `ttl_ns` it ends by itself
        after that long.
        """
        result: Account = await self.call(
            "set_rate",
            user_id,
            rate,
            per=per,
            resource=resource,
            rate_seq=rate_seq,
            min_runway_ns=min_runway_ns,
            ttl_ns=ttl_ns,
            request_id=request_id,
            message=message,
        )
        return result

    async def change_rate(
        self,
        user_id: UserId,
        delta: Amount,
        *,
        per: str | None = None,
        resource: str | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Account:
        """Adds to a rate line, or takes from it."""
        result: Account = await self.call(
            "change_rate", user_id, delta, per=per, resource=resource, request_id=request_id, message=message
        )
        return result

    async def debit(
        self,
        user_id: UserId,
        amount: Amount,
        *,
        mode: str | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Account:
        """A one-off charge; `mode` is strict, partial or force."""
        result: Account = await self.call("debit", user_id, amount, mode=mode, request_id=request_id, message=message)
        return result

    async def set_credit_limit(
        self, user_id: UserId, amount: Amount, *, request_id: str | bytes | None = None, message: str | None = None
    ) -> Account:
        """How far below zero available money reaches."""
        result: Account = await self.call("set_credit_limit", user_id, amount, request_id=request_id, message=message)
        return result

    async def get_account(self, user_id: UserId) -> Account:
        """Everything about the account now."""
        result: Account = await self.call("get_account", user_id)
        return result

    async def accounts(
        self,
        *,
        after: UserId | None = None,
        limit: int | None = None,
        state: str | None = None,
        exhausts_within_ns: int | None = None,
        show: Sequence[str] | None = None,
    ) -> Rows:
        """How accounts stand, in order of user_id, a page; the next one is `after` its last. `state`: only `active` or
        `exhausted` ones; `show`: of `rates` and `holds`, what is added (the option `with`).
        """
        options: dict[str, Any] = {"state": state, "exhausts_within_ns": exhausts_within_ns, "with": show}
        result: Rows = await self.call("accounts", after=after, limit=limit, **options)
        return result

    async def history(self, user_id: UserId, *, limit: int | None = None, before: int | None = None) -> Rows:
        """Entries, newest first; the next page is `before` the last entry_id."""
        result: Rows = await self.call("history", user_id, limit=limit, before=before)
        return result

    async def entries(self, *, after: str | None = None, limit: int | None = None) -> Rows:
        """All entries of all accounts, once each, those of an account in their order: a page behind the `cursor` of a
        row. Whoever stores that cursor together with the rows has each entry exactly once.
        """
        result: Rows = await self.call("entries", after=after, limit=limit)
        return result

    async def balance_at(self, user_id: UserId, at_ns: int) -> dict[str, Any]:
        """The account as it was at an instant, behind the entries of that instant."""
        result: dict[str, Any] = await self.call("balance_at", user_id, at_ns)
        return result

    async def statement(
        self, user_id: UserId, from_ns: int, to_ns: int, *, by: str | None = None, limit: int | None = None
    ) -> dict[str, Any]:
        """A period: its opening and closing balance, what accrued, and entries; `by="resource"` itemises by line."""
        result: dict[str, Any] = await self.call("statement", user_id, from_ns, to_ns, by=by, limit=limit)
        return result

    async def dry_run(self, method: str, params: Sequence[Any]) -> dict[str, Any]:
        """What a procedure that changes an account would answer now; nothing changes."""
        result: dict[str, Any] = await self.call("dry_run", method, list(params))
        return result

    async def hold(
        self,
        user_id: UserId,
        amount: Amount,
        *,
        ttl_ns: int | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Account:
        """Reserves money; the reply has `hold_id`."""
        result: Account = await self.call(
            "hold", user_id, amount, ttl_ns=ttl_ns, request_id=request_id, message=message
        )
        return result

    async def capture(
        self,
        user_id: UserId,
        hold_id: str,
        amount: Amount,
        *,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Account:
        """Takes part or all of a hold and frees the rest."""
        result: Account = await self.call("capture", user_id, hold_id, amount, request_id=request_id, message=message)
        return result

    async def release(
        self, user_id: UserId, hold_id: str, *, request_id: str | bytes | None = None, message: str | None = None
    ) -> Account:
        """Gives a hold back."""
        result: Account = await self.call("release", user_id, hold_id, request_id=request_id, message=message)
        return result

    async def adjust(
        self, user_id: UserId, amount: Amount, reason: str, *, request_id: str | bytes | None = None
    ) -> Account:
        """A correction of either sign, booked as such."""
        result: Account = await self.call("adjust", user_id, amount, reason, request_id=request_id)
        return result

    async def set_thresholds(
        self,
        user_id: UserId,
        thresholds: Sequence[dict[str, Amount]],
        *,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Account:
        """When to send low-balance notices: maps of either `amount` or `runway_ns`."""
        result: Account = await self.call(
            "set_thresholds", user_id, list(thresholds), request_id=request_id, message=message
        )
        return result

    async def close_account(
        self, user_id: UserId, *, request_id: str | bytes | None = None, message: str | None = None
    ) -> Account:
        """Closes an account at rate 0, with no debt, hold or owed cutoff."""
        result: Account = await self.call("close_account", user_id, request_id=request_id, message=message)
        return result

    # -- the daemon -------------------------------------------------------------------------------------------------

    async def ping(self) -> str:
        """Whether the daemon answers."""
        result: str = await self.call("ping")
        return result

    async def server_info(self) -> dict[str, Any]:
        """Version and limits."""
        result: dict[str, Any] = await self.call("server_info")
        return result

    async def methods(self) -> Rows:
        """The table of procedures."""
        result: Rows = await self.call("methods")
        return result

    async def bucket_id(self, user_id: UserId) -> int:
        """The bucket a user hashes to."""
        result: int = await self.call("bucket_id", user_id)
        return result

    async def route(self, *, version: int | None = None) -> Any:
        """Who owns each bucket, and where to call; its version alone where that is the one given."""
        return await self.call("route", version=version)

    async def buckets_info(self) -> Rows:
        """Owner, state and size of each bucket."""
        result: Rows = await self.call("buckets_info")
        return result

    async def shards_info(self) -> Rows:
        """Process, buckets and load of each shard."""
        result: Rows = await self.call("shards_info")
        return result

    async def move_bucket(self, bucket_id: int, shard_id: int) -> Any:
        """Moves a bucket; answers when the target serves."""
        return await self.call("move_bucket", bucket_id, shard_id)

    async def pin_bucket(self, bucket_id: int) -> Any:
        """Keeps the rebalancer off a bucket."""
        return await self.call("pin_bucket", bucket_id)

    async def unpin_bucket(self, bucket_id: int) -> Any:
        """Lets the rebalancer move a bucket again."""
        return await self.call("unpin_bucket", bucket_id)

    async def rebalance(self, *, plan: bool | None = None) -> Any:
        """Moves buckets until the load is even; with `plan` only says which."""
        return await self.call("rebalance", plan=plan)

    async def explain(self, user_id: UserId) -> dict[str, Any]:
        """Why an account stands where it stands."""
        result: dict[str, Any] = await self.call("explain", user_id)
        return result

    async def explain_move(self, bucket_id: int, *, shard_id: int | None = None) -> dict[str, Any]:
        """What a move of the bucket waits for, and whose that is."""
        result: dict[str, Any] = await self.call("explain_move", bucket_id, shard_id=shard_id)
        return result

    async def check_owners(self) -> dict[str, Any]:
        """Whether each bucket has exactly one owner, and adds up."""
        result: dict[str, Any] = await self.call("check_owners")
        return result

    async def backup(self, step: str) -> Any:
        """Holds files still and names the positions to copy them up to (`begin`), goes on doing so, or ends it."""
        return await self.call("backup", step)

    async def pending_cutoffs(self, *, after: UserId | None = None, limit: int | None = None) -> Rows:
        """What is owed to the cutoff URL. A page may exceed `limit` by the other rows of its last user."""
        result: Rows = await self.call("pending_cutoffs", after=after, limit=limit)
        return result

    async def retry_cutoff(self, user_id: UserId) -> Any:
        """Tries an account's owed cutoff at once."""
        return await self.call("retry_cutoff", user_id)

    async def release_cutoffs(self) -> Any:
        """Lets the cutoffs go that a start held back."""
        return await self.call("release_cutoffs")

    async def expirationd_stats(self) -> Rows:
        """What was checked and fired, per shard, and mismatches."""
        result: Rows = await self.call("expirationd_stats")
        return result

    async def forecast(self, *, within_ns: int | None = None, step_ns: int | None = None) -> Any:
        """How many cutoffs are coming, by the second or minute."""
        return await self.call("forecast", within_ns=within_ns, step_ns=step_ns)


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
