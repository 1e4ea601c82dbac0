"""The resources that the daemon's processes use, and the free space on the disk of its data. They are read only on
demand: for a page or a scrape.

A daemon is several processes: the main process, a worker for each shard, and for each worker the followers of its
journal (history, notices). Each process has a name here, such as `shard-2` or `history-2`, which a restart does not
change. A reading is reused for `KEPT_NS`, so that any number of viewers costs no more than one. A process that ends
after it was listed and before it is read is left out.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

import psutil

from billing.admin.figure_sampler import FigureSampler

FOLLOWERS: Final = ("history", "notices")
KEPT_NS: Final = 1_000_000_000
HOST: Final = socket.gethostname()


class Process(NamedTuple):
    """One process. `started_s`: wall seconds since the epoch."""

    name: str
    pid: int
    cpu_s: float
    memory_bytes: int  # resident
    descriptors: int
    started_s: float


class Usage(NamedTuple):
    """All processes, and the file system of `daemon.data_dir`; `disk_bytes` is 0 if that cannot be read."""

    processes: tuple[Process, ...]
    disk_free_bytes: int
    disk_bytes: int

    @property
    def memory_bytes(self) -> int:
        """The memory of all processes together. Memory that they share counts once for each of them."""
        return sum(process.memory_bytes for process in self.processes)


class Processes:
    """Reads the usage of one daemon."""

    def __init__(self, sampler: FigureSampler, data_dir: str) -> None:
        self._sampler = sampler
        self._data_dir = data_dir
        self._usage = Usage((), 0, 0)
        self._read_ns = 0

    def usage(self) -> Usage:
        """The usage as of now, or a reading that is at most `KEPT_NS` old."""
        now_ns = self._sampler.clocks.boot_ns()
        if not self._read_ns or now_ns - self._read_ns > KEPT_NS:
            free_bytes = whole_bytes = 0
            with contextlib.suppress(OSError):
                disk = psutil.disk_usage(self._data_dir)
                free_bytes, whole_bytes = disk.free, disk.total
            self._usage = Usage(tuple(self._read()), free_bytes, whole_bytes)
            self._read_ns = now_ns
        return self._usage

    def _read(self) -> Iterator[Process]:
        for name, pid in self._pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    times, memory_bytes = process.cpu_times(), process.memory_info().rss
                    descriptors, started_s = process.num_fds(), process.create_time()
                yield Process(name, pid, times.user + times.system, memory_bytes, descriptors, started_s)

    def _pids(self) -> Iterator[tuple[str, int]]:
        yield "main", os.getpid()
        for shard_id, worker in sorted(self._sampler.supervisor.workers.items()):
            if worker.pid:
                yield f"shard-{shard_id}", worker.pid
            figures = self._sampler.figures.get(shard_id, {})
            for follower in FOLLOWERS:
                if pid := figures.get(f"{follower}_pid", 0):
                    yield f"{follower}-{shard_id}", pid
