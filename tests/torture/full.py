"""A disk that fills up under load and is freed again: a clear error, nothing lost, and it recovers by itself.

    python -m tests.torture.full --cycles 20 --seed 1

The data directory is on a small ext4 of its own. Each cycle fills it to the last block while clients call, until both
workers refuse with "the disk is full". Meanwhile balances can still be read and no worker ends. In every second cycle
the daemon is killed and started on the full disk, where it serves out of its ballast or waits for room. Then the room
comes back, and so must service, with nobody's help; at last everything is compared as after any other fault.

Prints what it counted as JSON; exit code 1 with the reason where anything does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.system.rpc import Rpc
from tests.torture.cycles import judged, prove, struck_daemon
from tests.torture.load import FULL, Load
from tests.torture.volume import Volume, alone, why_not

SIZE_MIB = 256
REFUSED_BEFORE_S = 60.0
SERVED_BEFORE_S = 60.0
READ_BEFORE_S = 60.0  # a disk that others use, too, may take seconds for the batch before it
SIZES = (8 << 20, 1 << 20, 65536, 4096)  # in which the filler grows


class Filler:
    """A file that takes all the room there is."""

    def __init__(self, root: Path) -> None:
        self._path = root / "filler"

    def grow(self) -> None:
        """Takes what is left, down to the last block."""
        with self._path.open("ab", buffering=0) as file:
            for size in SIZES:
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)

    def free(self) -> None:
        """Gives it all back."""
        self._path.unlink()


class MachineWithSmallVolume:
    """One daemon on one small volume."""

    def __init__(self, directory: Path) -> None:
        self.volume = Volume("ext4", directory, SIZE_MIB)
        self.volume.mount()
        self.filler = Filler(self.volume.root)
        self.daemon = struck_daemon(directory, daemon__data_dir=str(self.volume.root / "data"))


async def refusals(rpc: Rpc, users: list[str]) -> list[str]:
    """What a command for each user is answered; empty where it is carried out."""
    replies = await asyncio.gather(*(rpc.call("top_up", user, 1) for user in users))
    return [error or "" for error, _ in replies]


async def cycle(machine: MachineWithSmallVolume, load: Load, rng: random.Random, restart: bool) -> None:
    """Full, and freed again. AssertionError."""
    daemon = machine.daemon
    pids = daemon.worker_pids()
    rpc = await Rpc.connect(daemon.rpc_port)
    users = await probes(rpc)
    load.begin(daemon.rpc_port)
    await asyncio.sleep(rng.uniform(0, 0.3))
    deadline = time.monotonic() + REFUSED_BEFORE_S
    while True:
        await asyncio.to_thread(machine.filler.grow)
        errors = await asyncio.wait_for(refusals(rpc, users), 15)
        if all(FULL in error for error in errors):
            break
        assert all(not error or FULL in error for error in errors), errors
        assert time.monotonic() < deadline, f"the disk is full, and commands are not refused: {errors}"
        await asyncio.sleep(0.1)
    load.counts["filled"] += 1
    for user in users:
        account = await asyncio.wait_for(rpc.ask("get_account", user), READ_BEFORE_S)
        assert account["balance_nanos"] > 0
    load.counts["read while full"] += len(users)
    if restart:
        daemon.kill()
        await load.end()
        starting = asyncio.create_task(asyncio.to_thread(daemon.start, 60))
        await asyncio.sleep(2)
        assert not starting.done(), "it is said to be ready, and it had no room to start"
        machine.filler.free()
        await starting
        load.counts["started while full"] += 1
        pids = daemon.worker_pids()
        rpc = await Rpc.connect(daemon.rpc_port)
        load.begin(daemon.rpc_port)
    else:
        await asyncio.sleep(rng.uniform(0, 1.5))
        machine.filler.free()
    deadline = time.monotonic() + SERVED_BEFORE_S
    while any(errors := await asyncio.wait_for(refusals(rpc, users), 15)):
        assert time.monotonic() < deadline, f"there is room again, and commands are refused: {errors}"
        await asyncio.sleep(0.05)
    rpc.close()
    await load.end()
    assert daemon.worker_pids() == pids, "a worker ended because the disk was full"
    await load.verify(daemon.rpc_port)


async def probes(rpc: Rpc) -> list[str]:
    """A user of each shard that the load does not know."""
    owners = (await rpc.ask("route"))["owners"]
    users: dict[int, str] = {}
    for number in range(100):
        user = f"probe_{number}"
        users.setdefault(owners[await rpc.ask("bucket_id", user) - 1], user)
    for user in users.values():
        await rpc.ask("top_up", user, 1)
    return list(users.values())


async def campaign(machine: MachineWithSmallVolume, cycles: int, seed: int) -> dict[str, int]:
    """So many cycles, and the proof. AssertionError."""
    rng, load = random.Random(seed), Load("full")
    await asyncio.to_thread(machine.daemon.start)
    for number in range(cycles):
        await cycle(machine, load, rng, restart=number % 2 == 1)
    assert load.counts["filled"] == cycles
    assert load.counts["refused, full"] > 0, "the load never met the full disk"
    await prove(machine.daemon, load)
    return dict(load.counts)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", default="/var/tmp", help="where the image is made")
    arguments = parser.parse_args()
    reason = why_not("ext4")
    if reason:
        print(f"cannot be done here: {reason}", file=sys.stderr)
        return 2
    alone()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="full-") as name:
        machine = MachineWithSmallVolume(Path(name))
        try:
            if code := judged(machine.daemon, campaign(machine, arguments.cycles, arguments.seed)):
                for path in sorted(machine.volume.root.rglob("*")):
                    print(f"{path.stat().st_blocks // 2:9} KiB  {path}", file=sys.stderr)
            return code
        finally:
            machine.volume.unmount()


if __name__ == "__main__":
    sys.exit(main())
