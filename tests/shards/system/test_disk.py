"""The disk seam: what the real one does with modes, locks and names; whole-file writes under every fault."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shards.system.disk import (
    DirectoryRefused,
    RealDisk,
    give_to_owner,
    is_full,
    private_directory,
    read_all,
    read_file,
    write_all,
    write_file,
)
from tests.simulation.disk import Crashed, Fault, Medium, SimDisk


@pytest.fixture
def path(data_dir: Path) -> str:
    return str(data_dir)


NOBODY = 65_534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


# -- the real disk ---------------------------------------------------------------------------------------------------


def test_new_files_and_directories_are_for_this_user_alone_whatever_the_umask(path: str) -> None:
    disk = RealDisk()
    before = os.umask(0)
    try:
        disk.close(disk.create(f"{path}/file"))
        disk.mkdir(f"{path}/directory")
        disk.close(disk.lock(f"{path}/lock"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(disk.mode(f"{path}/file")) == 0o600
    assert stat.S_IMODE(disk.mode(f"{path}/lock")) == 0o600
    assert stat.S_IMODE(disk.mode(f"{path}/directory")) == 0o700
    assert stat.S_ISDIR(disk.mode(f"{path}/directory"))


def test_what_is_written_is_read(path: str) -> None:
    disk = RealDisk()
    handle = disk.create(f"{path}/file")
    disk.allocate(handle, 10_000)
    assert disk.size(handle) == 10_000
    assert disk.pwrite(handle, b"hello", 5000) == 5
    assert disk.pread(handle, 7, 4999) == b"\0hello\0"
    disk.fdatasync(handle)
    disk.drop_cache(handle)
    disk.truncate(handle, 5003)
    assert disk.pread(handle, 100, 5000) == b"hel"
    disk.fsync(handle)
    disk.close(handle)
    disk.rename(f"{path}/file", f"{path}/other")
    disk.fsync_dir(path)
    assert disk.listdir(path) == ["other"]
    assert disk.exists(f"{path}/other")
    assert not disk.exists(f"{path}/file")
    handle = disk.open(f"{path}/other")
    with pytest.raises(OSError, match="descriptor"):
        disk.pwrite(handle, b"x", 0)
    assert len(read_all(disk, handle)) == 5003
    disk.close(handle)
    handle = disk.open(f"{path}/other", write=True)
    write_all(disk, handle, b"J", 5000)
    disk.close(handle)
    assert read_file(disk, f"{path}/other").endswith(b"Jel")
    disk.unlink(f"{path}/other")
    assert disk.listdir(path) == []


def test_what_is_there_is_not_made_and_what_is_not_there_is_not_opened(path: str) -> None:
    disk = RealDisk()
    disk.close(disk.create(f"{path}/file"))
    with pytest.raises(FileExistsError):
        disk.create(f"{path}/file")
    with pytest.raises(FileNotFoundError):
        disk.open(f"{path}/other")
    with pytest.raises(FileExistsError):
        disk.mkdir(path)


@as_root
def test_what_cannot_be_seen_is_not_taken_for_gone(path: str) -> None:
    disk = RealDisk()
    disk.mkdir(f"{path}/closed")
    disk.close(disk.create(f"{path}/closed/file"))
    os.seteuid(NOBODY)
    try:
        with pytest.raises(PermissionError):
            disk.exists(f"{path}/closed/file")
    finally:
        os.seteuid(0)
    assert disk.exists(f"{path}/closed/file")
    assert not disk.exists(f"{path}/closed/other")
    assert not disk.exists(f"{path}/closed/file/other")


@as_root
def test_what_root_makes_in_the_directory_of_another_user_is_given_to_that_user(path: str) -> None:
    disk = RealDisk()
    for name in ("data", "data/history", "data/lost+found"):
        disk.mkdir(f"{path}/{name}")
    disk.close(disk.create(f"{path}/data/history/file"))
    os.symlink(f"{path}/data", f"{path}/data/history/link")
    give_to_owner(f"{path}/data")
    assert os.lstat(f"{path}/data/history/file").st_uid == 0
    os.chown(f"{path}/data", NOBODY, NOBODY)
    give_to_owner(f"{path}/data")
    for name, owner in (("history", NOBODY), ("history/file", NOBODY), ("history/link", NOBODY), ("lost+found", 0)):
        status = os.lstat(f"{path}/data/{name}")
        assert (status.st_uid, status.st_gid) == (owner, owner), name


def test_a_lock_is_held_by_one_handle_until_that_is_closed(path: str) -> None:
    disk, second_disk = RealDisk(), RealDisk()
    handle = disk.lock(f"{path}/lock")
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            second_disk.lock(f"{path}/lock")
    disk.close(handle)
    second_disk.close(second_disk.lock(f"{path}/lock"))


def test_a_lock_ends_with_the_process_that_holds_it(path: str) -> None:
    code = (
        "import sys; from shards.system.disk import RealDisk as D; D().lock(sys.argv[1]); print(flush=True); "
        "sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, f"{path}/lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(BlockingIOError):
        RealDisk().lock(f"{path}/lock")
    child.kill()
    child.communicate()
    disk = RealDisk()
    disk.close(disk.lock(f"{path}/lock"))


def test_no_handle_is_inherited(path: str) -> None:
    disk = RealDisk()
    handles = [disk.create(f"{path}/file"), disk.open(f"{path}/file"), disk.lock(f"{path}/lock")]
    assert not any(os.get_inheritable(handle) for handle in handles)
    for handle in handles:
        disk.close(handle)


def test_the_machine_says_what_it_is(path: str) -> None:
    disk = RealDisk()
    assert len(disk.boot_id()) == 16
    assert disk.boot_id() == disk.boot_id() != bytes(16)
    assert disk.free_bytes(path) > 0
    assert disk.filesystem(path) not in ("", "tmpfs")
    assert disk.filesystem("/proc/self") == "proc"


# -- private directories ---------------------------------------------------------------------------------------------


def test_a_private_directory_is_made_once(path: str) -> None:
    disk = RealDisk()
    for _ in range(2):
        assert private_directory(disk, f"{path}/data") == []
    assert stat.S_IMODE(disk.mode(f"{path}/data")) == 0o700


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o777, 0o704])
def test_a_directory_that_others_may_enter_is_refused(path: str, mode: int) -> None:
    os.mkdir(f"{path}/data")
    os.chmod(f"{path}/data", mode)
    with pytest.raises(DirectoryRefused, match=f"{mode:04o}"):
        private_directory(RealDisk(), f"{path}/data")


def test_a_file_is_no_directory(path: str) -> None:
    write_file(RealDisk(), f"{path}/data", b"x")
    with pytest.raises(DirectoryRefused, match="not a directory"):
        private_directory(RealDisk(), f"{path}/data")


@pytest.mark.parametrize(
    ("kind", "warned", "refused"),
    [
        ("ext4", False, False),
        ("tmpfs", True, False),
        ("ramfs", True, False),
        ("nfs4", False, True),
        ("cifs", False, True),
    ],
)
def test_a_directory_in_memory_is_a_warning_and_one_on_a_network_is_refused(
    kind: str, warned: bool, refused: bool
) -> None:
    class Other(SimDisk):
        def filesystem(self, path: str) -> str:
            return kind

    disk = Other(Medium(), random.Random(1))
    if refused:
        with pytest.raises(DirectoryRefused, match=kind):
            private_directory(disk, "/data")
    else:
        assert bool(private_directory(disk, "/data")) == warned


# -- whole files -----------------------------------------------------------------------------------------------------


def test_a_short_write_goes_on_and_one_that_stands_still_is_an_error() -> None:
    disk = SimDisk(Medium(), random.Random(1), Fault(2, "short", sticky=True))
    handle = disk.create("/file")
    with pytest.raises(OSError, match="no progress"):
        write_all(disk, handle, b"x" * 100, 0)
    disk = SimDisk(Medium(), random.Random(1), Fault(2, "short"))
    handle = disk.create("/file")
    write_all(disk, handle, b"x" * 100, 7)
    assert read_all(disk, handle) == bytes(7) + b"x" * 100


@pytest.mark.parametrize("what", ["kill", "power", errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("first", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all_at_every_call(what: int | str, first: bool) -> None:
    for call in range(1, 20):
        medium, rng = Medium(), random.Random(call)
        if not first:
            write_file(SimDisk(medium, rng), "/file", b"old" * 500)
        disk = SimDisk(medium, rng, Fault(call, what))
        try:
            write_file(disk, "/file", b"new" * 700)
        except (Crashed, OSError):
            answered = False
        else:
            answered = True
        medium.lose_power(rng)
        disk = SimDisk(medium, rng)
        allowed = {b"new" * 700} if answered else {b"new" * 700, b"" if first else b"old" * 500}
        assert (read_file(disk, "/file") if disk.exists("/file") else b"") in allowed
        write_file(disk, "/file", b"next")
        medium.lose_power(rng)
        assert read_file(SimDisk(medium, rng), "/file") == b"next"
        if answered:
            assert call > 5
            return
    raise AssertionError("no write ever came to its end")


def test_full_is_told_from_broken() -> None:
    assert is_full(OSError(errno.ENOSPC, "x"))
    assert is_full(OSError(errno.EDQUOT, "x"))
    assert not any(is_full(OSError(kind, "x")) for kind in (errno.EIO, errno.EROFS, errno.EACCES))
