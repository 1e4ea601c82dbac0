"""A stream for log records that blocks nobody who logs, also where nobody reads it.

A pipe, a socket, or a terminal takes some kilobytes that nobody has read, and then blocks whoever writes: a journald
that hangs, or a stopped program behind a pipe, would stop the loop, and with it every cutoff. So a record is written at
once if the kernel has room for it. Otherwise it waits, with those that follow, for a thread that writes them in their
order and ends behind the last one. At most `WAITING_BYTES_MAX` wait; what does not fit is dropped, and its number is
told once there is room again.

The kernel is asked not to block at each write. The descriptor itself stays as it is, since other processes share it: a
socket takes a flag for each write, and a pipe or a terminal is opened once more. Where that is refused, as for a
terminal of another user, a write follows a look for room, and another process may be quicker.

A record that was written at once is out before `write` returns, so the last words before an end are not lost. `drain`
gives those that wait a last chance.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

WAITING_BYTES_MAX: Final = 1 << 20
PIECE_BYTES: Final = 4096  # PIPE_BUF: where a pipe has room, it has room for so many, and takes them as a whole
REST_S: Final = 0.05  # where there is room, but for less than can be written at once
DRAIN_S: Final = 1.0


class SteadyStream:
    """A text stream over a file descriptor, for `logging.StreamHandler`; thread-safe. `tell_dropped` gets the number of
    texts that were dropped; it may write.
    """

    def __init__(self, descriptor: int, tell_dropped: Callable[[int], object]) -> None:
        self._tell_dropped = tell_dropped
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._write = self._writer_of(descriptor)
        self._never = threading.Event()
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None  # writes what waits; None: nothing does

    def write(self, text: str) -> None:
        """Writes the text, or has it wait. Raises OSError where the other end is gone."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._thread is None and not self._waiting:
                data = self._write_at_once(data)
            if not data:
                return
            if self._waiting_bytes + len(data) > WAITING_BYTES_MAX:
                self._dropped += 1
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._thread is None:
                thread = threading.Thread(target=self._write_what_waits, name="log", daemon=True)
                with suppress(RuntimeError):  # memory is short, or the process ends; the next record tries again
                    thread.start()
                    self._thread = thread

    def flush(self) -> None:
        """Nothing is buffered that could be written."""

    def drain(self) -> None:
        """Waits for what waits to be written, for `DRAIN_S` at most."""
        thread = self._thread
        if thread is not None:
            thread.join(DRAIN_S)

    def _writer_of(self, descriptor: int) -> Callable[[bytes], int]:
        """Returns what writes to this file without blocking: it returns how many bytes it wrote, and raises
        BlockingIOError where there is no room.
        """
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            connection = socket.socket(fileno=os.dup(descriptor))
            weakref.finalize(self, connection.close).atexit = False
            return lambda data: connection.send(data, socket.MSG_DONTWAIT)
        if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
            return partial(os.write, descriptor)  # a regular file waits for no reader
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            own = os.open(f"/proc/self/fd/{descriptor}", flags)
        except OSError:
            return partial(self._write_piece, descriptor)
        weakref.finalize(self, os.close, own).atexit = False
        return partial(os.write, own)

    def _write_piece(self, descriptor: int, data: bytes) -> int:
        if not self._room.poll(0):
            raise BlockingIOError
        return os.write(descriptor, data[:PIECE_BYTES])

    def _write_at_once(self, data: bytes) -> bytes:
        """Writes what there is room for, and returns the rest."""
        with suppress(BlockingIOError):
            while data:
                data = data[self._write(data) :]
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
                    rest = self._write_at_once(data)
                    if len(rest) == len(data):
                        self._never.wait(REST_S)
                    data = rest
