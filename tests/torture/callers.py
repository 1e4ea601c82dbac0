"""Clients of several hosts, and what they hold against the daemon: an independent ledger and a list of calls.

A client knows every host's address. It makes one call at a time for each of its users, with a request id, and makes it
again at another address until it is answered. What was answered is held against `tests.ledger.model`, which is written
from the contract in fractions and shares no code with the daemon, at the instant that the answer names:

    per-user order    instants and entry ids never decrease, and each reply is what the one before it leads to
    kept              every answer is in the history once, and nothing else is
    money             balances and instants of exhaustion are the model's, to the nano and the nanosecond
    cutoffs           each crossing that the model sees was called, under one event id and instant; nobody else was, and
                      none before its instant
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from billing.trial.receiver_call import Call
from tests.ledger.model import Model
from tests.ledger.model_account import Op
from tests.system.rpc import ConnectionLost, Rpc

ANSWER_S = 1.0  # a host that says nothing for so long may be one that was stopped: the next one is asked
PAUSE_S = 0.02
SETTLE_S = 120.0
EARLY_NS = 250_000_000  # a host's clock may be two tenths of a second ahead of the receiver's
NANOS_PER_HOUR = 3_600_000_000_000  # a coin a second
COMPARED = (
    *("user_id", "state", "balance_nanos", "available_nanos", "rate_nanos_per_hour", "exhausts_at_ns", "runway_ns"),
    *("exhaustion_seq", "entry_id", "at_ns"),
)


class ClientRoute(NamedTuple):
    """By which clients reach a host."""

    port: int
    host: str = "127.0.0.1"
    source: str = ""  # the address that they come from, where that is not left to the kernel

    async def connect(self) -> Rpc:
        return await Rpc.connect(*self)


class Hosts:
    """The ways to them, and a connection to the one that answered last."""

    def __init__(self, routes: list[ClientRoute], rng: random.Random) -> None:
        self._routes = routes
        self._rng = rng
        self._rpcs: dict[ClientRoute, Rpc] = {}
        self._next = 0
        self.unanswered = 0

    async def call(self, method: str, *params: Any, anywhere: bool = False) -> Any:
        """The result, from whichever host answers it. `anywhere`: any host is asked first."""
        if anywhere:
            self._next = self._rng.randrange(len(self._routes))
        while True:
            route = self._routes[self._next]
            try:
                async with asyncio.timeout(ANSWER_S):
                    rpc = self._rpcs.get(route)
                    if rpc is None or not rpc.is_open:
                        rpc = self._rpcs[route] = await route.connect()
                    error, result = await rpc.call(method, *params)
            except (ConnectionLost, OSError, TimeoutError):
                if (rpc_lost := self._rpcs.pop(route, None)) is not None:
                    rpc_lost.close()
            else:
                if error is None:
                    return result
                assert error.startswith(("UNAVAILABLE", "BUSY")), error
            self.unanswered += 1
            self._next = (self._next + 1) % len(self._routes)
            await asyncio.sleep(PAUSE_S)

    def close(self) -> None:
        for rpc in self._rpcs.values():
            rpc.close()


class Caller:
    """Some users, one call at a time."""

    def __init__(self, name: str, routes: list[ClientRoute], seed: str, pause_s: float = PAUSE_S) -> None:
        self.name = name
        self._pause_s = pause_s
        self.rng = random.Random(seed)
        self.hosts = Hosts(routes, self.rng)
        self.models: dict[str, Model] = {}
        self.answered: dict[str, list[str]] = {}  # user -> request ids
        self.reads = 0

    async def do(self, user: str, method: str, **fields: Any) -> None:
        """One change, until it is answered; the answer is what the model says."""
        model = self.models.setdefault(user, Model(accrue=False, restore=False, ids_max=1 << 20))
        ids = self.answered.setdefault(user, [])
        request_id = f"{user}-{len(ids)}"
        op: Op = {"method": method, "user": user, "request_id": request_id, **fields}
        amount = [fields["rate" if method == "set_rate" else "amount"]]
        options = {"request_id": request_id, **({"per": "hour"} if method == "set_rate" else {})}
        if method == "debit":
            options["mode"] = op["mode"] = "partial"
        reply = await self.hosts.call(method, user, *amount, options)
        ids.append(request_id)
        self._compare(reply, model.apply(reply["at_ns"], op))

    async def look(self, user: str) -> int:
        """One read, of any host; it is not older than any answer. The instant that it is of."""
        reply = await self.hosts.call("get_account", user, anywhere=True)
        self.reads += 1
        self._compare(reply, self.models[user].view(user, reply["at_ns"]))
        return int(reply["at_ns"])

    def _compare(self, reply: dict[str, Any], expected: dict[str, Any]) -> None:
        actual = {key: reply[key] for key in COMPARED}
        assert actual == {key: expected[key] for key in COMPARED}, f"answered {reply}\nthe model says {expected}"

    async def walk(self, stop: asyncio.Event, users: int) -> None:
        """Changes and reads of its users, without end: balances last for some seconds, and run out now and then."""
        rng = self.rng
        while not stop.is_set():
            user = f"{self.name}_{rng.randrange(users)}"
            if user not in self.models:
                await self.do(user, "top_up", amount=rng.randrange(10**8, 10**10))
                continue
            match rng.randrange(8):
                case 0 | 1 | 2:
                    await self.look(user)
                case 3 | 4:
                    await self.do(user, "top_up", amount=rng.randrange(1, 2 * 10**9))
                case 5 | 6:
                    await self.do(user, "set_rate", rate=rng.randrange(1, NANOS_PER_HOUR))
                case _:
                    await self.do(user, "debit", amount=rng.randrange(1, 10**9))
            await asyncio.sleep(self._pause_s)

    async def spend(self, users: list[str]) -> None:
        """New users whose money lasts until some instant of the coming seconds."""
        for user in users:
            await self.do(user, "top_up", amount=self.rng.randrange(10**8, 5 * 10**9))
            await self.do(user, "set_rate", rate=NANOS_PER_HOUR)

    async def check_history(self) -> int:
        """Every answered call is there once, in order, and nothing else is; how many rows there are."""
        count = 0
        for user, ids in self.answered.items():
            rows: list[dict[str, Any]] = []
            while not rows or rows[-1]["entry_id"] > 1:
                page_options = {"before": rows[-1]["entry_id"]} if rows else {}
                page = await self.hosts.call("history", user, {"limit": 1000, **page_options})
                assert page, f"{user}: the history ends at entry {rows[-1:]}"
                rows += page
            rows.reverse()
            assert [row["entry_id"] for row in rows] == list(range(1, len(rows) + 1)), user
            assert [row["request_id"] for row in rows if row["request_id"]] == ids, user
            assert all(row["request_id"] or row["operation"] == "exhaust" for row in rows), rows
            count += len(rows)
        return count


def due(callers: list[Caller], now_ns: int) -> dict[tuple[str, int, int], bool]:
    """(user, seq, instant) of each crossing until now, and whether it must have been called: what money came for before
    the first attempt need not be.
    """
    pending_by_crossing = {}
    for caller in callers:
        for user, model in caller.models.items():
            account = model.accounts[user]
            model.pass_time(account, now_ns)
            for cutoff in account.cutoffs:
                pending_by_crossing[(user, cutoff["seq"], cutoff["at"])] = cutoff["status"] == "pending"
    return pending_by_crossing


async def settle(callers: list[Caller], calls: Callable[[], list[Call]]) -> dict[str, int]:
    """Waits until every crossing up to now was called, and holds all calls against all crossings. AssertionError.
    `calls` answers those that have arrived by now.
    """
    now_ns = 0
    for caller in callers:
        for user in caller.models:
            now_ns = max(now_ns, await caller.look(user))
    crossings = due(callers, now_ns)
    deadline = time.monotonic() + SETTLE_S
    while missing := {crossing for crossing, must in crossings.items() if must} - {_crossing(call) for call in calls()}:
        if time.monotonic() > deadline:
            users = {user: caller for caller in callers for user in caller.models}
            explanations = [await users[crossing[0]].hosts.call("explain", crossing[0]) for crossing in missing]
            raise AssertionError(f"lost: {sorted(missing)}; the daemon says {explanations}")
        await asyncio.sleep(0.05)
    calls_made = calls()
    crossings = due(callers, max([now_ns, *(call.exhausted_at_ns for call in calls_made)]))
    false = [call for call in calls_made if _crossing(call) not in crossings]
    assert not false, f"called without cause: {false}"
    events: dict[tuple[str, int, int], set[str]] = {}
    for call in calls_made:
        events.setdefault(_crossing(call), set()).add(call.event_id)
        assert call.arrived_ns > call.exhausted_at_ns - EARLY_NS, f"early: {call}"
    assert all(len(ids) == 1 for ids in events.values()), f"two event ids for one crossing: {events}"
    latest = [
        min(call.arrived_ns for call in calls_made if _crossing(call) == crossing) - crossing[2] for crossing in events
    ]
    return {
        "crossings called": len(events),
        "called again": len(calls_made) - len(events),
        "lateness_ms_max": round(max(latest, default=0) / 1e6),
    }


def _crossing(call: Call) -> tuple[str, int, int]:
    return call.user_id, call.seq, call.exhausted_at_ns


class Prober:
    """Asks one host again and again, to know when it began and ceased to answer changes; `pause_s` between two."""

    def __init__(self, route: ClientRoute, user: str, pause_s: float = 0.01) -> None:
        self._route = route
        self._user = user
        self._pause_s = pause_s
        self.answers: list[float] = []  # instants, by `time.monotonic`, of the last ones

    async def run(self) -> None:
        number = 0
        while True:
            rpc = None
            with contextlib.suppress(ConnectionLost, OSError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    rpc = await self._route.connect()
                while True:
                    number += 1
                    async with asyncio.timeout(ANSWER_S):
                        error, _ = await rpc.call("top_up", self._user, 1, {"request_id": f"{id(self)}-{number}"})
                    if error is None:
                        self.answers.append(time.monotonic())
                        del self.answers[:-2000]
                    await asyncio.sleep(self._pause_s)
            if rpc is not None:
                rpc.close()
            await asyncio.sleep(self._pause_s)

    def first_after(self, instant: float) -> float | None:
        return next((answer_ns for answer_ns in self.answers if answer_ns > instant), None)

    def last(self) -> float:
        return self.answers[-1] if self.answers else 0.0
