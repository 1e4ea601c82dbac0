"""What this worker's callers have asked the supervisor, and what they are told where it does not answer.

While a question waits, the supervisor is asked every `LOOK_S` whether it is there (`ALIVE`), which it answers at once,
however long the question itself takes. After `SILENT_LOOKS` of these without a word of it the main process is silent:
whoever waits is told so, sooner than clients give up. Looks are counted, and no time is measured: a worker that was
suspended itself has not looked meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from shards.control import Answer, Ask
from shards.machine import Command

ALIVE: Final = ("alive",)  # an operation of the supervisor that says nothing
LOOK_S: Final = 1.0
SILENT_LOOKS: Final = 7  # and a `LOOK_S` before them; clients wait for 10 s
CHANGES: Final = frozenset({"move_bucket", "pin_bucket", "unpin_bucket", "rebalance", "backup"})
SILENT: Final = "the main process of the daemon has not answered for {} s"


class Asks:
    """The questions of one worker, by number."""

    def __init__(
        self, send: Callable[[Ask], None], pass_back: Callable[[Any, Any, object], None], look_s: float = LOOK_S
    ) -> None:
        """`pass_back(caller, token, reply)` takes each answer, as plain data."""
        self._look_s = look_s
        self._send = send
        self._pass_back = pass_back
        self._askers: dict[int, tuple[Any, Any, str]] = {}  # number -> (caller, token, name of the operation)
        self._number = 0
        self._looks = 0  # since the supervisor was heard last
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, caller: Any, token: Any, operation: Command) -> None:
        """Passes an operation on to the supervisor; the answer comes to the caller."""
        self._number += 1
        self._askers[self._number] = (caller, token, operation[0])
        self._send(Ask(self._number, operation))
        if self._timer is None:
            self._looks = 0
            self._look_later()

    def on_answer(self, message: Answer) -> None:
        """Takes an answer of the supervisor. One that comes too late, and that to a look, is no answer to anybody."""
        self._looks = 0
        asker = self._askers.pop(message.number, None)
        if asker is not None:
            self._pass_back(asker[0], asker[1], message.reply)

    def close(self) -> None:
        """Looks no more; whoever waits gets no answer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._askers:
            return
        if self._looks == SILENT_LOOKS:
            askers, self._askers = self._askers, {}
            text = SILENT.format(f"{self._look_s * (SILENT_LOOKS + 1):g}")
            for caller, token, name in askers.values():
                unknown = {"applied": "unknown"} if name in CHANGES else {}
                self._pass_back(caller, token, {"refused": "UNAVAILABLE", "message": text} | unknown)
            return
        self._looks += 1
        self._send(Ask(0, ALIVE))
        self._look_later()
