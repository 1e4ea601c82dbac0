"""What runs beside the supervisor's own course: tasks that nobody waits for, and whose failure nobody overlooks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """The background tasks of one supervisor."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        """`on_failure` is called with each exception that ends a task."""
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Runs a coroutine as a background task."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    def cancel(self) -> None:
        """Cancels the tasks that still run."""
        for task in self._tasks:
            task.cancel()
