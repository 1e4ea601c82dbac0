"""Sockets that the service manager hands over: which door each is for, and what is refused instead of overlooked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from billing.config.load import ConfigError, load
from billing.config.schema import Config
from billing.service.listeners import bind, role_of
from billing.service.systemd import DESCRIPTORS_MAX, handed_over

TAKES = """
import os, sys
from billing.config.load import ConfigError
from billing.service.systemd import handed_over
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
os.dup2(int(sys.argv[1]), 3)
os.closerange(4, 100)
try:
    handed_over(os.environ)
except ConfigError as error:
    print(error)
"""


def config_with(**keys: str) -> Config:
    return load(None, {f"BILLING_{key.upper()}": value for key, value in keys.items()}).config


def test_a_socket_is_for_the_door_at_its_address_also_where_two_have_the_same_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.2", 0)) as other:
        port = first.getsockname()[1]
        config = config_with(
            rpc__listen=f"localhost:{port}", http__listen=f"127.0.0.2:{port}", admin__listen=f"127.0.0.3:{port}"
        )
        assert role_of("", first, config) == "rpc"
        assert role_of("http", first, config) == "http", "a name of its own goes before"
        elsewhere = config_with(http__listen=f"127.0.0.2:{port}")
        assert role_of("", first, elsewhere) == "http", "the port of one door is enough"
        assert role_of("", other, config) == "rpc"


def test_a_second_socket_for_the_pages_is_refused_since_nobody_would_answer_there() -> None:
    config = config_with(rpc__listen="127.0.0.1:0", http__listen="")
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        with pytest.raises(ConfigError, match=f"got another at 127.0.0.1:{second.getsockname()[1]}"):
            bind(config, [("admin", first), ("admin", second)])
        bound = bind(config, [("admin", first), ("rpc", second)])
        assert bound.admin is first
        assert bound.listeners == [("tcp", second)]


def test_more_sockets_than_are_taken_are_refused_and_not_left_to_wait() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(DESCRIPTORS_MAX + 1)}
    with pytest.raises(ConfigError, match=f"expected {DESCRIPTORS_MAX} sockets at most, got {DESCRIPTORS_MAX + 1}"):
        handed_over(environment)
    assert not environment


def test_descriptors_that_are_no_sockets_or_not_there_are_named_and_are_no_failed_disk() -> None:
    near, far = os.pipe()
    try:
        program = [sys.executable, "-c", TAKES, str(near)]
        result = subprocess.run(program, pass_fds=[near], capture_output=True, text=True, timeout=120, check=True)
    finally:
        os.close(near)
        os.close(far)
    assert result.stdout.splitlines() == [
        "LISTEN_FDS (environment): expected a socket as descriptor 3: Socket operation on non-socket",
        "LISTEN_FDS (environment): expected a socket as descriptor 4: Bad file descriptor",
    ]
