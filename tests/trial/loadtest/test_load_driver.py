"""Sending rows at their moments and settling each once, against a server that loses, refuses, stalls and doubles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from billing.client.client import Client
from billing.trial.loadtest.columns import ACTIVE, DEBIT, FAILED, LINE_RATE, READ, REFUSED, STALE, TOP_UP, Columns
from billing.trial.loadtest.load_driver import WHOLE_PHASE, ClosedLoop, LoadDriver, MeasuredSpan, OpenLoop
from billing.trial.loadtest.skew import Skew
from shards.system.clock import MACHINE_CLOCKS

MS = 1_000_000
OPEN, CLOSED = OpenLoop(64), ClosedLoop(64)


class Server(asyncio.Protocol):
    """Answers every command, after what `faults` holds for its row: an error's map, or "close"."""

    def __init__(self, faults: dict[int, list[Any]], rows: list[int], pause: Callable[[], float]) -> None:
        self._faults = faults
        self._seen = rows
        self._pause = pause
        self._unpacker = msgpack.Unpacker()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        for _, msgid, method, params in self._unpacker:
            if method == "hello":
                self._reply(msgid, None, {})
                continue
            row = -1 if method == "get_account" else int.from_bytes(params[2]["request_id"], "big") & (2**40 - 1)
            self._seen.append(row)
            fault = self._faults.get(row, []).pop(0) if self._faults.get(row) else None
            if fault == "close":
                self._transport.abort()
                return
            asyncio.get_running_loop().call_later(
                self._pause(), self._reply, msgid, fault, None if fault else account(row)
            )

    def _reply(self, msgid: int, error: Any, result: Any) -> None:
        if not self._transport.is_closing():
            self._transport.write(msgpack.packb([1, msgid, error, result]))


def account(row: int) -> dict[str, Any]:
    return {
        "at_ns": 10**18 + row,
        "balance_nanos": 100 + row,
        "rate_nanos_per_hour": 0,
        "exhausts_at_ns": None,
        "exhaustion_seq": 0,
        "entry_id": row + 1,
        "state": "active",
        "replayed": False,
    }


def refusal(name: str, retry: bool) -> dict[str, Any]:
    return {"name": name, "code": 1, "message": "no", "retry": retry, "applied": "no"}


def columns_of(*kinds: int, due_ns: list[int] | None = None) -> Columns:
    columns = Columns(3, ["a", "b"], ["", "vm"])
    for row, kind in enumerate(kinds):
        columns.add(due_ns[row] if due_ns else 0, row % 2, kind, 5, int(kind == LINE_RATE))
    return columns


