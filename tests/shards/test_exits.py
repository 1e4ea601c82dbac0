"""Which error ends a process with which code, and in which words; and that nobody keeps another table of them."""

from __future__ import annotations

import ast
import errno
import socket

import pytest

from billing.config.load import ConfigError, Fault
from shards.batch import BatchCorrupt
from shards.exits import Exit, ending_of, text_of
from shards.journal import (
    Corrupt,
    Fenced,
    Gap,
    JournalError,
    Lost,
    OtherFormat,
    Torn,
    Unavailable,
    Unfit,
    Unknown,
)
from shards.supervisor.registry import Conflict
from shards.system.disk import DirectoryRefused
from shards.worker.recover import Damaged
from tests.house.source import ROOMS, modules


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError([Fault("rpc.listen", "file", "x")]), 78, "the configuration cannot be run:\nrpc.listen (file): x"),
        (Corrupt("x", file="f", offset=3), 65, "the data are damaged: x (file f, offset 3)"),
        (Gap("x"), 65, "the data are damaged: x"),
        (Torn("x"), 65, "the data are damaged: x"),
        (BatchCorrupt("x"), 65, "the data are damaged: x"),
        (Damaged("x"), 65, "the data are damaged: x"),
        (OtherFormat("x"), 78, "x"),
        (Unknown("the disk failed: x"), 74, "the disk failed: x"),
        (JournalError("x"), 74, "x"),
        (Unavailable("x"), 3, "x"),
        (Lost("x"), 75, "x"),
        (Fenced("x"), 75, "x"),
        (Unfit("x"), 78, "x"),
        (Conflict("x"), 78, "x"),
        (DirectoryRefused("x"), 78, "x"),
        (OSError(errno.EIO, "Input/output error", "/data"), 74, "the disk failed: /data: Input/output error"),
        (OSError(errno.ENOENT, "No such file or directory", "/data"), 78, "/data: No such file or directory"),
        (OSError(errno.EACCES, "Permission denied", "/data"), 78, "/data: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 78, "No space left on device"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 78, "Address already in use"),
        (OSError(errno.EAFNOSUPPORT, "Address family not supported"), 78, "Address family not supported"),
        (OSError(errno.EMFILE, "Too many open files"), 75, "Too many open files"),
        (socket.gaierror(-2, "Name or service not known"), 78, "Name or service not known"),
        (MemoryError(), 75, ""),
        (ValueError("x"), 70, "this is a bug: ValueError: x"),
        (AssertionError("x"), 70, "this is a bug: AssertionError: x"),
    ],
)
def test_every_ending_has_its_code_and_its_words(error: Exception, code: int, text: str) -> None:
    assert ending_of(error).code == code
    assert text_of(error) == text


def test_the_codes_are_those_of_the_contract() -> None:
    assert {member.name: member.value for member in Exit} == {
        "CLEAN": 0,
        "REFUSED": 1,
        "USAGE": 2,
        "UNREACHABLE": 3,
        "NOT_ALLOWED": 4,
        "DAMAGED": 65,
        "BUG": 70,
        "DISK": 74,
        "AGAIN": 75,
        "CONFIG": 78,
        "INTERRUPTED": 130,
    }


def test_there_is_no_second_table() -> None:
    assert [
        f"{module.path}:{node.lineno}"
        for module in modules(*ROOMS)
        for node in module.nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.startswith("EXIT_")
    ] == []
