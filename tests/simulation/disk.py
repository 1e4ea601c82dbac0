"""A disk that forgets: what was synced is kept apart from what was not, and a loss of power shows the difference.

`Medium` is the disk of one machine, `SimDisk` one process's way to it (an implementation of `shards.system.disk.Disk`).

What a loss of power may do (`Medium.lose_power`, all drawn from the random generator given):
- each write since the last sync of its file is kept, lost, or kept in some of its 512-byte sectors only, in any order;
  where a sector is lost, what was synced there before stands again (zeros where nothing was);
- each name created, renamed or removed since the last sync of its directory is so or is not so, one by one.

What a kill may do (`SimDisk.kill`): nothing but close the process's handles and free its locks; the cache stays.

What can be injected, at the n-th call of a process (`SimDisk.calls` counts them; `fired` says whether it came to it):
- an error; if it hits a sync, what was to be synced stays visible but is lost for good, and later syncs succeed
- a write that is short, and goes on when called again
- the end of the process, before the call, or in the middle of a write.

A test that wants bytes to rot changes them with `Medium.flip` or `Medium.replace`: on the medium and in the cache.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from typing import NamedTuple

from tests.simulation.medium import SECTOR_BYTES, Change, Directory, Medium, Node, apply, split

__all__ = ["SECTOR_BYTES", "Crashed", "Fault", "Medium", "SimDisk"]


class Crashed(BaseException):
    """The process that made this call is no more. Not an Exception: nothing that it would have done happens."""


class Fault(NamedTuple):
    """What is to happen at the `call`-th call: an errno, or "short", "kill", "power"; `sticky`: at later ones too."""

    call: int
    what: int | str
    sticky: bool = False


class SimDisk:
    """One process's way to the medium."""

    def __init__(self, medium: Medium, rng: random.Random, fault: Fault | None = None) -> None:
        self.medium = medium
        self.calls = 0
        self.fired = 0
        self.on_sync: Callable[[str, Node], None] | None = None  # what of a file is durable has changed
        self._trace: list[tuple[str, str]] = []
        self._rng = rng
        self._fault = fault
        self._only, self._ahead = "", 0
        self._boot = medium.boots
        self._dead = False
        self._handles: dict[int, tuple[str, Node]] = {}
        self._numbers = iter(range(4, 2**31))  # one for each, for two threads as well; it can be pickled

    @property
    def trace(self) -> list[str]:
        """The calls so far: "write segment-0000000001"."""
        return [f"{call} {path[path.rfind('/') + 1 :]}" for call, path in self._trace]

    def kill(self) -> None:
        """The process ends; the machine goes on."""
        self._dead = True
        self._handles.clear()
        for path in [path for path, holder in self.medium.locks.items() if holder is self]:
            del self.medium.locks[path]

    def fail(self, error: int | str, *, calls_ahead: int = 1, sticky: bool = False, only: str = "") -> None:
        """Let the call go wrong that comes so many calls from now; `only`: so many of that name."""
        self._fault = Fault(self.calls + calls_ahead, error, sticky)
        self._only, self._ahead = only, calls_ahead

    def spare(self) -> None:
        """Let nothing go wrong any more."""
        self._fault = None

    # -- what can go wrong -------------------------------------------------------------------------------------------

    def _enter(self, call: str, path: str) -> int | str:
        """Count the call; 0, or what is to go wrong in it. Raises Crashed."""
        if self._dead or self._boot != self.medium.boots:
            raise Crashed("a process that is no more")
        self.calls += 1
        self._trace.append((call, path))
        fault = self._fault
        if fault is None:
            return 0
        if self._only:
            self._ahead -= call == self._only
            if self._ahead or call != self._only:
                return 0
            self._only, self._fault = "", None
        elif not (self.calls == fault.call or (fault.sticky and self.calls > fault.call)):
            return 0
        self.fired += 1
        if fault.what in ("kill", "power") and call != "write":
            self._end(fault.what)
        return fault.what

    def _end(self, error: int | str) -> None:
        if error == "power":
            self.medium.lose_power(self._rng)
        self.kill()
        raise Crashed(error)

    def _plain(self, call: str, path: str) -> None:
        """Enter a call that either fails and does nothing, or is done."""
        fault = self._enter(call, path)
        if fault and isinstance(fault, int):
            raise OSError(fault, os.strerror(fault), path)

    def _changing(self, call: str, path: str, change: Change) -> None:
        """Change a directory. A broken disk (EIO) may have done it all the same; a full one has not."""
        fault = self._enter(call, path)
        broken = isinstance(fault, int) and fault != 0
        if not broken or (fault == errno.EIO and self._rng.random() < 0.5):
            self._directory(split(path)[0]).change(change)
        if broken:
            raise OSError(int(fault), os.strerror(int(fault)), path)

    def _directory(self, path: str) -> Directory:
        directory = self.medium.directories.get(path)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        return directory

    def _room(self, more: int, path: str) -> None:
        capacity = self.medium.capacity_bytes
        if capacity is not None and more > 0 and self.medium.used_bytes() + more > capacity:
            self.medium.refusals += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _handle(self, path: str, node: Node) -> int:
        number = next(self._numbers)
        self._handles[number] = path, node
        return number

    # -- the disk ----------------------------------------------------------------------------------------------------

    def create(self, path: str) -> int:
        directory, name = split(path)
        if name in self._directory(directory).names:
            raise FileExistsError(errno.EEXIST, "it exists", path)
        node = Node()
        self._changing("create", path, (node, "", name))
        return self._handle(path, node)

    def open(self, path: str, *, write: bool = False) -> int:
        self._plain("open", path)
        return self._handle(path, self.medium.node(path))

    def close(self, handle: int) -> None:
        if self._dead or self._boot != self.medium.boots:
            raise Crashed("a process that is no more")
        path, _ = self._handles.pop(handle)
        if self.medium.locks.get(path) is self:
            del self.medium.locks[path]

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        path, node = self._handles[handle]
        fault = self._enter("write", path)
        length = len(data)
        self._room(offset + length - len(node.content), path)
        if not fault:
            self._put(node, offset, bytes(data))
            return length
        length = length // 2 if fault == "short" else self._rng.randrange(length + 1)
        if fault == errno.ENOSPC:
            length = 0
        self._put(node, offset, bytes(data[:length]))
        if fault in ("kill", "power"):
            self._end(fault)
        if isinstance(fault, int):
            raise OSError(fault, os.strerror(fault), path)
        return length

    def _put(self, node: Node, offset: int, data: bytes) -> None:
        if data:
            apply(node.content, (offset, data))
            node.pending.append((offset, data))

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        path, node = self._handles[handle]
        self._plain("read", path)
        return bytes(memoryview(node.content)[offset : offset + length])

    def size(self, handle: int) -> int:
        return len(self._handles[handle][1].content)

    def allocate(self, handle: int, length: int) -> None:
        path, node = self._handles[handle]
        self._plain("allocate", path)
        self._room(length - len(node.content), path)
        if len(node.content) < length:
            apply(node.content, length)
            node.pending.append(length)

    def truncate(self, handle: int, length: int) -> None:
        path, node = self._handles[handle]
        self._plain("truncate", path)
        apply(node.content, length)
        node.pending.append(length)

    def fdatasync(self, handle: int) -> None:
        self._sync("fdatasync", handle)

    def fsync(self, handle: int) -> None:
        self._sync("fsync", handle)

    def _sync(self, call: str, handle: int) -> None:
        path, node = self._handles[handle]
        fault = self._enter(call, path)
        if fault and isinstance(fault, int):
            node.pending.clear()  # still to be read, never to be on the medium, and nobody will be told again
            raise OSError(fault, os.strerror(fault), path)
        node.synced()
        if self.on_sync is not None:
            self.on_sync(path, node)

    def fsync_dir(self, path: str) -> None:
        directory = self._directory(path)
        fault = self._enter("fsync_dir", path)
        if isinstance(fault, int) and fault:
            directory.pending.clear()
            raise OSError(fault, os.strerror(fault), path)
        directory.synced()
        if self.on_sync is not None:
            for name, node in directory.names.items():
                self.on_sync(f"{path}/{name}", node)

    def drop_cache(self, handle: int) -> None:
        self._plain("drop_cache", self._handles[handle][0])

    def read_medium(self, path: str, offset: int, length: int) -> bytes:
        self._plain("read_medium", path)
        return bytes(memoryview(self.medium.node(path).stable)[offset : offset + length])

    def identity(self, path: str) -> tuple[int, int]:
        return 1, id(self.medium.node(path))

    def rename(self, source: str, target: str) -> None:
        node = self.medium.node(source)
        self._changing("rename", source, (node, split(source)[1], split(target)[1]))
        for handle, (_, node_held) in list(self._handles.items()):
            if node_held is node:
                self._handles[handle] = target, node

    def unlink(self, path: str) -> None:
        self._changing("unlink", path, (self.medium.node(path), split(path)[1], ""))

    def exists(self, path: str) -> bool:
        directory, name = split(path.rstrip("/"))
        within = self.medium.directories.get(directory)
        return path in self.medium.directories or (within is not None and name in within.names)

    def listdir(self, path: str) -> list[str]:
        self._plain("listdir", path)
        return sorted(self._directory(path).names)

    def mkdir(self, path: str) -> None:
        self._plain("mkdir", path)
        if path in self.medium.directories:
            raise FileExistsError(errno.EEXIST, "it exists", path)
        self.medium.directories[path] = Directory()
        self.medium.modes[path] = 0o700

    def mode(self, path: str) -> int:
        return stat.S_IFDIR | self.medium.modes[path] if path in self.medium.modes else stat.S_IFREG | 0o600

    def lock(self, path: str) -> int:
        self._plain("lock", path)
        if path in self.medium.locks:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked", path)
        self.medium.locks[path] = self
        directory_path, name = split(path)
        directory = self._directory(directory_path)
        node = directory.names.get(name, Node())
        if name not in directory.names:
            directory.change((node, "", name))
        return self._handle(path, node)

    def free_bytes(self, path: str) -> int:
        capacity = self.medium.capacity_bytes
        return (1 << 40 if capacity is None else capacity) - self.medium.used_bytes()

    def filesystem(self, path: str) -> str:
        return "simulated"

    def boot_id(self) -> bytes:
        return self.medium.boots.to_bytes(16, "big")
