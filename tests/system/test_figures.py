"""What one daemon says of itself: how long requests took at each door, its own process, and its log as JSON."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import msgpack
import psutil
import pytest

from tests.api.http.harness import request
from tests.api.iproto.test_streams import call
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.test_admin import at, scraped, scraped_when

DURATION = "billing_request_duration_seconds"
COUNTS = {"top_up": 40, "debit": 7, "get_account": 3}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    doors = {key: f"127.0.0.1:{free_port()}" for key in ("http.listen", "tarantool.listen")}
    with Daemon(tmp_path_factory.mktemp("d"), shards__workers=1, log__format="json", **doors) as started:
        yield started


def calls_to_make() -> Iterator[tuple[str, list[str]]]:
    """The calls, by method as `COUNTS` says."""
    for method, count in COUNTS.items():
        yield from ((method, ["u", "0.001"] if method != "get_account" else ["u"]) for _ in range(count))


async def until_answered(port: int, data: bytes, answers: bytes, count: int) -> None:
    """Writes all at once, and returns when so many answers have come; `answers`: what stands in each, once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    received = b""
    async with asyncio.timeout(60):
        while received.count(answers) < count:
            part = await reader.read(65_536)
            assert part, received
            received += part
    writer.close()


async def test_each_request_is_in_the_histogram_of_its_method_and_door_once(daemon: Daemon) -> None:
    calls, total = list(calls_to_make()), sum(COUNTS.values())
    port_of = {door: int(daemon.address_of(f"{door}.listen").rpartition(":")[2]) for door in ("http", "tarantool")}
    rpc = b"".join(msgpack.packb([0, number, *call]) for number, call in enumerate(calls))
    await until_answered(daemon.rpc_port, rpc, b"\xa7user_id", total)
    iproto = b"".join(call(method, *params, sync=number) for number, (method, params) in enumerate(calls, 1))
    await until_answered(port_of["tarantool"], iproto, b"\xa7user_id", total)
    http = b"".join(
        request("GET", "/v1/accounts/u")
        if method == "get_account"
        else request("POST", f"/v1/accounts/u/{method}", {"amount": params[1]})
        for method, params in calls
    )
    await until_answered(port_of["http"], http, b'"user_id"', total)
    async with at(daemon) as session:
        for door in ("msgpack_rpc", "tarantool", "http"):
            for method, count in COUNTS.items():
                labels = f"door={door},method={method}"
                samples = await scraped_when(session, f"{DURATION}_count", labels, count)
                assert samples[f"{DURATION}_count", labels] == count, labels
                assert samples[f"{DURATION}_bucket", f"door={door},le=+Inf,method={method}"] == count
                assert samples[f"{DURATION}_sum", labels] > 0
        assert samples["billing_requests_total", "method=top_up"] == 3 * COUNTS["top_up"]


async def test_the_main_process_has_the_metrics_that_every_client_of_prometheus_names(daemon: Daemon) -> None:
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    async with at(daemon) as session:
        samples = await scraped(session)
    assert samples["process_start_time_seconds", ""] == pytest.approx(process.create_time(), abs=2)
    assert 0 < samples["process_cpu_seconds_total", ""] <= sum(process.cpu_times()[:2]) + 0.02
    assert samples["process_resident_memory_bytes", ""] > 2**20
    assert samples["process_virtual_memory_bytes", ""] >= samples["process_resident_memory_bytes", ""]
    assert 0 < samples["process_open_fds", ""] < samples["process_max_fds", ""]


def test_every_line_of_a_json_log_is_an_object_and_an_event_says_what_to_do(daemon: Daemon) -> None:
    daemon.kill(daemon.worker_pids()[0])
    deadline = time.monotonic() + 60
    while "ended with -9" not in daemon.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    daemon.wait_ready()
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert [line for line in lines if line["message"].startswith("shard 1 serves")]
    (line,) = [line for line in lines if "ended with -9" in line["message"]]
    assert line["level"] in ("warning", "error")
    assert line["event"]
    assert line["do"]
