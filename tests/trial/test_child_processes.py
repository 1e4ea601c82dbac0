"""Child processes: listened to, ended by their own process id, and killed where they do not go."""

from __future__ import annotations

import asyncio
import os
import sys

from billing.trial.child_processes import TAIL_LINES, Child


def child(script: str, lines: list[str] | None = None) -> Child:
    take = None if lines is None else lines.append
    return Child("a child", [sys.executable, "-u", "-c", script], os.environ, take)


async def start(script: str) -> Child:
    """A running child that has printed something."""
    up = asyncio.Event()
    started = Child("a child", [sys.executable, "-u", "-c", script], os.environ, lambda _: up.set())
    await started.start()
    async with asyncio.timeout(60):
        await up.wait()
    return started


async def test_every_line_is_read_and_the_last_are_kept() -> None:
    lines: list[str] = []
    printing = child("import sys\nfor n in range(100): print(n, file=sys.stderr if n % 2 else sys.stdout)", lines)
    await printing.start()
    assert await printing.ended() == 0
    assert lines == [str(number) for number in range(100)]
    assert list(printing.tail) == lines[-TAIL_LINES:]
    assert not printing.running
    assert str(printing.complaint("ended")).startswith("a child ended; it printed:\n  70\n")


async def test_a_line_without_end_does_not_stop_the_reading() -> None:
    lines: list[str] = []
    printing = child("print('x' * 300000)\nprint('after')", lines)
    await printing.start()
    assert await printing.ended() == 0
    assert lines[-1] == "after"


async def test_it_is_asked_to_end() -> None:
    started = await start(
        "import signal, time\nsignal.signal(15, lambda *_: exit(7))\nprint('up')\nwhile True: time.sleep(0.1)"
    )
    assert started.running
    assert await started.end() == 7
    assert await started.end() == 7  # once more does nothing


async def test_what_does_not_go_is_killed() -> None:
    started = await start("import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up')\ntime.sleep(60)")
    assert await started.end(0.1) == -9


async def test_what_was_never_started_is_over() -> None:
    assert await child("pass").end() == 0
