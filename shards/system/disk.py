"""The disk. Every file of the daemon's own formats that must survive is written through `Disk`.

`RealDisk` is the operating system. Tests put a simulated disk in its place that forgets, tears and fails. The protocol
is small on purpose: each method is one operation that can fail or be the last one before a crash, and promises no more
durability than POSIX does: of data after `fsync` or `fdatasync`, of names after `fsync_dir`.

Errors are plain OSError (errno matters: ENOSPC and EDQUOT mean full, everything else means broken). Nothing here
retries. File handles are small ints that mean nothing outside the disk that returned them. New files are 0600, new
directories 0700. No handle is inherited by a program that this process starts; a lock is held until its last handle is
closed, in whatever process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, Final, Protocol

from shards import exits

__all__ = [
    "DirectoryRefused",
    "Disk",
    "RealDisk",
    "discard_tree",
    "is_full",
    "private_directory",
    "read_all",
    "read_file",
    "write_all",
    "write_file",
]

READERS_MAX: Final = 512
DIRECT_BYTES = 4096  # the buffer of a read past the page cache is a multiple of this long
NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs"})

LOST_AND_FOUND: Final = "lost+found"  # at the top of an ext4 file system; fsck's, and root's


class DirectoryRefused(Exception):
    """A directory cannot hold data: it is open to other users, no directory, or on a network file system."""

    ending: ClassVar[exits.Ending] = exits.CONFIG


class Disk(Protocol):
    """The operations of a disk. Paths are as the operating system takes them; all lengths and offsets are in bytes.
    Every method may raise OSError.
    """

    def create(self, path: str) -> int:
        """Creates an empty file and opens it for reading and writing. Raises FileExistsError if there is one."""

    def open(self, path: str, *, write: bool = False) -> int:
        """Opens an existing file for reading, with `write` also for writing. Raises FileNotFoundError if
        there is none.
        """

    def close(self, handle: int) -> None:
        """Closes the handle. Says nothing about durability."""

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        """Writes at the offset. Returns the number of bytes written, which may be less than given (see
        write_all).
        """

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        """Reads at the offset. Returns fewer bytes only at the end of the file, or where more than 2 GiB
        are asked for.
        """

    def size(self, handle: int) -> int:
        """Returns the length of the file."""

    def allocate(self, handle: int, length: int) -> None:
        """Makes the file at least this long, filled with zeros, and reserves its blocks: writing there needs no more
        room.
        """

    def truncate(self, handle: int, length: int) -> None:
        """Sets the length of the file: cuts it, or extends it with zeros for which no room is reserved."""

    def fdatasync(self, handle: int) -> None:
        """Makes the file's data durable, and its length if that has changed."""

    def fsync(self, handle: int) -> None:
        """Makes the file's data and attributes durable, but not its name: see fsync_dir."""

    def fsync_dir(self, path: str) -> None:
        """Makes durable which names were created, renamed or removed in this directory until now."""

    def drop_cache(self, handle: int) -> None:
        """Asks the kernel to take the next read of this (synced) file from the medium. It need not do so."""

    def read_medium(self, path: str, offset: int, length: int) -> bytes:
        """Returns what the medium holds of a file, read past the page cache; fewer bytes only at the end of the file.

        `offset` and `length` are multiples of 512. Where a file system offers no such read, the cache is dropped first.
        """

    def identity(self, path: str) -> tuple[int, int]:
        """Returns device and inode, which tell the file under this name from any other one."""

    def rename(self, source: str, target: str) -> None:
        """Renames a file within one directory, atomically; replaces the target."""

    def unlink(self, path: str) -> None:
        """Removes the name."""

    def exists(self, path: str) -> bool:
        """Returns whether the name exists. Raises OSError where that cannot be found out: a directory on the way may
        not be searched, or the disk failed.
        """

    def listdir(self, path: str) -> list[str]:
        """Returns the names in a directory, sorted."""

    def mkdir(self, path: str) -> None:
        """Makes a directory of mode 0700. Raises FileExistsError if there is one."""

    def mode(self, path: str) -> int:
        """Returns st_mode: the type and the permission bits."""

    def lock(self, path: str) -> int:
        """Takes the lock that this file stands for (creating the file if absent) and holds it until the handle is
        closed.

        Raises BlockingIOError if another handle holds it, in whatever process, also in an orphaned child.
        """

    def free_bytes(self, path: str) -> int:
        """Returns the room left for this user on the file system of this path."""

    def filesystem(self, path: str) -> str:
        """Returns the type of the file system of this path, such as "ext4" or "tmpfs"; "" if it cannot be told."""

    def boot_id(self) -> bytes:
        """Returns 16 bytes that differ after each boot, when the caches that held unsynced writes are gone."""


