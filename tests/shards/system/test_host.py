"""Processes that are started: whom a terminal's ^C reaches."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from shards.system.host import environment

STARTS_A_CHILD = """
import asyncio, os, sys, uvloop
from shards.system.host import spawn

WAITS = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).recv(1)"

async def start():
    child, ours = await spawn([sys.executable, "-c", WAITS], [])
    print("ours" if os.getpgid(child.pid) == os.getpgrp() else "its own")
    ours.close()
    assert await child.wait() == 0

if os.isatty(0):
    os.open(os.ttyname(0), os.O_RDWR)  # the terminal of this session from here on
{"asyncio": asyncio, "uvloop": uvloop}[sys.argv[1]].run(start())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(("terminal", "group"), [(True, "its own"), (False, "ours")])
def test_a_terminals_keys_reach_no_child(loop: str, terminal: bool, group: str) -> None:
    near, far = pty.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-c", STARTS_A_CHILD, loop],
            stdin=far if terminal else subprocess.DEVNULL,
            capture_output=True, text=True, start_new_session=True, timeout=120, check=True,
        )  # fmt: skip
    finally:
        os.close(near)
        os.close(far)
    assert result.stdout == f"{group}\n"


@pytest.mark.parametrize(
    ("tunables", "expected"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_child_asks_for_huge_pages_unless_somebody_decided_that(tunables: str | None, expected: str) -> None:
    given_environment = {"HOME": "/"} if tunables is None else {"HOME": "/", "GLIBC_TUNABLES": tunables}
    assert environment(given_environment) == {"HOME": "/", "GLIBC_TUNABLES": expected}
