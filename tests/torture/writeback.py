"""History and notices on a disk whose write-back fails for real: a sync says EIO, or nobody says anything.

    python -m tests.torture.writeback --cycles 40 --seed 1

`history/` and `notices/` are on an ext4 on a loop device whose image is a sparse file on a small tmpfs. When the tmpfs
is full, no block of the image that has never been written can be: the kernel answers a sync with EIO once, and keeps
what was written in its page cache, marked as clean. Where only the end of a write finds no room, it says nothing at
all: the loop device takes a short write for a whole one. Blocks that were written before go on working.

Each cycle plays a life of each follower, in a process of its own that ends as the real ones do (`store.code_of`): it
takes batches, makes them durable and proves them again and again, while the tmpfs fills up in the middle of it. The
journal is trimmed as far as the followers say, for good. Then there is room again, and in half of the cycles the volume
is mounted anew, so that nothing but the medium is left. The next lives must bring both to the end of the journal, and
then every row is in the history, every notice is owed, in order, and nobody says that anything was lost. A file may be
damaged where the kernel dropped a write of it without a word: then its follower says so, and makes the file anew.

Prints what it counted as JSON; exit code 1 with the reason where anything does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from billing.follower.store import ShardFile, code_of
from billing.history import store as history
from billing.history.history_reader import HistoryReader
from billing.notices import opening as notices
from shards.exits import Exit
from shards.system.disk import RealDisk
from tests.history.shard_driver import ShardDriver
from tests.torture.full import Filler
from tests.torture.volume import Volume, alone, why_not

SIZE_MIB: Final = 128  # of the volume
ROOM_MIB: Final = 96  # of what backs it: all that the files of forty cycles have ever been
BATCHES: Final = 24  # of a cycle
STEPS: Final = 40  # of a batch
LIVES_MAX: Final = 4  # until a follower is through, with room
# Data alone may be lost: without its own journal ext4 does not survive losing a block of metadata. So all tables are
# in one group and written from the start, and a file is so few pieces that its inode holds all of them.
MADE: Final = ("-b", "4096", "-N", "256", "-O", "^has_journal,bigalloc", "-C", str(1 << 20), "-E", "nodiscard")
MOUNTED: Final = "nodioread_nolock"  # an extent is not split for what of it is written
MADE_ANEW: Final = "it was damaged, and is made anew"  # how the one remark begins that may be made here
NEWEST: Final = 2**63 - 1
NOW_NS: Final = 10**18


class Follower:
    """One follower, seen from its worker: where its file is, and what its process said."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory / kind
        self.directory.mkdir(0o700)
        self.durable = 0
        self.is_suspect = False
        self.lives = 0
        self.made_anew = 0  # times

    def open(self, disk: RealDisk, first: int, head: int) -> tuple[Any, list[str]]:
        """Its store, and what it has to say."""
        file = ShardFile(str(self.directory), 0, first, head, disk)
        if self.kind == "history":
            return history.open_store(file, suspect=self.is_suspect)
        return notices.open_store(file, suspect=self.is_suspect, file_id=self.lives, now_ns=NOW_NS)

    def take(self, store: Any, position: int, payload: bytes) -> None:
        """Hands a batch over, and commits it."""
        store.take(position, payload, *(() if self.kind == "history" else (NOW_NS,)))
        store.flush()

    def live(self, batches: list[bytes], first: int, on_batch: Callable[[int], None]) -> int:
        """A process from its start to the end of the journal; its exit code. `on_batch` is called before each batch."""
        self.lives += 1
        reading, writing = os.pipe()
        if not (pid := os.fork()):
            os.close(reading)
            code = 1
            try:
                code = self._serve(batches, first, on_batch, writing)
            finally:
                os._exit(code)  # without closing the file
        os.close(writing)
        with os.fdopen(reading) as messages:
            for line in messages:
                message = json.loads(line)
                for remark in message.get("remarks", ()):
                    assert remark.startswith(MADE_ANEW), f"the {self.kind} say: {remark}"
                    self.made_anew += 1
                assert "trouble" not in message, message["trouble"]
                self.durable = message["durable"]
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.is_suspect = code in (Exit.DISK, Exit.DAMAGED)
        return code

    def _serve(self, batches: list[bytes], first: int, on_batch: Callable[[int], None], messages_fd: int) -> int:
        def tell(**fields: object) -> None:
            os.write(messages_fd, json.dumps(fields).encode() + b"\n")

        try:
            store, remarks = self.open(RealDisk(), first, len(batches))
            tell(durable=store.durable, remarks=remarks)
            for position in range(store.position + 1, len(batches) + 1):
                on_batch(position)
                assert position >= first, f"batch {position} is trimmed, and is needed again"
                self.take(store, position, batches[position - 1])
                if not position % 3 or position == len(batches):
                    store.checkpoint()
                    tell(durable=store.durable)
        except BaseException as error:
            if code_of(error) == Exit.BUG:
                tell(trouble=traceback.format_exc(), durable=0)
            return code_of(error)
        return 0