async def settled(
    columns: Columns,
    faults: dict[int, list[Any]] | None = None,
    *,
    connections: int = 1,
    pause: Callable[[], float] = lambda: 0.0,
    loop: OpenLoop | ClosedLoop = CLOSED,
    measured: MeasuredSpan = WHOLE_PHASE,
) -> tuple[LoadDriver, list[int]]:
    rows: list[int] = []
    server = await asyncio.get_running_loop().create_server(lambda: Server(faults or {}, rows, pause), "127.0.0.1", 0)
    client = Client(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    drivers: list[LoadDriver] = []

    def on_read() -> None:
        if drivers:
            drivers[0].on_read()

    batches = [client.batch(lambda *answer: drivers[0].on_answer(*answer), on_read) for _ in range(connections)]
    try:
        for batch in batches:
            await batch.connect()
        drivers.append(LoadDriver(columns, batches, loop, measured=measured))
        async with asyncio.timeout(60):
            await drivers[0].run()
    finally:
        for batch in batches:
            batch.close()
        server.close()
    return drivers[0], rows


async def test_every_row_is_answered_once_and_sent_in_order() -> None:
    columns = columns_of(*[TOP_UP] * 1000)
    driver, rows = await settled(columns)
    assert rows == list(range(1000))
    assert set(columns.state) == {ACTIVE}
    assert list(columns.balance) == [100 + row for row in range(1000)]
    assert (driver.answered, driver.retries, driver.stale, driver.refused, driver.failed) == (1000, 0, 0, 0, 0)
    assert driver.service.total == 1000


async def test_users_keep_to_their_connection() -> None:
    columns = columns_of(*[TOP_UP] * 600)
    _, rows = await settled(columns, connections=2)
    assert [row for row in rows if row % 2 == 0] == list(range(0, 600, 2))
    assert [row for row in rows if row % 2] == list(range(1, 600, 2))


async def test_nothing_goes_before_its_moment_and_latency_counts_from_it() -> None:
    columns = columns_of(*[TOP_UP] * 3, due_ns=[0, MS, 60 * MS])
    start_ns = MACHINE_CLOCKS.boot_ns() + 20 * MS
    driver, rows = await settled(columns, loop=OPEN, measured=MeasuredSpan(start_ns))
    assert rows == [0, 1, 2]
    assert all(sent >= start_ns + due for sent, due in zip(columns.sent, columns.due, strict=True))
    assert driver.lateness.total == driver.latency.total == 3


async def test_a_server_that_stands_still_delays_all_that_were_due_meanwhile() -> None:
    """An open loop sees what a closed one cannot: here all commands are late, not one in a thousand."""
    frozen = [0.3]
    columns = columns_of(*[TOP_UP] * 200, due_ns=[row * MS for row in range(200)])
    start_ns = MACHINE_CLOCKS.boot_ns() + 5 * MS
    driver, _ = await settled(
        columns, pause=lambda: frozen.pop() if frozen else 0.0, loop=OpenLoop(1), measured=MeasuredSpan(start_ns)
    )
    assert driver.latency.value_at(0.2) >= 100 * MS
    assert driver.service.value_at(0.2) < driver.latency.value_at(0.2)
    assert driver.held > 100
    assert driver.lateness.total == 200 - driver.held


async def test_warm_up_is_not_in_the_figures() -> None:
    columns = columns_of(*[TOP_UP] * 10, due_ns=[row * MS for row in range(10)])
    driver, _ = await settled(columns, loop=OPEN, measured=MeasuredSpan(warm_ns=4 * MS))
    assert (driver.answered, driver.latency.total, driver.service.total) == (10, 6, 6)
    assert sum(each.total for each in driver.intervals) == 10


async def test_a_closed_loop_goes_on_until_its_end() -> None:
    columns = columns_of()
    end_ns = MACHINE_CLOCKS.boot_ns() + 1000 * MS

    def more() -> None:
        for _ in range(50):
            columns.add(0, 0, TOP_UP, 1)

    driver, rows = await settled(columns, loop=ClosedLoop(8, more, end_ns))
    assert len(rows) == driver.answered > 8
    assert driver.sent <= len(columns)


async def test_what_may_pass_is_tried_again_and_counts_from_its_moment() -> None:
    faults: dict[int, list[Any]] = {
        1: [refusal("UNAVAILABLE", True), refusal("BUCKET_MOVING", True)],
        2: [refusal("UNKNOWN_ACCOUNT", False)],
        3: ["close"],
    }
    columns = columns_of(*[TOP_UP] * 5)
    driver, rows = await settled(columns, faults, loop=OPEN)
    assert set(columns.state) == {ACTIVE}
    assert rows.count(1) == 3
    assert rows.count(2) >= 2
    assert driver.retries >= 4
    assert driver.latency.value_at(1.0) >= 200 * MS
    assert driver.failed == 0


async def test_what_is_refused_for_good_is_told() -> None:
    columns = columns_of(*[TOP_UP] * 3)
    driver, rows = await settled(columns, {1: [refusal("INVALID_RATE", False)]})
    assert list(columns.state) == [ACTIVE, FAILED, ACTIVE]
    assert rows.count(1) == 1
    assert driver.failed == 1
    assert driver.told[0].startswith("top_up b 5: ")


async def test_a_refused_debit_is_an_answer_and_a_refused_top_up_is_not() -> None:
    no = refusal("INSUFFICIENT_FUNDS", False)
    columns = columns_of(DEBIT, TOP_UP)
    driver, _ = await settled(columns, {0: [no], 1: [no]})
    assert list(columns.state) == [REFUSED, FAILED]
    assert (driver.refused, driver.failed) == (1, 1)


async def test_a_late_retry_of_a_rate_may_be_stale_and_a_first_try_may_not() -> None:
    faults = {
        0: [refusal("UNAVAILABLE", True), refusal("STALE_RATE", False)],
        1: [refusal("STALE_RATE", False)],
    }
    columns = columns_of(LINE_RATE, LINE_RATE)
    driver, _ = await settled(columns, faults)
    assert list(columns.state) == [STALE, FAILED]
    assert driver.stale == 1


async def test_questions_carry_no_request_id() -> None:
    columns = columns_of(READ)
    assert columns.request(0) == ("get_account", ["a"])
    _, rows = await settled(columns)
    assert rows == [-1]


def test_requests_are_told_apart_by_run_and_row() -> None:
    columns = columns_of(TOP_UP, LINE_RATE)
    assert columns.request(0) == ("top_up", ["a", 5, {"request_id": (3 << 40).to_bytes(8, "big")}])
    method, (user, value, options) = columns.request(1)
    assert (method, user, value) == ("set_rate", "b", 5)
    assert options == {"request_id": (3 << 40 | 1).to_bytes(8, "big"), "per": "hour", "resource": "vm", "rate_seq": 1}


@pytest.mark.parametrize(
    ("samples", "shift_ns"),
    [
        ([(1000, 900, 1100)], 0),  # stamped in between: the two may be equal
        ([(1000, 500, 600)], 400),  # stamped 400 after the answer came: ahead by at least so much
        ([(1000, 1500, 1600)], -500),  # stamped 500 before it was sent
        ([(1000, 500, 900), (1000, 900, 1100)], 100),  # the one that tells most counts
        ([(1000, 1005, 1900), (1000, 900, 1100)], 0),  # an old stamp on a slow answer does not
    ],
)
def test_what_replies_tell_of_the_clocks(samples: list[tuple[int, ...]], shift_ns: int) -> None:
    skew = Skew()
    for at_ns, sent_ns, received_ns in samples:
        skew.learn(at_ns, sent_ns, received_ns)
    assert skew.shift_ns == shift_ns
