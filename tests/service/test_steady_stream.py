"""A stream whose reader has stopped: nobody is blocked, the order stays, and what is dropped is told."""

from __future__ import annotations

import os
import pty
import socket
import threading
from collections.abc import Iterator

import pytest

from billing.service.steady_stream import WAITING_BYTES_MAX, SteadyStream


class Pipe:
    """A pipe that is read when a test says so."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        self.stream = SteadyStream(self.into, self.tell)

    def tell(self, count: int) -> None:
        self.stream.write(f"{count} dropped\n")

    def fill(self) -> int:
        """Writes until there is no room; returns how much that was."""
        os.set_blocking(self.into, False)
        written = 0
        try:
            while True:
                written += os.write(self.into, b"." * 4096)
        except BlockingIOError:
            os.set_blocking(self.into, True)
            return written

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += os.read(self.out, size - len(data))
        return data

    def lines_to(self, last: bytes) -> list[bytes]:
        data = b""
        while not data.endswith(last):
            data += os.read(self.out, 1 << 16)
        return data.splitlines()

    def close(self) -> None:
        for descriptor in (self.out, self.into):
            os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    opened = Pipe()
    yield opened
    opened.close()


def test_what_there_is_room_for_is_out_at_once_without_a_thread(pipe: Pipe) -> None:
    before = threading.active_count()
    pipe.stream.write("a shard is held: größer\n")
    assert os.read(pipe.out, 1 << 16) == "a shard is held: größer\n".encode()
    assert threading.active_count() == before
    pipe.stream.drain()


def test_what_nobody_reads_waits_in_its_order(pipe: Pipe) -> None:
    filled = pipe.fill()
    for number in range(5000):
        pipe.stream.write(f"record {number}\n")
    assert pipe.read(filled) == b"." * filled
    assert pipe.lines_to(b"record 4999\n") == [b"record %d" % number for number in range(5000)]
    pipe.stream.drain()
    pipe.stream.write("the last one\n")
    assert os.read(pipe.out, 1 << 16) == b"the last one\n"


def test_what_does_not_fit_is_dropped_and_told(pipe: Pipe) -> None:
    filled = pipe.fill()
    record = "x" * 99_999 + "\n"
    fit = WAITING_BYTES_MAX // len(record)
    for _ in range(20):
        pipe.stream.write(record)
    pipe.read(filled)
    *kept, told = pipe.lines_to(b" dropped\n")
    assert kept == [b"x" * 99_999] * len(kept)
    assert len(kept) in (fit, fit + 1), "the thread may have one in its hands"
    assert told == b"%d dropped" % (20 - len(kept))


def test_a_terminal_that_nobody_reads_blocks_nobody_where_it_has_little_room() -> None:
    reads, writes = pty.openpty()
    stream = SteadyStream(writes, lambda count: None)
    for number in range(2000):
        stream.write(f"record {number} {'x' * 100}\n")
    data = b""
    while not data.endswith(b"record 1999 " + b"x" * 100 + b"\r\n"):
        data += os.read(reads, 1 << 16)
    assert data.splitlines() == [f"record {number} {'x' * 100}".encode() for number in range(2000)]
    stream.drain()
    for descriptor in (reads, writes):
        os.close(descriptor)


def test_a_long_record_is_one_write_which_no_other_process_comes_between() -> None:
    reads, writes = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reads, writes:
        stream = SteadyStream(writes.fileno(), lambda count: None)
        stream.write("x" * 20_000)
        assert reads.recv(1 << 20) == b"x" * 20_000


def test_where_no_thread_can_be_started_the_next_record_tries_again(pipe: Pipe) -> None:
    filled = pipe.fill()
    stack_bytes = threading.stack_size(1 << 46)
    try:
        pipe.stream.write("first\n")
    finally:
        threading.stack_size(stack_bytes)
    pipe.stream.drain()
    assert pipe.read(filled) == b"." * filled
    pipe.stream.write("second\n")
    assert pipe.lines_to(b"second\n") == [b"first", b"second"]


def test_a_reader_that_is_gone_is_an_error_for_who_writes(pipe: Pipe) -> None:
    os.close(pipe.out)
    with pytest.raises(BrokenPipeError):
        pipe.stream.write("to nobody\n")
    pipe.out = os.dup(pipe.into)
