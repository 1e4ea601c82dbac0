"""A data directory of files goes over to another machine, as a replicated disk lets it: it starts rightly there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from billing.trial.receiver import Receiver
from tests.system.clock_step import ClockStep
from tests.system.daemon import Daemon
from tests.system.endings import killed_in_the_end
from tests.system.rpc import Rpc
from tests.torture.volume import BOOT_ID

SECOND = 10**9
APART_S = 5  # the clocks of the two machines


def why_not() -> str:
    if os.geteuid() != 0:
        return "another boot id needs root"
    result = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return result.stderr.strip()


class Machines:
    """Machines over one disk, one after the other: each with a boot id and a wall clock of its own."""

    def __init__(self, directory: Path, url: str) -> None:
        self._boot_id = directory / "boot_id"
        self.clock = ClockStep(directory)
        self.daemon = Daemon(directory, cutoff__url=url, shards__workers=1)
        self.daemon.environment = self.clock.environment
        script = f'mount --bind {self._boot_id} {BOOT_ID} && exec "$@"'
        self.daemon.prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]

    async def start(self, clock_s: int) -> Rpc:
        """On another machine, whose clock is so far ahead."""
        self._boot_id.write_text(f"{uuid.uuid4()}\n")
        self.clock.to(clock_s)
        await asyncio.to_thread(self.daemon.start)
        return await Rpc.connect(self.daemon.rpc_port)


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be done")
async def test_a_disk_that_goes_over_to_a_machine_whose_clock_is_five_seconds_off_keeps_every_instant(
    data_dir: Path, receiver: Receiver
) -> None:
    machines = Machines(data_dir, f"{receiver.url}/off")
    with killed_in_the_end(machines.daemon):
        rpc = await machines.start(0)
        await rpc.ask("top_up", "lasting", 10**6 * SECOND)
        account: dict[str, Any] = await rpc.ask("set_rate", "lasting", SECOND)  # a coin a second
        await rpc.ask("top_up", "ending", 3 * SECOND)
        ends_ns = (await rpc.ask("set_rate", "ending", SECOND))["exhausts_at_ns"]
        last = await rpc.ask("top_up", "lasting", 1)
        machines.daemon.kill()

        rpc = await machines.start(-APART_S)  # behind: time stands where it was, and goes on
        now = await rpc.ask("get_account", "lasting")
        assert last["at_ns"] <= now["at_ns"] < last["at_ns"] + 60 * SECOND
        assert now["exhausts_at_ns"] == last["exhausts_at_ns"]
        assert now["balance_nanos"] == last["balance_nanos"] - (now["at_ns"] - last["at_ns"])
        while not receiver.calls:
            await asyncio.sleep(0.02)
        machines.daemon.kill()

        rpc = await machines.start(APART_S)  # ahead: it steps forward, and is charged once
        account_after = await rpc.ask("get_account", "lasting")
        assert now["at_ns"] + APART_S * SECOND < account_after["at_ns"]
        assert account_after["exhausts_at_ns"] == last["exhausts_at_ns"]
        assert account_after["balance_nanos"] == 10**6 * SECOND + 1 - (account_after["at_ns"] - account["at_ns"])
        assert (await rpc.ask("get_account", "ending"))["state"] == "exhausted"
        assert {(call.event_id, call.exhausted_at_ns) for call in receiver.calls} == {(f"ending:1:{ends_ns}", ends_ns)}
        rpc.close()
        assert machines.daemon.stop() == 0
