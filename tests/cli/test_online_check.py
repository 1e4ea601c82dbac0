"""`billing doctor --online` at a daemon whose shards are handed over, are gone, or have two owners."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from billing.cli.calling import Target
from billing.cli.online_check import check_online

SILENT = "shard 2 does not answer: silent"
TWICE = "bucket 1 is held by shard 1 and by shard 2"
DRAINING = "DRAINING: waits for 2 buckets to leave"
MOVE_FAILED = "MOVE_FAILED: bucket 7: the log is full"
NO_HOST = "UNREACHABLE_SHARD: no host serves shard 2"
Look = dict[str, Any]


def look(unanswered: tuple[str, ...] = (), faults: tuple[str, ...] = (), alerts: tuple[str, ...] = ()) -> Look:
    """What a daemon answers to the questions of one look."""
    owners = {"buckets": 4, "moving": 0, "shards": 2, "unchecked": []}
    owners |= {"faults": [*unanswered, *faults], "unanswered": list(unanswered)}
    return {"check_owners": owners, "shards_info": [{"shard_id": 2, "alerts": list(alerts)}], "accounts": []}


class FakeDaemon:
    """Answers each look with the next of these, and from then on with the last one."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self.asked = 0
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker()
        while data := await reader.read(65_536):
            unpacker.feed(data)
            for _, msgid, method, _ in unpacker:
                if method == "check_owners":
                    self.asked += 1
                answers = self.looks[min(max(self.asked, 1), len(self.looks)) - 1]
                writer.write(msgpack.packb([1, msgid, None, answers.get(method, {})]))
        writer.close()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            await asyncio.sleep(0)  # connections that the clients have left

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    daemon = FakeDaemon()
    yield daemon
    daemon.close()


def checked(daemon: FakeDaemon, *looks: Look, passing_s: float = 60.0) -> bool:
    daemon.looks = [*looks]
    return check_online(Target(daemon.address, ""), passing_s)


def test_a_shard_that_is_handed_over_meanwhile_is_no_fault(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(daemon, look((SILENT,)), look(alerts=(NO_HOST,)), look())
    assert daemon.asked == 3
    assert "no faults" in capsys.readouterr().out


def test_a_shard_that_stays_away_is_a_fault(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert not checked(daemon, look((SILENT,), alerts=(NO_HOST,)), passing_s=0)
    assert SILENT in (output := capsys.readouterr().out)
    assert "2 faults" in output


def test_two_owners_are_a_fault_also_where_no_later_look_has_them(daemon: FakeDaemon) -> None:
    assert not checked(daemon, look((SILENT,), faults=(TWICE,)), look())
    assert daemon.asked == 1


@pytest.mark.parametrize("alert", [DRAINING, MOVE_FAILED])
def test_what_is_told_and_is_no_fault(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], alert: str) -> None:
    assert checked(daemon, look(alerts=(alert,)))
    assert daemon.asked == 1
    assert f"shard 2: {alert}\n" in (output := capsys.readouterr().out)
    assert "no faults" in output
