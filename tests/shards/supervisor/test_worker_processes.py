"""The worker processes of a host: each is started once, or was loaded before, and ends in order or is ended."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shards.control import Begin, Held, Proved, Serving, Stop
from shards.supervisor.background import Background
from shards.supervisor.child_process import SupervisorPort
from shards.supervisor.worker_processes import WorkerProcesses
from shards.system.host import SharedSocket
from tests.shards.supervisor.hosts import HostRegistry, PartOf, part
from tests.shards.supervisor.supervisor_parts import SupervisorParts, until

__all__ = ["part"]


@pytest.fixture
async def parts(part: PartOf) -> AsyncIterator[SupervisorParts]:
    host: HostRegistry = part("", 0).joined()
    supervisor_parts = SupervisorParts(host.registry, host.log, {1, 2})
    yield supervisor_parts
    await supervisor_parts.close()


async def test_each_shard_has_one_process_which_is_started_again_where_it_ends(parts: SupervisorParts) -> None:
    first, second = await parts.serving(1, 2)
    assert [process.command for process in (first, second)] == [["worker", "shard=1"], ["worker", "shard=2"]]
    assert [begin.shard_id for begin in first.heard(Begin)] == [1]
    first.ends(70)
    await until(lambda: len(parts.started) == 3 and parts.started[2].told)
    assert parts.events == [(1, "down")]
    assert parts.started[2].command == ["worker", "shard=1"]
    assert not second.is_gone.done()


async def test_what_keeps_a_process_from_being_started_is_logged_once_until_one_is_started(
    parts: SupervisorParts, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = await parts.serving(1)
    parts.unstartable = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    first.ends(70)
    await until(lambda: parts.refused_starts == 3)
    assert parts.workers[1].reason.startswith("cannot be started: Too many open files, restarted in ")
    parts.unstartable = None
    await until(lambda: len(parts.started) == 2)
    messages = [record.getMessage() for record in caplog.records if "worker of shard 1" in record.getMessage()]
    assert messages == [
        "the worker of shard 1 ended with 70; restarted in 0 s",
        "the worker of shard 1 cannot be started, and is tried again: Too many open files",
    ]


async def test_one_that_ends_for_good_is_told_to_and_is_not_started_again(parts: SupervisorParts) -> None:
    first, second = await parts.serving(1, 2)
    await parts.processes.end(parts.workers[1], 30)
    assert first.is_gone.result() == 0
    assert list(parts.workers) == [2]
    assert len(parts.started) == 2
    assert not second.heard(Stop)


async def test_one_that_does_not_heed_is_killed_and_one_that_recovers_is_terminated(parts: SupervisorParts) -> None:
    first, second = await parts.serving(1, 2)
    first.is_deaf = second.is_deaf = True
    parts.processes.set_state(parts.workers[2], "recovering")
    await parts.processes.end(parts.workers[1], 0)
    await parts.processes.end(parts.workers[2], 30)
    assert (first.is_gone.result(), second.is_gone.result()) == (-9, -15)
    assert not parts.workers


async def test_one_that_is_dismissed_is_none_of_them_at_once_and_ends_in_its_own_time(parts: SupervisorParts) -> None:
    first, _ = await parts.serving(1, 2)
    first.is_deaf = True
    worker = parts.workers[1]
    parts.processes.dismiss(worker)
    assert list(parts.workers) == [2]
    gone = asyncio.ensure_future(parts.processes.until_gone(worker))
    await until(lambda: first.heard(Stop))
    assert not gone.done()
    first.ends(0)
    await gone


async def test_a_process_that_was_loaded_for_the_next_shard_becomes_its_worker(parts: SupervisorParts) -> None:
    parts.processes.prepare_next(1)
    parts.processes.prepare_next(1)
    await until(lambda: parts.started)
    parts.processes.start_next(2)
    parts.processes.start_next(1)
    await until(lambda: len(parts.started) == 2 and all(process.told for process in parts.started))
    assert [process.command for process in parts.started] == [["worker", "worker=1"], ["worker", "shard=1"]]
    assert [begin.shard_id for begin in parts.started[0].heard(Begin)] == [2]


async def test_processes_are_loaded_for_its_shards_as_long_as_they_are_wanted(parts: SupervisorParts) -> None:
    await parts.processes.prepare({1, 2}, lambda: not parts.started)
    assert [process.command for process in parts.started] == [["worker", "shard=1"]]
    assert not parts.started[0].told
    parts.processes.start(parts.processes.ports_for({1, 2}))
    await until(lambda: len(parts.started) == 2 and all(process.told for process in parts.started))
    assert [begin.shard_id for begin in parts.started[0].heard(Begin)] == [1]


async def test_a_port_that_cannot_be_had_is_named_and_nothing_is_started(parts: SupervisorParts) -> None:
    async def nothing(*_: object) -> None:
        raise AssertionError

    port = SupervisorPort(nothing, int, [], [], nothing, print, nothing, asyncio.Event())  # type: ignore[arg-type]
    processes = WorkerProcesses(port, Background(parts.failures.append), "192.0.2.1")  # no machine has this address
    with pytest.raises(OSError, match=r"a port of shard 1 at 192\.0\.2\.1"):
        processes.ports_for({1, 2})
    assert not processes.by_shard


async def test_one_that_begins_to_serve_hears_which_others_are_held(parts: SupervisorParts) -> None:
    first, _ = await parts.serving(1, 2)
    parts.processes.set_state(parts.workers[2], "held", "exit 74: the disk failed")
    parts.processes.serves(parts.workers[1], Serving(1, 7, ""))
    await until(lambda: first.heard(Held))
    assert first.heard(Held) == [Held(2, "exit 74: the disk failed")]
    assert (parts.workers[1].state, parts.workers[1].figures) == ("serving", {"accounts": 7})


async def test_all_are_told_and_all_end(parts: SupervisorParts, data_dir: Path) -> None:
    both = await parts.serving(1, 2)
    parts.processes.tell(Proved(2))
    parts.stopping.set()
    await parts.processes.stop()
    assert [process.heard(Proved) for process in both] == [[Proved(2)], [Proved(2)]]
    assert [process.is_gone.result() for process in both] == [0, 0]


async def is_turned_away(address: Any, wait_s: float = 60.0) -> bool:
    """Whether a connection is refused, or closed without a word; False where it waits for longer than `wait_s`."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.setblocking(False)
        try:
            async with asyncio.timeout(wait_s):
                await asyncio.get_running_loop().sock_connect(client, address)
                return await asyncio.get_running_loop().sock_recv(client, 1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


async def test_without_a_worker_clients_are_turned_away_everywhere_and_what_others_hold_listens_on(
    parts: SupervisorParts, data_dir: Path
) -> None:
    with (
        socket.socket(socket.AF_UNIX) as unix,
        socket.create_server(("127.0.0.1", 0)) as own,
        socket.create_server(("127.0.0.1", 0)) as managers,
    ):
        unix.bind(f"{data_dir}/door")
        unix.listen()
        handed_over = SharedSocket(fileno=os.dup(managers.fileno()))
        listeners = [("unix", unix), ("tcp", own), ("http", handed_over)]
        for _, listener in listeners:
            listener.setblocking(False)
        parts.port.listeners.extend(listeners)
        addresses = [unix.getsockname(), own.getsockname(), managers.getsockname()]
        parts.processes.refuse_clients()
        for _ in range(2):
            assert [await is_turned_away(address) for address in addresses] == [True] * 3
        assert managers.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        parts.processes.start_next(1)
        assert await is_turned_away(own.getsockname())
        for kept in (unix, managers):
            assert not await is_turned_away(kept.getsockname(), 0.5), "they wait for the worker"
        handed_over.close()