class WritebackCampaign:
    """A volume whose backing can be full, the followers on it, and a journal in memory."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.backing = directory / "backing"
        self.backing.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={ROOM_MIB}m", "backing", str(self.backing)], check=True
        )  # fmt: skip
        self.volume = Volume("ext4", self.backing, SIZE_MIB, MADE, MOUNTED)
        self.volume.mount()
        self.write_inodes()
        self.filler = Filler(self.backing)
        self.rng = random.Random(seed)
        self.driver = ShardDriver(seed=seed)
        self.followers = [Follower(kind, self.volume.root) for kind in ("history", "notices")]
        self.sound = [Follower(kind, directory) for kind in ("history", "notices")]  # elsewhere, as they should be
        self.counts: Counter[str] = Counter()
        self.first = 1
        for follower in self.sound + self.followers:
            assert follower.live([], 1, lambda _: None) == 0

    @property
    def batches(self) -> list[bytes]:
        return self.driver.batches

    def cycle(self) -> None:
        """Fills the disk under both, gives the room back, and compares. AssertionError."""
        for _ in range(BATCHES):
            self.driver.batch(STEPS)
        full_at = len(self.batches) - self.rng.randrange(BATCHES)
        for follower in self.followers:
            code = follower.live(
                self.batches, self.first, lambda position: self.filler.grow() if position == full_at else None
            )
            assert code in (0, Exit.DISK), f"the {follower.kind} ended with {code}"
            self.counts[f"{follower.kind} ended on the disk"] += code == Exit.DISK
        if self.rng.random() < 0.5:
            self.remount()
        self.trim()
        self.filler.free()
        for follower in self.followers:
            for _ in range(LIVES_MAX):
                code = follower.live(self.batches, self.first, lambda _: None)
                if not code:
                    break
            assert not code, f"the {follower.kind} does not come up again: {code}"
            assert follower.durable == len(self.batches), f"the {follower.kind} is proved up to {follower.durable}"
        self.remount()
        self.trim()
        self.compare()
        self.counts["cycles"] += 1

    def write_inodes(self) -> None:
        """Every block of the table of inodes is written once, by a file that is made and removed."""
        names = [self.volume.root / f"inode-{number}" for number in range(os.statvfs(self.volume.root).f_ffree)]
        for change in (Path.touch, Path.unlink):
            for name in names:
                change(name)
            os.sync()

    def remount(self) -> None:
        """Nothing is left but what the medium holds."""
        RealDisk.readers.close()
        self.volume.unmount()
        self.volume.mount()
        self.counts["mounted anew"] += 1

    def trim(self) -> None:
        """The journal goes as far as both have it."""
        self.first = max(self.first, min(follower.durable for follower in self.followers) + 1)

    def compare(self) -> None:
        """Both hold what they should. AssertionError."""
        for sound, follower in zip(self.sound, self.followers, strict=True):
            assert sound.live(self.batches, 1, lambda _: None) == 0
            assert not sound.made_anew
            expected, actual = (self.content(follower_of_two) for follower_of_two in (sound, follower))
            assert actual == expected, f"the {follower.kind} hold something else"
            assert expected
            self.counts[f"{follower.kind} compared"] += len(expected)

    def content(self, follower: Follower) -> list[object]:
        """All that it answers, of every account, in order."""
        store, remarks = follower.open(RealDisk(), 1 if follower in self.sound else self.first, len(self.batches))
        try:
            assert not remarks, remarks
            if follower.kind == "notices":
                return [row[1:] for row in store.after(0, NEWEST)]
            reader = HistoryReader(str(follower.directory), 0, store.db, RealDisk())
            return [row for user in self.driver.users for row in reader.history(1, user, NEWEST, NEWEST).rows]
        finally:
            store.db.close()

    def close(self) -> None:
        """Lets go of both mounts."""
        RealDisk.readers.close()
        self.volume.unmount()
        subprocess.run(["umount", str(self.backing)], check=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    reason = why_not("ext4")
    if reason:
        print(f"cannot be done here: {reason}", file=sys.stderr)
        return 2
    alone()
    with tempfile.TemporaryDirectory(prefix="writeback-") as name:
        campaign = WritebackCampaign(Path(name), arguments.seed)
        try:
            for _ in range(arguments.cycles):
                campaign.cycle()
            for follower in campaign.followers:
                assert campaign.counts[f"{follower.kind} ended on the disk"], (
                    f"the disk never failed under {follower.kind}"
                )
                campaign.counts[f"{follower.kind} made anew"] = follower.made_anew
        except AssertionError:
            traceback.print_exc()
            return 1
        finally:
            campaign.close()
    print(json.dumps(campaign.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
