"""The floors that figures are printed beside: what a machine takes for the bare minimum, measured in the same run.

`NullServer`: the door over a worker that does nothing (see `rpc_floor`), as a process of its own. The same frames cost
it what the kernel and the decoding of requests and encoding of replies cost. `sync_ms`: an append and fdatasync of a
batch of one command to a file got ahead, nothing around it.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time

from benchmarks.rpc_floor import serve


class NullServer:
    """Has of a daemon what a generator needs: `rpc_port` and `cpu_seconds`."""

    def __enter__(self) -> NullServer:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(there,), daemon=True)
        self._process.start()
        self.rpc_port: int = self._pipe.recv()
        return self

    def cpu_seconds(self) -> float:
        """CPU that it has used until now, user and system."""
        self._pipe.send("usage")
        user, system = self._pipe.recv()
        return float(user + system)

    def __exit__(self, *_: object) -> None:
        self._pipe.send("stop")
        self._process.join(5)


def sync_ms(directory: str, count: int = 200, payload_bytes: int = 239) -> float:
    """The median of one append and fdatasync, milliseconds."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        handle = os.open(f"{name}/floor", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(handle, 0, count * 512)
            os.fsync(handle)
            took = []
            for number in range(count):
                began = time.perf_counter()
                os.pwrite(handle, bytes(payload_bytes), number * 512)
                os.fdatasync(handle)
                took.append(time.perf_counter() - began)
        finally:
            os.close(handle)
    return round(sorted(took)[count // 2] * 1e3, 3)