class Readers:
    """The handles by which this process reads files past the page cache. They stay open.

    Closing any handle of a file ends all locks that the process has on that file (fcntl(2)), those of SQLite's
    connections, too. Without its lock a writer goes unseen: another process that closes the file takes itself for the
    last one, and removes the log to which the writer goes on writing. So a handle is closed only once its file has no
    name any more, or where there are `READERS_MAX` others; and never while a thread reads by it.
    """

    def __init__(self) -> None:
        self._handles: dict[tuple[int, int, int], int] = {}  # device, inode, flags -> handle; the oldest comes first
        self._reading: Counter[int] = Counter()  # handle -> the threads that read by it now
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def of(self, path: str, flags: int) -> Iterator[int]:
        """Lends a handle of the file that has this name now. Raises OSError."""
        with self._lock:
            handle = self._handle_of(path, flags)
            self._reading[handle] += 1
        try:
            yield handle
        finally:
            with self._lock:
                self._reading[handle] -= 1

    def close(self) -> None:
        """Closes all handles; to be called where the process has no locks that matter."""
        with self._lock:
            self._tidy(handles_max=0)

    def _handle_of(self, path: str, flags: int) -> int:
        status = os.stat(path)
        handle = self._handles.get((status.st_dev, status.st_ino, flags))
        if handle is None:
            self._tidy()
            handle = os.open(path, flags | os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(handle)  # it may have been replaced meanwhile
            former = self._handles.setdefault((status.st_dev, status.st_ino, flags), handle)
            if former != handle:
                os.close(handle)
                handle = former
        return handle

    def _tidy(self, handles_max: int = READERS_MAX) -> None:
        for key, handle in list(self._handles.items()):
            is_over = not os.fstat(handle).st_nlink or len(self._handles) >= handles_max
            if is_over and not self._reading[handle]:
                del self._reading[handle]
                os.close(self._handles.pop(key))


class RealDisk:
    """The files of the operating system (Linux)."""

    readers: ClassVar = Readers()  # of the process, as locks are

    def create(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: str, *, write: bool = False) -> int:
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, handle: int) -> None:
        os.close(handle)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        return os.pread(handle, length, offset)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def allocate(self, handle: int, length: int) -> None:
        os.posix_fallocate(handle, 0, length)

    def truncate(self, handle: int, length: int) -> None:
        os.ftruncate(handle, length)

    def fdatasync(self, handle: int) -> None:
        os.fdatasync(handle)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def fsync_dir(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def drop_cache(self, handle: int) -> None:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_medium(self, path: str, offset: int, length: int) -> bytes:
        try:
            return self._read_direct(path, offset, length)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the file system has no reads past its cache
                raise
            return self._read_dropped(path, offset, length)

    def _read_direct(self, path: str, offset: int, length: int) -> bytes:
        buffer_bytes = -(-length // DIRECT_BYTES) * DIRECT_BYTES
        with self.readers.of(path, os.O_DIRECT) as handle, mmap.mmap(-1, buffer_bytes) as buffer:  # aligned memory
            read_bytes = 0
            with memoryview(buffer) as view:
                while read_bytes < length and not read_bytes % DIRECT_BYTES:
                    count = os.preadv(handle, [view[read_bytes:]], offset + read_bytes)
                    if not count:
                        break
                    read_bytes += count
            return buffer[: min(read_bytes, length)]

    def _read_dropped(self, path: str, offset: int, length: int) -> bytes:
        with self.readers.of(path, 0) as handle:
            os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)
            return os.pread(handle, length, offset)

    def identity(self, path: str) -> tuple[int, int]:
        status = os.stat(path)
        return status.st_dev, status.st_ino

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def exists(self, path: str) -> bool:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def mode(self, path: str) -> int:
        return os.stat(path).st_mode

    def lock(self, path: str) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise
        return handle

    def free_bytes(self, path: str) -> int:
        room = os.statvfs(path)
        return room.f_bavail * room.f_frsize

    def filesystem(self, path: str) -> str:
        where = os.path.realpath(path)
        kind, longest = "", -1
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:  # proc(5): … (5) mount point … "-" (9) type …
                fields = line.split(" ")
                point = _unescaped(fields[4])
                inside = where == point or where.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= longest:
                    kind, longest = fields[fields.index("-") + 1], len(point)
        return kind

    def boot_id(self) -> bytes:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as source:
            return bytes.fromhex(source.read().strip().replace("-", ""))


def is_full(error: OSError) -> bool:
    """Returns whether the error means that there is no room (ENOSPC, or a quota), and not that the disk is
    broken.
    """
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_all(disk: Disk, handle: int, data: bytes, offset: int) -> None:
    """Writes all of the data at the offset, going on after short writes. After an OSError it is not known how much was
    written.
    """
    written = disk.pwrite(handle, data, offset)
    while written < len(data):
        count = disk.pwrite(handle, data[written:], offset + written)
        if count <= 0:
            raise OSError(errno.EIO, "a write made no progress")
        written += count


def keeps_files(path: str) -> bool:
    """Returns whether the file system of this directory has room for files at all; that of /proc has none. Raises
    OSError.
    """
    return os.statvfs(path).f_blocks > 0


def read_all(disk: Disk, handle: int) -> bytes:
    """Returns the whole content of an open file."""
    size = disk.size(handle)
    data = disk.pread(handle, size, 0)
    while len(data) < size:  # one read takes at most 2 GiB
        part = disk.pread(handle, size - len(data), len(data))
        if not part:
            break
        data += part
    return data


def read_file(disk: Disk, path: str) -> bytes:
    """Returns the whole content of a file. Raises FileNotFoundError if there is none."""
    handle = disk.open(path)
    try:
        return read_all(disk, handle)
    finally:
        disk.close(handle)


def write_file(disk: Disk, path: str, data: bytes) -> None:
    """Replaces a small file atomically and durably: after the return it has the new content, after a crash the old or
    the new one.

    After an OSError the old content still stands, unless the last step (making the new name durable) failed.
    """
    temporary = path + ".tmp"
    if disk.exists(temporary):
        disk.unlink(temporary)
    handle = disk.create(temporary)
    try:
        write_all(disk, handle, data, 0)
        disk.fsync(handle)
    finally:
        disk.close(handle)
    disk.rename(temporary, path)
    disk.fsync_dir(os.path.dirname(path) or ".")


def private_directory(disk: Disk, path: str) -> list[str]:
    """Makes sure that this directory exists, durably, and is open to this user alone. Returns warnings for an operator.

    Its parent must exist. Raises DirectoryRefused where it is no directory, is open to others, or lies on a network
    file system.
    """
    if not disk.exists(path):
        disk.mkdir(path)
        disk.fsync_dir(os.path.dirname(path.rstrip("/")) or ".")
    mode = disk.mode(path)
    if not stat.S_ISDIR(mode):
        raise DirectoryRefused(f"{path} is not a directory")
    if mode & 0o077:
        raise DirectoryRefused(f"{path} is open to other users (mode {mode & 0o777:04o}); it must be 0700")
    kind = disk.filesystem(path)
    if kind in NETWORK_FILESYSTEMS:
        raise DirectoryRefused(f"{path} is on {kind}: neither its locks nor its syncs can be relied on")
    if kind in ("tmpfs", "ramfs"):
        return [f"{path} is on {kind}: everything in it is gone when the machine stops"]
    return []


def discard_tree(path: str) -> None:
    """Removes a directory and all that is in it, as far as possible: for work that was begun and is not wanted."""
    shutil.rmtree(path, ignore_errors=True)


def give_to_owner(directory: str) -> None:
    """Gives everything in a directory to the directory's own user and group, where root runs this: what root makes in
    the directory of a service could not be opened by that service. Does nothing for other users, whose files are their
    own anyway. Raises OSError.
    """
    owner = os.stat(directory)
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for folder, folders, files in os.walk(directory):
        if LOST_AND_FOUND in folders:
            folders.remove(LOST_AND_FOUND)
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.lstat(path).st_uid != owner.st_uid:
                os.lchown(path, owner.st_uid, owner.st_gid)


def close_to_others(directory: str) -> None:
    """Lets a directory's owner alone enter it. Raises OSError."""
    os.chmod(directory, 0o700)


def _unescaped(field: str) -> str:
    """Decodes a field of mountinfo, in which blanks and backslashes are three octal digits (proc(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
