"""Loss of power for real: the daemon's data directory is on an ext4 or XFS of its own, whose power is cut under load.

    python -m tests.torture.power --kind ext4 --cycles 10 --seed 1

Each cycle cuts the power at a random instant, mounts the file system again under another boot_id, lets the independent
reader look at every fifth wreck, and starts the daemon. When real power goes, no process runs on; so they are stopped
before the cut and killed after it. In some cycles they do run on and see the disk fail, as when a disk is lost; what
they answer then does not count (an fdatasync that ext4's shutdown overtakes may return 0 for what its log will never
have). `--sync never` is the negative control: there, answers *must* be lost, or the campaign proves nothing.

Prints what it counted as JSON; exit code 1 with the reason where anything does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.system.daemon import Daemon
from tests.system.rpc import Rpc
from tests.torture.cycles import cycle, examined, judged, prove, struck_daemon
from tests.torture.load import Load
from tests.torture.volume import Volume, alone, why_not

CONTROL_CYCLES = 20
EXAMINE_EVERY = 5


class MachineOnVolume:
    """One daemon on one volume."""

    def __init__(self, kind: str, directory: Path, sync: str, examine_every: int) -> None:
        self._examine_every = examine_every
        self.volume = Volume(kind, directory)
        self.volume.boot()
        self.volume.mount()
        self.data_dir = self.volume.root / "data"
        self.daemon: Daemon = struck_daemon(directory, daemon__data_dir=str(self.data_dir), journal__sync=sync)

    async def strike(self, rng: random.Random, load: Load) -> str:
        """The power goes; the processes with it, or after they have noticed."""
        noticed = rng.random() < 0.3
        if noticed:
            load.distrust()
        else:
            self.daemon.signal(signal.SIGSTOP)
        self.volume.cut_power()
        if noticed:
            await asyncio.sleep(rng.uniform(0.05, 0.2))
        self.daemon.kill()
        return "power cut, noticed" if noticed else "power cut"

    def up(self) -> None:
        """Power again: the file system recovers, and the machine is another start older."""
        self.volume.unmount()
        self.volume.boot()
        self.volume.mount()

    async def heal(self, _: str) -> None:
        await asyncio.to_thread(self.up)
        if self.volume.cuts % self._examine_every == 0:
            await asyncio.to_thread(examined, self.data_dir)
        await asyncio.to_thread(self.daemon.start)


async def campaign(machine: MachineOnVolume, cycles: int, seed: int) -> dict[str, int]:
    """So many cycles, and the proof. AssertionError."""
    rng, load = random.Random(seed), Load("power")
    await asyncio.to_thread(machine.daemon.start)
    for _ in range(cycles):
        await cycle(machine.daemon, load, rng, machine.strike, machine.heal)
    load.require(cycles)
    assert machine.volume.cuts == cycles, "a power cut that never came"
    await prove(machine.daemon, load)
    return dict(load.counts)


async def control(machine: MachineOnVolume, seed: int) -> dict[str, int]:
    """Without syncs: cuts until an answer is lost. AssertionError where none ever is."""
    rng = random.Random(seed)
    for number in range(1, CONTROL_CYCLES + 1):
        load = Load(f"control_{number}")
        await asyncio.to_thread(machine.daemon.start)
        load.begin(machine.daemon.rpc_port)
        await asyncio.sleep(rng.uniform(0.1, 0.3))
        await machine.strike(rng, load)
        await load.end()
        await asyncio.to_thread(machine.up)
        await asyncio.to_thread(machine.daemon.start)
        rpc = await Rpc.connect(machine.daemon.rpc_port)
        for writer in load.writers:
            for user in writer.users:
                error, account = await rpc.call("get_account", user)
                entry_id = account["entry_id"] if error is None else 0
                if entry_id < writer.last_entry[user]:
                    return {"cycles": number, "answers lost of one user": writer.last_entry[user] - entry_id}
        rpc.close()
        machine.daemon.kill()
    raise AssertionError(f"{CONTROL_CYCLES} power cuts without a sync lost nothing: the campaign proves nothing")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["ext4", "xfs"], required=True)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sync", choices=["always", "never"], default="always")
    parser.add_argument(
        "--examine-every", type=int, default=EXAMINE_EVERY, help="the independent reader looks so often"
    )
    parser.add_argument("--directory", default="/var/tmp", help="where the image is made")
    arguments = parser.parse_args()
    reason = why_not(arguments.kind)
    if reason:
        print(f"cannot be done here: {reason}", file=sys.stderr)
        return 2
    alone()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="power-") as name:
        machine = MachineOnVolume(arguments.kind, Path(name), arguments.sync, arguments.examine_every)
        never = arguments.sync == "never"
        try:
            run = control(machine, arguments.seed) if never else campaign(machine, arguments.cycles, arguments.seed)
            return judged(machine.daemon, run)
        finally:
            machine.volume.unmount()


if __name__ == "__main__":
    sys.exit(main())
