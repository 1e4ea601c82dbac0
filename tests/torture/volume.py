"""A file system of our own on a loop device, whose power can be cut.

`cut_power` is the file system's own shutdown (EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN, without flushing its log): from
then on every call fails, and what was not synced is gone. After `unmount` and `mount` the file system has recovered
as it does after a loss of power. Caches of the device itself are not lost; that is a disk's own promise.

All of it needs root, and takes place in a mount namespace of its own (`alone`), so that no other process holds the
mount, and so that the machine can seem to have been started anew: `boot` puts another boot_id into place.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NOLOGFLUSH = 2
MAGIC = {"ext4": 0xEF53, "xfs": 0x58465342}  # statfs(2)
SIZE_MIB = {"ext4": 128, "xfs": 320}  # mkfs.xfs makes none below 300
BOOT_ID = "/proc/sys/kernel/random/boot_id"
INSIDE = "TORTURE_MOUNT_NAMESPACE"


def why_not(kind: str) -> str:
    """Why file systems of this kind cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    for tool in (f"mkfs.{kind}", "mount", "umount", "unshare"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices here"
    if kind not in Path("/proc/filesystems").read_text().split():
        return f"the kernel has no {kind}"
    result = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"no mount namespace of our own: {result.stderr.strip()}" if result.returncode else ""


def alone() -> None:
    """Goes on in a mount namespace of its own: starts this program anew there, unless it runs in one."""
    if os.environ.get(INSIDE):
        return
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.orig_argv[1:]]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


class Volume:
    """One image, mounted at `directory`/mount while it is."""

    def __init__(
        self, kind: str, directory: Path, size_mib: int = 0, options: tuple[str, ...] = (), mounted: str = ""
    ) -> None:
        """`options`: for mkfs, `mounted`: for mount, separated by commas, beside what is always so."""
        self.kind = kind
        self.image = directory / f"{kind}.image"
        self.root = directory / "mount"
        self._boot_id = directory / "boot_id"
        self._mount_options = ",".join(filter(None, ("loop", "noatime", mounted)))
        self.cuts = 0
        with self.image.open("wb") as image:
            image.truncate((size_mib or SIZE_MIB[kind]) << 20)
        quiet = ["-q"] if kind == "xfs" else ["-q", "-F", "-m", "0"]
        subprocess.run([f"mkfs.{kind}", *quiet, *options, str(self.image)], check=True, capture_output=True)
        self.root.mkdir()

    def boot(self) -> None:
        """The machine is started anew, for whoever asks the kernel which start this is."""
        bound = self._boot_id.exists()
        self._boot_id.write_text(f"{uuid.uuid4()}\n")
        if not bound:
            subprocess.run(["mount", "--bind", str(self._boot_id), BOOT_ID], check=True)

    def mount(self) -> None:
        """Mounts it, and makes sure that it is what it should be."""
        subprocess.run(
            ["mount", "-t", self.kind, "-o", self._mount_options, str(self.image), str(self.root)], check=True
        )
        assert magic(self.root) == MAGIC[self.kind], f"{self.root} is no {self.kind}"

    def cut_power(self) -> None:
        """What is not synced is lost from here on."""
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(handle)
        with contextlib.suppress(OSError):
            (self.root / "alive").touch()
            raise AssertionError("the shutdown did not take: the file system still serves")
        self.cuts += 1

    def unmount(self, wait_s: float = 60.0) -> None:
        """Unmounts it as soon as the last process of the daemon has let go of it."""
        deadline = time.monotonic() + wait_s
        while True:
            result = subprocess.run(["umount", str(self.root)], capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return
            assert time.monotonic() < deadline, result.stderr
            time.sleep(0.01)


def magic(path: Path) -> int:
    """f_type of statfs(2)."""
    buffer = (ctypes.c_long * 32)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), ctypes.byref(buffer)):
        raise OSError(ctypes.get_errno(), "statfs", str(path))
    return int(buffer[0])
