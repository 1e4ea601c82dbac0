"""Child processes of a tool: starts them, reads their output line by line, and ends them by their process ids.

Theory. A child runs in a process group of its own inside the tool's session, so Ctrl-C in the terminal reaches the tool
alone, which then ends its children in the right order. The tool reads a child's output at once, so that the child never
waits for it, and keeps the last `TAIL_LINES` lines for the message that says why the child ended.

`run_until_signalled` runs such a tool: the first signal cancels it, and a second one does not disturb its cleaning up.

`Child.end` sends SIGTERM and waits; a child that does not end in time is killed. No process is ever signalled by name.
"""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from shards.exits import Exit

TAIL_LINES: Final = 30
LINE_BYTES_MAX: Final = 64 * 1024
END_WAIT_S: Final = 20.0
ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildError(Exception):
    """A child process ended, or did not do what it was started for. The text has the last lines that it printed."""


class Child:
    """One process. `on_line` gets every line that it writes to standard output or standard error."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """`descriptors`: open files that the child inherits, under the same numbers."""
        self.name = name
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._on_line = on_line
        self._descriptors = tuple(descriptors)
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        assert self._process is None, "it was started before"
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments,
            env=self._environment,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            limit=LINE_BYTES_MAX,
            process_group=0,
            pass_fds=self._descriptors,
        )
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self._read(self._process.stdout))

    @property
    def pid(self) -> int:
        """The process id of a child that was started."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def ended(self) -> int:
        """Waits until the child has ended. Returns its exit code, or minus the number of the signal that ended it."""
        assert self._process is not None, "it was not started"
        assert self._reading is not None
        code = await self._process.wait()
        await asyncio.wait([self._reading], timeout=1.0)  # a grandchild may hold the pipe open
        return code

    async def end(self, wait_s: float = END_WAIT_S) -> int:
        """Sends SIGTERM, and after `wait_s` seconds SIGKILL. Returns the exit code; 0 if it was never started."""
        if self._process is None:
            return 0
        if self.running:
            self._process.terminate()
            try:
                async with asyncio.timeout(wait_s):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        code = await self.ended()
        if self._reading is not None:
            self._reading.cancel()
        return code

    def complaint(self, what: str) -> ChildError:
        """An error that says what happened (`what`, such as "ended") and the last lines that the child printed."""
        printed = "".join(f"\n  {line}" for line in self.tail)
        return ChildError(f"{self.name} {what}{'; it printed:' + printed if printed else ''}")

    async def _read(self, lines: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await lines.readline()
            except ValueError:  # the line is longer than the limit; what was read of it is lost
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self.tail.append(text)
            if self._on_line is not None:
                self._on_line(text)


def run_until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """Runs `work`. Returns its exit code, or `Exit.INTERRUPTED` if a signal ended it."""

    async def run() -> int:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)

        def on_signal() -> None:
            if not task.cancelling():
                task.cancel()

        for number in ENDING_SIGNALS:
            loop.add_signal_handler(number, on_signal)
        try:
            return await task
        except asyncio.CancelledError:
            return Exit.INTERRUPTED

    return asyncio.run(run())
