"""The end of a daemon with everything that it started."""

from __future__ import annotations

import asyncio

import psutil

from tests.system.daemon import Daemon


async def killed_with_all_it_started(daemon: Daemon) -> None:
    """kill −9, and until nobody writes any more: the processes of histories end a moment after those they served."""
    assert daemon.process is not None
    everyone = psutil.Process(daemon.process.pid).children(recursive=True)
    daemon.kill()
    await asyncio.to_thread(psutil.wait_procs, everyone, 60)
