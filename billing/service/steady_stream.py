"""A stream for log records that blocks nobody who logs, also where nobody reads it.

A pipe, a socket, or a terminal takes some kilobytes that nobody has read, and then blocks whoever writes: a journald
that hangs, or a stopped program behind a pipe, would stop the loop, and with it every cutoff. So a record is written at
once if the kernel has room for it. Otherwise it waits, with those that follow, for a thread that writes them in their
order and ends behind the last one. At most `WAITING_BYTES_MAX` wait; what does not fit is dropped, and its number is
told once there is room again.

A record that was written at once is out before `write` returns, so the last words before an end are not lost. `drain`
gives those that wait a last chance.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

WAITING_BYTES_MAX: Final = 1 << 20
PIECE_BYTES: Final = 4096  # PIPE_BUF: where a pipe has room, it has room for so many, and takes them as a whole
DRAIN_S: Final = 1.0


class SteadyStream:
    """A text stream over a file descriptor, for `logging.StreamHandler`; thread-safe. `tell_dropped` gets the number of
    texts that were dropped; it may write.
    """

    def __init__(self, descriptor: int, tell_dropped: Callable[[int], object]) -> None:
        self._descriptor = descriptor
        self._tell_dropped = tell_dropped
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None  # writes what waits; None: nothing does

    def write(self, text: str) -> None:
        """Writes the text, or has it wait. Raises OSError where the other end is gone."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._thread is None:
                data = self._write_at_once(data)
            if not data:
                return
            if self._waiting_bytes + len(data) > WAITING_BYTES_MAX:
                self._dropped += 1
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_what_waits, name="log", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Nothing is buffered that could be written."""

    def drain(self) -> None:
        """Waits for what waits to be written, for `DRAIN_S` at most."""
        thread = self._thread
        if thread is not None:
            thread.join(DRAIN_S)

    def _write_at_once(self, data: bytes) -> bytes:
        """Writes what there is room for, and returns the rest."""
        with suppress(BlockingIOError):  # somebody else has made it non-blocking, and was quicker
            while data and self._room.poll(0):
                data = data[os.write(self._descriptor, data[:PIECE_BYTES]) :]
        return data

    def _write_what_waits(self) -> None:
        while True:
            with self._lock:
                dropped, self._dropped = (0, self._dropped) if self._waiting else (self._dropped, 0)
                data = self._waiting.popleft() if self._waiting else b""
                self._waiting_bytes -= len(data)
                if not data and not dropped:
                    self._thread = None
                    return
            if dropped:
                self._tell_dropped(dropped)
            with suppress(OSError):  # nobody will read it any more
                while data:
                    self._room.poll()  # until there is room
                    data = self._write_at_once(data)
