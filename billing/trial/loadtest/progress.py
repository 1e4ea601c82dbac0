"""The display while a load test runs: a bar on a terminal, and elsewhere a line a second, as pgbench prints it:

    progress: 12.0 s, 24998 commands/s, 299976 answered

The load test reports its progress by calling `Display.at`.
"""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from shards.system.clock import MACHINE_CLOCKS

LINE_EVERY_NS: Final = 10**9
MOVE_EVERY_NS: Final = 10**8


class Display:
    """`with Display(quiet) as display`, then `display.at(what, done, of)`."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._quiet = quiet
        self._lines = not quiet and not self._console.is_terminal
        self._task: TaskID | None = None
        self._what = ""
        self._began_ns = self._line_ns = self._moved_ns = 0
        self._done = 0

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line that stays on the terminal."""
        if not self._quiet:
            self._console.print(line, highlight=False, soft_wrap=True)

    def at(self, what: str, done: int, of: int) -> None:
        """Reports progress: of the work that is called `what`, `done` of `of` items are done; `of` 0: unknown."""
        now_ns = MACHINE_CLOCKS.boot_ns()
        if what != self._what:
            self._what, self._done = what, 0
            self._began_ns = self._line_ns = now_ns
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=of or None)
        if self._task is not None and now_ns - self._moved_ns > MOVE_EVERY_NS:
            self._moved_ns = now_ns
            self._bar.update(self._task, completed=done, total=of or None)
        if what == "load" and now_ns - self._line_ns >= LINE_EVERY_NS:
            per_s = (done - self._done) * 10**9 / (now_ns - self._line_ns)
            if self._lines:
                self.say(f"progress: {(now_ns - self._began_ns) / 1e9:.1f} s, {per_s:.0f} commands/s, {done} answered")
            self._line_ns, self._done = now_ns, done
