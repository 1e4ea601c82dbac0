"""The client for programs without an event loop: the same methods, each of which waits for its answer.

    with SyncClient("127.0.0.1:3311") as client:
        client.top_up("user_01", "12.5", request_id="invoice-4711")

A thread of its own runs the client of `billing.client.client`; any number of threads may call at once, and their calls
travel together. What is said there of repeats, routes and errors holds here. A client that is not closed ends with the
program. It is not for use after a fork.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from billing.client.client import Client
from billing.client.methods import Methods

P = ParamSpec("P")
R = TypeVar("R")


def blocking(
    method: Callable[Concatenate[Methods, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[SyncClient, P], R]:
    """The method of a client that waits."""

    @wraps(method)
    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._wait(method(self._client, *args, **kwargs))

    return call


class SyncClient:
    """See the module. Takes what `Client` takes."""

    def __init__(self, address: str | Sequence[str], **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="billing-client", daemon=True)
        self._thread.start()
        self._open = True
        try:
            self._client = self._wait(self._make(address, options))
        except BaseException:
            self._end()
            raise

    @staticmethod
    async def _make(address: str | Sequence[str], options: dict[str, Any]) -> Client:
        return Client(address, **options)

    def _wait(self, coroutine: Coroutine[Any, Any, R]) -> R:
        if not self._open:
            coroutine.close()
            raise RuntimeError("the client is closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, timeout_s: float | None = None, *, tries: int | None = 1) -> None:
        """As `Client.connect`."""
        self._wait(self._client.connect(timeout_s, tries=tries))

    def close(self) -> None:
        """Ends the connections and the thread; calls of other threads that are not answered raise `Unavailable`."""
        if self._open:
            self._wait(self._close())
            self._end()

    async def _close(self) -> None:
        self._client.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    def _end(self) -> None:
        self._open = False
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, method: str, *params: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """The result of any procedure, as `Client.call`."""
        return self._wait(self._client.call(method, *params, timeout_s=timeout_s, **options))

    top_up = blocking(Methods.top_up)
    set_rate = blocking(Methods.set_rate)
    change_rate = blocking(Methods.change_rate)
    debit = blocking(Methods.debit)
    set_credit_limit = blocking(Methods.set_credit_limit)
    get_account = blocking(Methods.get_account)
    accounts = blocking(Methods.accounts)
    history = blocking(Methods.history)
    entries = blocking(Methods.entries)
    balance_at = blocking(Methods.balance_at)
    statement = blocking(Methods.statement)
    dry_run = blocking(Methods.dry_run)
    hold = blocking(Methods.hold)
    capture = blocking(Methods.capture)
    release = blocking(Methods.release)
    adjust = blocking(Methods.adjust)
    set_thresholds = blocking(Methods.set_thresholds)
    set_class = blocking(Methods.set_class)
    close_account = blocking(Methods.close_account)
    ping = blocking(Methods.ping)
    server_info = blocking(Methods.server_info)
    methods = blocking(Methods.methods)
    bucket_id = blocking(Methods.bucket_id)
    route = blocking(Methods.route)
    buckets_info = blocking(Methods.buckets_info)
    shards_info = blocking(Methods.shards_info)
    move_bucket = blocking(Methods.move_bucket)
    pin_bucket = blocking(Methods.pin_bucket)
    unpin_bucket = blocking(Methods.unpin_bucket)
    rebalance = blocking(Methods.rebalance)
    explain = blocking(Methods.explain)
    explain_move = blocking(Methods.explain_move)
    check_owners = blocking(Methods.check_owners)
    backup = blocking(Methods.backup)
    audit = blocking(Methods.audit)
    pending_cutoffs = blocking(Methods.pending_cutoffs)
    expirationd_stats = blocking(Methods.expirationd_stats)
    retry_cutoff = blocking(Methods.retry_cutoff)
    release_cutoffs = blocking(Methods.release_cutoffs)
    forecast = blocking(Methods.forecast)
