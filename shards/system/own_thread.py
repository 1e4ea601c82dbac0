"""A thread for one piece of work that may block for as long as a machine elsewhere is silent: a resolver, a mount.

A pool of threads would be shared: as many silent parties as it has threads would hold up all others, and a loop that
ends waits for its pool. Here each piece of work has a thread of its own, and the end of the process waits for none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def on_own_thread(name: str, function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Begins `function(*arguments)` on a new thread; returns what will hold its result, or what it raised. Nobody can
    cancel it.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()
    threading.Thread(target=settle, name=name, args=(outcome, function, *arguments), daemon=True).start()
    return outcome


def settle(outcome: Future[T], function: Callable[..., T], *arguments: Any) -> None:
    """Calls `function(*arguments)` on this thread, and sets its result, or what it raised."""
    try:
        outcome.set_result(function(*arguments))
    except Exception as error:
        outcome.set_exception(error)
