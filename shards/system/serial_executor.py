"""The one thread that waits for the disk.

A loop must never wait for a sync, and a journal has at most one append outstanding. So each journal has one thread that
does its jobs one after the other and reports each to the loop. It reports errors like results, and retries nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = tuple[Callable[..., Any], tuple[Any, ...], Callable[[Any, BaseException | None], None]]


class SerialExecutor:
    """Runs jobs in order on a thread of its own, and calls `done(result, error)` of each on the loop."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, done: Callable[[Any, BaseException | None], None], function: Callable[..., Any], *arguments: Any
    ) -> None:
        """Queues a job. The queue needs no limit, because callers keep at most a handful of jobs outstanding."""
        self._jobs.put((function, arguments, done))

    def _run(self) -> None:
        report = self._loop.call_soon_threadsafe
        while (job := self._jobs.get()) is not None:
            function, arguments, done = job
            try:
                result, error = function(*arguments), None
            except BaseException as caught:  # reported to the loop, which ends the worker or answers
                result, error = None, caught
            try:
                report(done, result, error)
            except RuntimeError:  # the loop is closed: nobody is left to hear it
                return

    def queue(self) -> SimpleQueue[Any]:
        """Returns a queue that the loop fills, and in whose `get` a job may wait."""
        return SimpleQueue()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a job and waits for it without blocking the loop. Returns its result, or raises its error."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(done, function, *arguments)
        return await future

    def close(self) -> None:
        """Waits for the jobs that are queued, and ends the thread."""
        self._jobs.put(None)
        self._thread.join()


ExecutorOf = Callable[[str, asyncio.AbstractEventLoop], SerialExecutor]  # by name, for a loop
