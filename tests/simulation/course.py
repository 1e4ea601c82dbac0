"""A simulated course of events: its virtual time, the trace of what happens, and the first thing that went wrong.

What it is about (one machine, or several hosts and their log) is its subclass's. Everybody in it shares one kernel; who
is outside of the daemons (clients, whoever does harm) runs on the loop `outside`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from shards.supervisor.settings import SupervisorSettings
from shards.supervisor.supervisor import Supervisor
from shards.worker.process import Process
from tests.simulation.auditor import Violation
from tests.simulation.loop import SECOND_NS, Kernel
from tests.simulation.machine import SimProcess
from tests.simulation.wires import NetLoop, SimSocket

DATA = "/data"
CALLS_AT_ONCE = 8  # of each worker: few, so that calls that hang matter
REST_S = 120  # of virtual time, for everything to end once nothing goes wrong any more


class Stuck(AssertionError):
    """What has to end did not."""


class SimulatedRun:
    """Of one run."""

    kernel: Kernel
    outside: NetLoop

    def __init__(self) -> None:
        self.log: list[str] | None = None  # the last lines of the trace, where somebody wants to read them
        self.trouble: BaseException | None = None
        self._hash = hashlib.blake2b(digest_size=16)

    def state(self) -> str:
        """Where everything is, for a message."""
        raise AssertionError("of a subclass")

    # -- the trace --------------------------------------------------------------------------------------------------

    def trace(self, *fields: Any) -> None:
        """One line of what happened; all of them make the hash that a repetition must have, too."""
        line = f"{self.kernel.now_ns} {fields}"
        self._hash.update(line.encode())
        if self.log is not None:
            self.log.append(line)

    def digest(self) -> str:
        """Of all that happened."""
        return self._hash.hexdigest()

    def failed(self, error: BaseException) -> None:
        """Something is wrong: the first of these ends the run."""
        self.trouble = self.trouble or error

    def on_trouble(self, context: dict[str, Any]) -> None:
        """As a loop's handler of exceptions: whatever it is, it is wrong."""
        self.failed(context.get("exception") or Violation(str(context)))

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self, is_over: Callable[[], bool], seconds: float, description: str) -> None:
        """Lets things happen until it is so. Raises what went wrong, or Stuck after so much virtual time."""
        limit_ns = self.kernel.now_ns + int(seconds * SECOND_NS)
        is_ended = self.kernel.run(lambda: self.trouble is not None or is_over(), limit_ns)
        if self.trouble is not None:
            raise self.trouble
        if self.kernel.troubles:
            raise Violation(self.kernel.troubles[0])
        if not is_ended:
            raise Stuck(f"{description}: not within {seconds} s; {self.state()}")

    def task(self, coroutine: Any) -> asyncio.Task[Any]:
        """Runs a coroutine of the outside world."""
        task: asyncio.Task[Any] = self.outside.create_task(coroutine)
        task.add_done_callback(self._on_task)
        return task

    def _on_task(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.failed(error)

    def audit_alarm(self, armed: Callable[[Any, int, int], None], body: Process, boot_ns: int) -> None:
        """A worker lets itself be woken at `boot_ns`. armed: of the auditor."""
        worker = body.worker
        assert worker is not None, "an alarm is set by nobody"
        try:
            armed(worker.clock.anchors, boot_ns, worker.shard.next_due_ns())
        except Violation as error:
            self.failed(error)


def supervisor_in(process: SimProcess, settings: SupervisorSettings, door: SimSocket) -> Supervisor:
    """The daemon's main process, to be run; its clients come in by this door."""
    listeners: Any = [("tcp", door)]
    return Supervisor(settings, ["worker"], b"", listeners, process.host())
