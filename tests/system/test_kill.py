"""kill −9 of any process at any time, under load: what was answered is there, once, and nothing else is.

The clients and their proof are those of `tests.torture`, where the same is done 300 times.
"""

from __future__ import annotations

from pathlib import Path

from tests.system.endings import killed_in_the_end
from tests.torture.cycles import struck_daemon
from tests.torture.kill import campaign

CYCLES = 9  # three of each kind
SEED = 1


async def test_kill_9_of_any_process_under_load_loses_nothing_that_was_answered(data_dir: Path) -> None:
    daemon = struck_daemon(data_dir)
    with killed_in_the_end(daemon):
        counts = await campaign(daemon, CYCLES, SEED)
    print(f"seed {SEED}: {counts}")
    assert counts["worker"] + counts["supervisor"] + counts["all"] == CYCLES
