"""The simulated disk forgets, tears and fails as it says: a test bed that forgave would prove nothing."""

from __future__ import annotations

import errno
import random

import pytest

from tests.simulation.disk import SECTOR_BYTES, Crashed, Fault, Medium, SimDisk


def started(seed: int = 1, fault: Fault | None = None) -> tuple[Medium, SimDisk, random.Random]:
    medium, rng = Medium(), random.Random(seed)
    return medium, SimDisk(medium, rng, fault), rng


def content(medium: Medium, path: str) -> bytes:
    return bytes(medium.node(path).content)


def after_power_loss(seed: int, *, synced: bool = False, named: bool = True) -> bytes | None:
    """A file of 4096 zeros, synced, then 2048 bytes of x written into it."""
    medium, disk, rng = started(seed)
    handle = disk.create("/file")
    disk.allocate(handle, 4096)
    disk.fsync(handle)
    if named:
        disk.fsync_dir("/")
    disk.pwrite(handle, b"x" * 2048, 512)
    if synced:
        disk.fdatasync(handle)
    medium.lose_power(rng)
    return content(medium, "/file") if SimDisk(medium, rng).exists("/file") else None


def test_what_was_synced_stays() -> None:
    for seed in range(50):
        assert after_power_loss(seed, synced=True) == bytes(512) + b"x" * 2048 + bytes(4096 - 2560)


def test_what_was_not_synced_stays_goes_or_tears_at_sectors() -> None:
    contents = {after_power_loss(seed) for seed in range(200)}
    assert bytes(4096) in contents
    assert bytes(512) + b"x" * 2048 + bytes(4096 - 2560) in contents
    torn = contents - {bytes(4096), bytes(512) + b"x" * 2048 + bytes(4096 - 2560)}
    assert len(torn) > 5
    for data in torn:
        assert data is not None
        sectors = [data[offset : offset + SECTOR_BYTES] for offset in range(0, len(data), SECTOR_BYTES)]
        assert all(len(set(sector)) == 1 for sector in sectors)
    assert any(data[512:1024] != data[1024:1536] for data in torn if data is not None), "in any order"


def test_a_name_that_was_not_synced_may_be_gone() -> None:
    contents = [after_power_loss(seed, synced=True, named=False) for seed in range(50)]
    assert None in contents
    assert any(contents)


@pytest.mark.parametrize("operation", ["rename", "unlink"])
def test_a_rename_or_removal_that_was_not_synced_may_not_have_been(operation: str) -> None:
    outcomes = set()
    for seed in range(50):
        medium, disk, rng = started(seed)
        for name, data in (("/old", b"old"), ("/new", b"new")):
            handle = disk.create(name)
            disk.pwrite(handle, data, 0)
            disk.fsync(handle)
        disk.fsync_dir("/")
        disk.rename("/new", "/old") if operation == "rename" else disk.unlink("/old")
        medium.lose_power(rng)
        names = SimDisk(medium, rng).listdir("/")
        outcomes.add((tuple(names), content(medium, "/old") if "old" in names else None))
    if operation == "rename":
        assert outcomes == {(("new", "old"), b"old"), (("old",), b"new")}
    else:
        assert outcomes == {(("new", "old"), b"old"), (("new",), None)}


def test_a_kill_leaves_the_cache() -> None:
    medium, disk, rng = started()
    handle = disk.create("/file")
    disk.pwrite(handle, b"x", 0)
    disk.lock("/lock")
    disk.kill()
    with pytest.raises(Crashed):
        disk.listdir("/")
    other = SimDisk(medium, rng)
    assert content(medium, "/file") == b"x"
    other.lock("/lock")
    with pytest.raises(BlockingIOError):
        SimDisk(medium, rng).lock("/lock")


def test_after_a_failed_sync_a_good_one_lies() -> None:
    for seed in range(20):
        medium, disk, rng = started(seed)
        handle = disk.create("/file")
        disk.fsync(handle)
        disk.fsync_dir("/")
        disk.pwrite(handle, b"lost", 0)
        disk.fail(errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            disk.fsync(handle)
        disk.fsync(handle)
        assert disk.pread(handle, 4, 0) == b"lost"
        disk.pwrite(handle, b"kept", 4)
        disk.fsync(handle)
        medium.lose_power(rng)
        assert content(medium, "/file") == b"\0\0\0\0kept"


def test_the_n_th_call_fails_once_or_from_then_on() -> None:
    for sticky in (False, True):
        _, disk, _ = started(fault=Fault(3, errno.EIO, sticky))
        handle = disk.create("/file")
        disk.fsync(handle)
        with pytest.raises(OSError, match="/file"):
            disk.pwrite(handle, b"x" * 100, 0)
        if sticky:
            with pytest.raises(OSError, match="/file"):
                disk.fsync(handle)
        else:
            disk.fsync(handle)
        assert disk.fired == 1 + sticky
        assert disk.trace == ["create file", "fsync file", "write file", "fsync file"]


def test_a_write_may_end_midway() -> None:
    lengths = set()
    for seed in range(40):
        medium, disk, _ = started(seed, Fault(2, "kill"))
        handle = disk.create("/file")
        with pytest.raises(Crashed):
            disk.pwrite(handle, b"x" * 10, 0)
        lengths.add(len(content(medium, "/file")))
        assert medium.boots == 1
    assert lengths == set(range(11))


def test_a_loss_of_power_at_a_call_ends_every_process() -> None:
    medium, disk, rng = started(fault=Fault(1, "power"))
    other = SimDisk(medium, rng)
    boot_id = other.boot_id()
    with pytest.raises(Crashed):
        disk.listdir("/")
    with pytest.raises(Crashed):
        other.listdir("/")
    assert SimDisk(medium, rng).boot_id() != boot_id


def test_a_full_disk_refuses_what_needs_room_and_nothing_else() -> None:
    medium, disk, _ = started()
    handle = disk.create("/file")
    disk.allocate(handle, 1000)
    medium.capacity_bytes = 1500
    assert disk.free_bytes("/") == 500
    disk.pwrite(handle, b"x" * 1000, 0)
    with pytest.raises(OSError, match="No space"):
        disk.pwrite(handle, b"x", 1500)
    other = disk.create("/other")
    with pytest.raises(OSError, match="No space"):
        disk.allocate(other, 501)
    disk.allocate(other, 500)
    disk.truncate(handle, 0)
    disk.allocate(other, 1500)


def test_a_rotten_bit_is_on_the_medium() -> None:
    medium, disk, rng = started()
    handle = disk.create("/file")
    disk.pwrite(handle, b"\0\0", 0)
    disk.fsync(handle)
    disk.fsync_dir("/")
    medium.flip("/file", 9)
    medium.lose_power(rng)
    assert content(medium, "/file") == b"\0\2"


def test_the_same_seed_does_the_same() -> None:
    assert [after_power_loss(seed) for seed in range(30)] == [after_power_loss(seed) for seed in range(30)]


def test_a_copy_is_another_disk() -> None:
    medium, disk, rng = started()
    handle = disk.create("/file")
    disk.pwrite(handle, b"x", 0)
    other = medium.copy()
    disk.pwrite(handle, b"y", 0)
    other.lose_power(rng)
    assert content(other, "/file") == b"x"
