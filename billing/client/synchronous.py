"""The client for programs without an event loop: the same methods, each of which blocks until its answer is there.

    with SyncClient("127.0.0.1:3311") as client:
        client.top_up("user_01", "12.5", request_id="invoice-4711")

A thread of its own runs the client of `billing.client.client`; any number of threads may call at once, and their calls
are written together. Repeats, routes and errors are those of that client. A client that is not closed ends with the
program. In a process that was forked since, its calls raise RuntimeError: the thread is in the parent alone.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Self, TypeVar

from billing.client.blocking_methods import BlockingMethods
from billing.client.client import Client

R = TypeVar("R")


class SyncClient(BlockingMethods):
    """See the module. Takes what `Client` takes."""

    _client: Client

    def __init__(self, address: str | Sequence[str], **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="billing-client", daemon=True)
        self._thread.start()
        self._pid = os.getpid()
        self._open = True
        # No call comes between the last one and the end of the loop. A handler of a signal may close amid a call.
        self._lock = threading.RLock()
        try:
            self._client = self._wait(self._make(address, options))
        except BaseException:
            self._open = False
            self._end()
            raise

    @staticmethod
    async def _make(address: str | Sequence[str], options: dict[str, Any]) -> Client:
        return Client(address, **options)

    def _wait(self, coroutine: Coroutine[Any, Any, R]) -> R:
        if self._pid != os.getpid():
            coroutine.close()
            raise RuntimeError("the client was made before this process was forked: make one in each process")
        with self._lock:
            if not self._open:
                coroutine.close()
                raise RuntimeError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result()

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
        if self._pid != os.getpid():
            return  # everything that could be ended is the parent's
        with self._lock:
            if not self._open:
                return
            self._open = False
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        finally:
            self._end()

    async def _close(self) -> None:
        self._client.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, method: str, *params: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """Calls any procedure and returns its result, as `Client.call`."""
        return self._wait(self._client.call(method, *params, timeout_s=timeout_s, **options))
