"""Pairs of settings: the real daemon with rows of settings in which every pair of levels stands at least once.

    python -m tests.torture.pairs                    all rows
    python -m tests.torture.pairs --part 2/4         a quarter of them
    python -m tests.torture.pairs --rows 7 12        these alone
    python -m tests.torture.pairs --list             the rows, and what is refused

Each option has tests of its own; a fault that shows only where two of them meet has none, unless somebody thought of
that pair. The factors and their levels stand in `pair_settings`, the rows are made by `covering`. Each row plays this
scene, of one host or of two that share a log:

    doors     through every door that is open an account is opened, charged by the hour and at once, and has a hold; the
              command line does likewise; each answer is held against the model of `tests.ledger`, which is written from
              the contract in fractions, at the instant that the answer names
    pages     /livez, /readyz, /metrics, the dashboard and an account on it
    cutoffs   a balance runs out within a second, in the default class and in one of its own: the call comes to a real
              endpoint, by the method, the path and the signature that the settings say, not before its instant; so does
              the restore behind a top-up, and the notices, where these are on
    reload    the certificate, the tokens and the secret are other ones, and SIGHUP is sent: doors show the new
              certificate and take the new token, calls and notices are signed with the new secret
    kills     a call is owed to an endpoint that refuses, and a worker is killed, then everything: balances, histories
              and what is owed are as they were, at the host that is started again, or at the one that takes over; the
              call comes under its first event id once the endpoint accepts, or once it is released
    stop      exit code 0, `billing doctor` proves what is stored, `billing journal dump` and `billing audit` read it,
              and the log has no trace

What the daemon refuses is no row: `refused` asserts that each such combination ends with 78 and the sentence that
belongs to it.

Levels that listen beyond loopback need a network namespace: as root, the program starts itself anew in one; otherwise
they are left out, and the program says so. Prints what it counted as JSON; exit code 1 with the row, the reason and the
end of the log where anything does not hold, 2 where there is no nats-server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from billing.config.load import ConfigError, load
from billing.signature import parse_secrets
from billing.trial.faults import Fault
from billing.trial.receiver import Receiver
from billing.trial.receiver_call import Call
from shards.exits import Exit
from tests.ledger.model import Model, Policy
from tests.ledger.model_account import Op
from tests.shards.journal.nats_cluster import BINARY, MISSING
from tests.system.commands import carried_out
from tests.system.rpc import ConnectionLost
from tests.torture.callers import COMPARED
from tests.torture.covering import CANDIDATES, Covering, Row, cover
from tests.torture.hosts import alone, has_network, why_no_network
from tests.torture.pair_doors import Door, Doors, Refused, RpcDoor, doors_of, fetch, server_of
from tests.torture.pair_settings import (
    ADMIN_TOKEN,
    FACTORS,
    FIRST_SECRET,
    GRACE_NS,
    LATE_TOKEN,
    NEXT_SECRET,
    RULES,
    WAIT_S,
    Endpoints,
    Host,
    LogServer,
    SharedFiles,
    factors_of,
    refused_rows,
)

COIN: Final = 10**9
HOUR_NS: Final = 3600 * COIN
BEHIND: Final = 2**63 - 1  # an instant behind all others
POLL_S: Final = 0.05
SHORTLY_S: Final = 3.0  # so long a host is asked that may serve nothing
BURST: Final = 80  # changes at once, which are more than a small segment holds
AGREED: Final = 6  # answers in a row: each may come from another worker
EARLY_NS: Final = 250_000_000  # of a receiver by another clock than billing time
TRACES: Final = ("Traceback", "on a bug", "CRITICAL")
DOORS_LEFT: Final = (OSError, ConnectionLost, TimeoutError)


def rows_of(with_network: bool, candidates: int = CANDIDATES) -> Covering:
    """The rows of the campaign; with fewer candidates, which takes less time, others and more of them."""
    return cover(factors_of(with_network), RULES, candidates)


class AccountModels:
    """The accounts of one row: what the model says of them, and the rows of their histories."""

    def __init__(self, row: Row, counts: Counter[str]) -> None:
        accrue, restores = row["arrears"] == "accrue", row["restore"] == "set"
        gold = Policy(GRACE_NS, True, True) if row["class"] == "own" else Policy(GRACE_NS, accrue, restores)
        self._policy: dict[str, Any] = {
            "accrue": accrue,
            "restore": restores,
            "ids_max": 1 << 20,
            "lease": HOUR_NS if row["lease"] == "hour" else 0,
            "classes": {"gold": gold} if row["class"] != "none" else {},
        }
        self._counts = counts
        self.models: dict[str, Model] = {}
        self._histories: dict[str, list[Any]] = {}
        self._number = 0

    async def do(self, door: Door, user: str, method: str, **fields: Any) -> Any:
        """One change over a door; the answer is what the model says."""
        self._number += 1
        request_id = f"r{self._number}"
        params = [fields[name] for name in ("hold_id", "amount", "rate", "delta", "class") if name in fields]
        options: dict[str, Any] = {name: fields[name] for name in ("resource", "message") if name in fields}
        options["request_id"] = request_id
        if method in ("set_rate", "change_rate"):
            options["per"] = "hour"
        reply = await answered(door, method, user, *params, options)
        self.check_reply(user, reply, {"method": method, "user": user, "request_id": request_id, **fields})
        return reply

    def check_reply(self, user: str, reply: dict[str, Any], op: Op) -> None:
        """Holds the answer to a change against the model."""
        self._counts["changes"] += 1
        model = self.models.setdefault(user, Model(**self._policy))
        _compare(reply, model.apply(reply["at_ns"], op))

    async def verify(self, control: Door) -> None:
        """Every account is what the model says, and its history and statement add up to it; nothing is gone."""
        for user, model in self.models.items():
            reply = await answered(control, "get_account", user)
            _compare(reply, model.view(user, reply["at_ns"]))
            rows = await answered(control, "history", user, {"limit": 1000})
            rows_before = self._histories.get(user, [])
            assert rows[len(rows) - len(rows_before) :] == rows_before, (
                f"the history of {user} has changed: {rows_before}\n{rows}"
            )
            assert [row["entry_id"] for row in rows] == list(range(len(rows), 0, -1)), rows
            assert rows[0]["balance_after_nanos"] == _floor(model, user, rows[0]["at_ns"]), rows[0]
            self._histories[user] = rows
            statement = await answered(control, "statement", user, 0, BEHIND)
            _adds_up(statement)
            assert statement["closing_nanos"] == _floor(model, user, statement["to_ns"]), statement
            self._counts["accounts proved"] += 1


def _floor(model: Model, user: str, at_ns: int) -> int:
    """The balance at an instant that is not before the account's newest entry, in nanos."""
    return int(model.view(user, at_ns)["balance_nanos"])


def _adds_up(statement: dict[str, Any]) -> None:
    exact = {name: int(text) for name, text in statement["exact"].items()}
    assert exact["opening"] + exact["credits"] - exact["debits"] - exact["accrued"] == exact["closing"], statement


def _compare(reply: dict[str, Any], expected: dict[str, Any]) -> None:
    actual = {key: reply[key] for key in COMPARED}
    assert actual == {key: expected[key] for key in COMPARED}, f"answered {reply}\nthe model says {expected}"


class RowRun:
    """The scene of one row."""

    def __init__(
        self,
        row: Row,
        directory: Path,
        files: SharedFiles,
        server: LogServer | None,
        counts: Counter[str],
        in_process: bool = True,
    ) -> None:
        """`server`: of the log, without streams. `in_process`: commands are carried out in this process, which is
        cheap; else in one that has the environment of the row, as an operator's has.
        """
        self.row, self._directory, self._files, self._counts = row, directory, files, counts
        self._server, self._in_process = server, in_process
        self.books = AccountModels(row, counts)
        secrets = parse_secrets(FIRST_SECRET) if row["secrets"] != "none" else ()
        listen = "::1" if row["endpoint"] == "v6" else "127.0.0.1"
        tls = files.endpoint_context() if row["endpoint"] == "https" else None
        self._cutoffs = Receiver(listen, 0, secrets=secrets, tls=tls)
        self._notices = self._cutoffs if row["notices"] == "beside" else Receiver(secrets=secrets)
        self._hosts: list[Host] = []
        self._all_doors: dict[str, Doors] = {}

    async def run(self) -> None:
        """All of it. AssertionError."""
        try:
            await self._prepare()
            await self._scene()
        finally:
            for doors in self._all_doors.values():
                doors.close()
            for host in self._hosts:
                await asyncio.to_thread(host.close)
            for receiver in {self._cutoffs, self._notices}:
                await receiver.close()

    def log_ends(self) -> str:
        """The ends of the logs, for who looks why it failed."""
        return "\n".join(f"-- {host.name}, {host.config}:\n{host.log_ends()}" for host in self._hosts)

    # -- the beginning ------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        for receiver in {self._cutoffs, self._notices}:
            await receiver.start()
        row, port = self.row, self._cutoffs.port
        hosts = {"v4": "127.0.0.1", "v6": "[::1]", "name": "localhost", "https": "127.0.0.1"}
        scheme = "https" if row["endpoint"] == "https" else "http"
        endpoints = Endpoints(f"{scheme}://{hosts[row['endpoint']]}:{port}", self._notices.url)
        names = ("a", "b") if row["log"] in ("standby", "at once") else ("a",)
        for name in names:
            folder = self._directory / name
            folder.mkdir()
            self._hosts.append(Host(row, name, folder, self._files, self._server, endpoints))
        if self._server is not None:
            settings = self._hosts[0].settings
            await asyncio.to_thread(self._server.clear)
            shape = settings["cluster.shards"], settings["shards.bucket_count"]
            await asyncio.to_thread(self._server.make_all, *shape)
        for host in self._hosts:
            self._all_doors[host.name] = doors_of(host)

    def _control(self, host: Host) -> Door:
        return self._all_doors[host.name].control

    async def _serves(self, host: Host, elsewhere: int = 0) -> None:
        """Returns once a host serves, and as many shards are elsewhere; where it is asked, it has told its manager."""

        async def ready() -> bool:
            self._assert_runs(host)
            host.new_messages()
            if not host.is_ready:
                return False
            rows = await self._control(host).ask("shards_info")
            return (
                {row["state"] for row in rows} <= {"serving", "elsewhere"}
                and [row["state"] for row in rows].count("elsewhere") == elsewhere
                and all(row["worker_pid"] for row in rows if row["state"] == "serving")
            )

        await until(ready, lambda: f"{host.name} does not serve: {host.status}")

    def _assert_runs(self, host: Host) -> None:
        """A host whose grant of time ran out, since the machine is busy, is started again, as a service is."""
        code = None if host.process is None else host.process.poll()
        if code == Exit.AGAIN and self.row["log"] != "files":
            host.launch()
            self._counts["started again"] += 1
        elif code is not None:
            raise AssertionError(f"{host.name} ended with {code}")

    async def _settled(self, killed: int = 0) -> Host:
        """Returns once every shard is served, by two hosts alike where both serve at once; one that serves. `killed`:
        the worker whose successor is waited for.
        """
        serving: list[Host] = []

        async def is_placed() -> bool:
            serving.clear()
            counts = []
            for host in (host_running for host_running in self._hosts if host_running.process is not None):
                self._assert_runs(host)
                try:
                    async with asyncio.timeout(SHORTLY_S):
                        rows = await self._control(host).ask("shards_info")
                except DOORS_LEFT:  # it serves nothing
                    counts.append(0)
                    continue
                own_pids = [row["worker_pid"] for row in rows if row["state"] == "serving"]
                if killed in own_pids or not {row["state"] for row in rows} <= {"serving", "elsewhere"}:
                    return False
                counts.append(len(own_pids))
                serving.extend([host] if own_pids else [])
            is_even = self.row["log"] != "at once" or max(counts) - min(counts) <= 1
            return sum(counts) == self._shards and is_even

        await until(is_placed, lambda: f"not every shard is served: {[host.name for host in serving]}")
        return serving[0]

    @property
    def _shards(self) -> int:
        return 2 if self.row["workers"] == "two" else 1

    async def _begin(self) -> list[Host]:
        """Starts what there is; the hosts that serve."""
        first, *others = self._hosts
        await asyncio.to_thread(first.launch)
        await self._serves(first)
        for other in others:
            await self._join(other, first)
        return self._hosts if self.row["log"] == "at once" and self._shards == 2 else [first]

    async def _join(self, other: Host, serving: Host) -> None:
        """Starts a host beside one that serves, and waits until it has its part: a shard of two, or to stand by."""
        await asyncio.to_thread(other.launch)
        if self.row["log"] == "at once" and self._shards == 2:
            await self._serves(other, elsewhere=1)
            await self._serves(serving, elsewhere=1)
            return
        if other.row["manager"] != "none" and self.row["log"] == "standby":
            messages: list[dict[str, str]] = []

            async def stands_by() -> bool:
                self._assert_runs(other)
                messages.extend(other.new_messages())
                return any("READY" in message for message in messages)

            await until(stands_by, lambda: f"{other.name} does not stand by: {messages}")
        admin = self._all_doors[other.name].admin
        if admin is not None and self.row["log"] == "standby":
            words = f"this host stands by: {serving.name} serves"

            async def says_so() -> bool:
                self._assert_runs(other)
                status, page = await asyncio.to_thread(fetch, admin, "/readyz", self._headers())
                return status == 503 and words in page.decode()

            await until(says_so, lambda: f"{other.name} does not say that it stands by")

    # -- the scene ----------------------------------------------------------------------------------------------------

    async def _scene(self) -> None:
        serving = await self._begin()
        host, control = serving[0], self._control(serving[0])
        for serving_host in serving:
            for door in self._all_doors[serving_host.name].clients:
                await self._account(door, f"kunde {door.name}/ü")
            await self._pages(serving_host)
            await self._direct(serving_host, f"kunde {control.name}/ü")
        await self._command_line(host)
        calls = (self.books.do(control, "burst", "top_up", amount=1, message="x" * 1000) for _ in range(BURST))
        await asyncio.gather(*calls)
        await self._runs_out(control, "spender/ü", "")
        if self.row["class"] != "none":
            await self._runs_out(control, "gold", "gold")
        await self._told_of(self.books.models)
        await self.books.verify(control)
        await self._reload(serving)

        owed = await self._owing(control)
        host = await self._kill_worker(host)
        await self._is_as_it_was(host, owed)
        host = await self._kill_all(host)
        await self._is_as_it_was(host, owed)
        await self._is_called(host, owed)
        await self._end(host)

    async def _account(self, door: Door, user: str) -> None:
        """An account is opened and charged, over one door."""
        books = self.books
        await books.do(door, user, "top_up", amount=100 * COIN)
        await books.do(door, user, "set_rate", rate=7 * COIN, resource="vm 1")
        await books.do(door, user, "change_rate", delta=-COIN, resource="vm 1")
        await books.do(door, user, "debit", amount=3 * COIN // 2)
        hold = await books.do(door, user, "hold", amount=2 * COIN)
        await books.do(door, user, "capture", hold_id=hold["hold_id"], amount=COIN // 2)
        reply = await answered(door, "get_account", user)
        _compare(reply, books.models[user].view(user, reply["at_ns"]))
        rows = await answered(door, "history", user)
        assert [row["operation"] for row in rows][::-1] == [
            *("top_up", "set_rate", "change_rate", "debit", "hold", "capture")
        ], rows
        _adds_up(await answered(door, "statement", user, 0, BEHIND))
        self._counts["doors"] += 1

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {ADMIN_TOKEN}"} if self.row["tokens"] == "file" else {}

    async def _pages(self, host: Host) -> None:
        """What operators and Prometheus look at."""
        admin = self._all_doors[host.name].admin
        if admin is None:
            return
        user = next(iter(self.books.models))
        words_of_pages = {
            "/livez": "alive",
            "/readyz": "ready",
            "/metrics": "billing_accounts",
            "/": "billing",
            f"/account?user={quote(user)}": "",
            "/runbook": "",
        }
        for path, words in words_of_pages.items():

            async def is_shown(path: str = path, words: str = words) -> bool:
                status, content = await asyncio.to_thread(fetch, admin, path, self._headers())
                return status == 200 and words in content.decode()

            await until(is_shown, why_of(f"{path} of {host.name} does not say {words!r}"))
            self._counts["pages"] += 1

    async def _direct(self, host: Host, user: str) -> None:
        """Each worker's own port answers, where workers have one; `route` names it."""
        route = await self._control(host).ask("route")
        addresses = [row["address"] for row in route["shards"]]
        if self.row["direct"] == "no" or self.row["rpc"] == "none":
            assert addresses == [None] * self._shards, addresses
            return
        token = ADMIN_TOKEN if self.row["tokens"] == "file" else ""
        tls = self._files.client_context() if self.row["tls"] != "none" else None
        for address in addresses:
            assert address, route
            door = RpcDoor("direct", token, server_of(address, tls))
            reply = await answered(door, "get_account", user)
            _compare(reply, self.books.models[user].view(user, reply["at_ns"]))
            door.close()
            self._counts["direct ports"] += 1

    # -- commands -----------------------------------------------------------------------------------------------------

    async def _billing(self, host: Host, *words: str, fails: bool = False) -> str:
        """What a command with this host's configuration prints."""
        environment = {name: text for name, text in host.environment.items() if name != "LISTEN_FDNAMES"}
        if self.row["tokens"] == "file":
            environment["BILLING_TOKEN"] = ADMIN_TOKEN
        if self.row["tls"] != "none":
            environment["BILLING_TLS_CA"] = str(self._files.ca)
        if self.row["tls"] == "clients":
            environment["BILLING_TLS_CERT"] = str(self._files.directory / "client.pem")
        line = (*words, "--config", str(host.config))
        if self._in_process:
            result = await asyncio.to_thread(carried_out, *line, **environment)
            code, output, error_text = result.returncode, result.stdout, result.stderr
        else:
            isolated = ["-I"] if self.row["isolated"] == "yes" else []
            inherited = {name: text for name, text in os.environ.items() if not name.startswith(("LC_", "LANG"))}
            process = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, *isolated, "-m", "billing", *line],
                env=inherited | environment, capture_output=True, check=False, timeout=WAIT_S,
            )  # fmt: skip
            code, output, error_text = process.returncode, process.stdout.decode(), process.stderr.decode()
        assert (code != 0) is fails, f"billing {' '.join(words)} ended with {code}: {output}{error_text}"
        self._counts["commands"] += 1
        return output + error_text if fails else output

    async def _command_line(self, host: Host) -> None:
        """The same as over the doors, in coins."""
        if host.row["log"] == "at once" and self._shards == 1:
            return  # it calls the one that serves as well
        user = "kunde/cli"
        ops: list[tuple[tuple[str, ...], Op]] = [
            (("top-up", user, "7.5"), {"method": "top_up", "amount": 15 * COIN // 2}),
            (("debit", user, "0.25"), {"method": "debit", "amount": COIN // 4}),
        ]
        for number, (words, op) in enumerate(ops):
            request_id = f"cli-{number}"
            reply = json.loads(await self._billing(host, *words, "--request-id", request_id, "--json"))
            self.books.check_reply(user, reply, {**op, "user": user, "request_id": request_id})
        reply = json.loads(await self._billing(host, "account", user, "--json"))
        _compare(reply, self.books.models[user].view(user, reply["at_ns"]))
        assert "7.25" in await self._billing(host, "account", user)
        assert len(json.loads(await self._billing(host, "history", user, "--json"))) == 2
        if self._hosts[1:] and self.row["log"] == "at once":
            return
        assert "0 faults" in (output := await self._billing(host, "doctor", "--online")) or "no faults" in output, (
            output
        )

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _runs_out(self, control: Door, user: str, class_name: str) -> None:
        """A balance runs out, is called for, and is restored by a top-up."""
        books, row = self.books, self.row
        await books.do(control, user, "top_up", amount=COIN // 4)
        if class_name:
            await books.do(control, user, "set_class", **{"class": class_name})
        reply = await books.do(control, user, "set_rate", rate=3600 * COIN)
        due_ns = reply["exhausts_at_ns"]
        is_own = class_name and row["class"] == "own"
        call = await self._called(user, due_ns, "/gold/off" if is_own else self._path("/off", user))
        grace_ns = GRACE_NS if class_name else 0
        assert call.arrived_ns >= due_ns + grace_ns - EARLY_NS, f"called before its instant: {call}"
        restored = await books.do(control, user, "top_up", amount=50 * COIN)
        assert restored["restored"] is True, restored
        if is_own or row["restore"] == "set":
            await self._called(user, due_ns, "/gold/on" if is_own else self._path("/on", user))
            self._counts["restores"] += 1
        await books.do(control, user, "set_rate", rate=0)
        self._counts["cutoffs"] += 1

    def _path(self, path: str, user: str) -> str:
        return f"{path}/of/{quote(user, safe='')}" if self.row["place of the user"] == "named" else path

    async def _called(self, user: str, due_ns: int, path: str, event_id: str = "") -> Call:
        """Returns once the endpoint has accepted the call of this user, instant and path (and event)."""
        calls: list[Call] = []

        async def has_come() -> bool:
            calls[:] = [
                call
                for call in self._cutoffs.calls
                if (call.user_id, call.exhausted_at_ns, call.path, call.answered) == (user, due_ns, path, "200")
                and event_id in ("", call.event_id)
            ]
            return bool(calls)

        await until(has_come, lambda: f"no call for {user} at {path}: {self._cutoffs.calls[-5:]}")
        assert calls[0].method == self.row["method"], calls[0]
        return calls[0]

    async def _told_of(self, users: Any) -> None:
        """Returns once somebody was told of the first top-up of each of these."""
        if self.row["notices"] == "none":
            return

        async def all_came() -> bool:
            users_told = {
                call.user_id
                for call in self._notices.calls
                if (call.path, call.method, call.answered) == ("/told", "POST", "200")
                and call.event_id.endswith(":account-topped_up")
            }
            return set(users) <= users_told

        await until(all_came, lambda: f"notices are missing: {self._notices.calls[-5:]}")
        self._counts["notices"] += len(users)

    # -- reload -------------------------------------------------------------------------------------------------------

    async def _reload(self, serving: list[Host]) -> None:
        """Other certificates, tokens and secrets, while it serves."""
        row = self.row
        for host in self._hosts:
            host.new_messages()
            if row["tokens"] == "file":
                host.install_tokens(LATE_TOKEN)
            if row["tls"] != "none":
                host.install_certificate(1)
            if row["secrets"] != "none":
                host.install_secrets(NEXT_SECRET)
            host.reload()
        for host in serving:
            if row["manager"] != "none":
                await self._reloaded(host)
            doors = self._all_doors[host.name]
            for door in doors.clients if row["tokens"] == "file" else ():
                await agreed(partial(self._takes_late_token, door), f"{door.name} does not take a new token")
            for name, server in doors.encrypted.items():

                async def is_shown(server: Any = server) -> bool:
                    return bool(await asyncio.to_thread(server.issuer) == "next")

                await agreed(is_shown, f"{host.name} {name} shows its former certificate")
            doors.close()
        if row["secrets"] != "none":
            self._cutoffs.secrets = self._notices.secrets = parse_secrets(NEXT_SECRET)
        await self._runs_out(self._control(serving[0]), "later", "")
        await self._told_of(["later"])
        self._counts["reloads"] += 1

    @staticmethod
    async def _reloaded(host: Host) -> None:
        messages: list[dict[str, str]] = []

        async def is_over() -> bool:
            messages.extend(host.new_messages())
            reload_indexes = [index for index, message in enumerate(messages) if "RELOADING" in message]
            return bool(reload_indexes) and any("READY" in message for message in messages[reload_indexes[0] :])

        await until(is_over, lambda: f"{host.name} does not say that it has reloaded: {messages}")

    @staticmethod
    async def _takes_late_token(door: Door) -> bool:
        try:
            return bool(await door.ask("ping", token=LATE_TOKEN) == "pong")
        except Refused:
            return False

    # -- kills --------------------------------------------------------------------------------------------------------

    async def _owing(self, control: Door) -> dict[str, Any]:
        """The row of a call that is owed, since its endpoint refuses from now on."""
        self._cutoffs.fault = Fault("status", 503)
        await self.books.do(control, "owing", "top_up", amount=COIN)
        await self.books.do(control, "owing", "debit", amount=COIN)
        owed_row: dict[str, Any] = {}

        async def was_tried() -> bool:
            owed_row.update(await self._owed(control) or {})
            return bool(owed_row.get("attempts"))

        await until(was_tried, lambda: f"nothing is owed: {owed_row}")
        return owed_row

    async def _owed(self, control: Door) -> dict[str, Any] | None:
        rows = await answered(control, "pending_cutoffs")
        return next((row for row in rows if row["user_id"] == "owing"), None)

    async def _is_as_it_was(self, host: Host, owed: dict[str, Any]) -> None:
        """Balances, histories, and what is owed."""
        control = self._control(host)
        await self.books.verify(control)
        row = await self._owed(control)
        columns = ("user_id", "event_id", "seq", "exhausted_at_ns")
        assert row is not None, "the call is owed no more"
        assert [row[name] for name in columns] == [owed[name] for name in columns], (row, owed)

    async def _kill_worker(self, host: Host) -> Host:
        """kill −9 of one; a host that serves then."""
        rows = await answered(self._control(host), "shards_info")
        killed = next(row["worker_pid"] for row in rows if row["state"] == "serving")
        host.kill(killed)
        self._all_doors[host.name].close()
        self._counts["workers killed"] += 1
        return await self._settled(killed)

    async def _kill_all(self, first: Host) -> Host:
        """kill −9 of a host that serves; one that serves afterwards, when all run again."""
        self._all_doors[first.name].close()
        await asyncio.to_thread(first.kill_all)
        self._counts["hosts killed"] += 1
        if len(self._hosts) == 1:
            await asyncio.to_thread(first.launch)
            await self._serves(first)
            return first
        second = next(host for host in self._hosts if host is not first)
        assert await self._settled() is second
        self._counts["takeovers"] += 1
        await self.books.verify(self._control(second))
        await self._join(first, second)
        return await self._settled()

    async def _is_called(self, host: Host, owed: dict[str, Any]) -> None:
        """What was owed comes under its first name, where it is held once it is released."""
        control = self._control(host)
        self._cutoffs.fault = None
        if self.row["hold"] == "any":

            async def is_released() -> bool:
                return bool((await control.ask("release_cutoffs"))["released"])

            await until(is_released, lambda: "nothing was held")
        path = self._path("/off", "owing")
        await self._called("owing", owed["exhausted_at_ns"], path, owed["event_id"])

        async def is_settled() -> bool:
            return await self._owed(control) is None

        await until(is_settled, lambda: "the call is owed after its 2xx")

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _end(self, serving: Host) -> None:
        """A clean stop, and the proof of what is stored. `serving`: has served last; the start of another host may not
        be over yet, which then has neither a start nor a stop on its record.
        """
        for host in self._hosts:
            self._all_doors[host.name].close()
            code = await asyncio.to_thread(host.stop)
            assert code == 0, f"{host.name} ended with {code}"
        host = self._hosts[-1]
        assert "no faults" in (output := await self._billing(host, "doctor")), output
        dumped = [json.loads(line) for line in (await self._billing(host, *self._dump())).splitlines()]
        assert any("entry" in json.dumps(row) for row in dumped), dumped[:3]
        acts = {
            host.name: [row["act"] for row in json.loads(await self._billing(host, "audit", "--json"))]
            for host in self._hosts
        }
        assert {"start", "stop"} <= set(acts[serving.name]), acts
        assert all("reload" in acts_of_host for acts_of_host in acts.values()), acts
        for started_host in self._hosts:
            self._look_at_log(started_host)

    def _dump(self) -> tuple[str, ...]:
        return "journal", "dump", "--shard", str(self._shards), "--json"

    def _look_at_log(self, host: Host) -> None:
        text = host.log.read_text(errors="strict")
        for trace in TRACES:
            assert trace not in text, f"the log has {trace!r}:\n{text}"
        if self.row["format"] == "json" and self.row["descriptors"] == "open":
            for line in text.splitlines():
                assert isinstance(json.loads(line), dict), line
        if self.row["users"] != "shown":
            assert "kunde" not in text, text
            assert "spender" not in text, text


async def until(holds: Callable[[], Awaitable[bool]], reason: Callable[[], str]) -> None:
    """Returns when it holds; doors that do not answer yet are asked again."""
    deadline, last = time.monotonic() + WAIT_S, ""
    while True:
        try:
            if await holds():
                return
        except DOORS_LEFT as error:
            last = repr(error)
        except Refused as error:
            if not str(error).startswith(("UNAVAILABLE", "BUSY")):
                raise
            last = str(error)
        assert time.monotonic() < deadline, f"{reason()} {last}"
        await asyncio.sleep(POLL_S)


async def answered(door: Door, method: str, *params: Any) -> Any:
    """The result of one call; what says that it was not carried out, since a shard is on its way, is asked again."""
    reply_found: list[Any] = []

    async def is_answered() -> bool:
        reply_found.append(await door.ask(method, *params))
        return True

    await until(is_answered, why_of(f"{door.name} does not answer {method}"))
    return reply_found[0]


def why_of(text: str) -> Callable[[], str]:
    """The text, for `until`."""
    return lambda: text


async def agreed(holds: Callable[[], Awaitable[bool]], reason: str) -> None:
    """Returns when it has held several times in a row: each time another worker may have been asked."""
    times = 0

    async def often() -> bool:
        nonlocal times
        times = times + 1 if await holds() else 0
        return times == AGREED

    await until(often, why_of(reason))


def refused(directory: Path, files: SharedFiles) -> int:
    """Each combination that cannot be is refused with its sentence; how many. AssertionError."""
    endpoints = Endpoints("http://127.0.0.1:9", "http://127.0.0.1:9")
    server = LogServer(directory / "server", "plain", files) if BINARY is not None else None
    count = 0
    for number, (row, rule) in enumerate(refused_rows()):
        if row["log"] != "files" and server is None:
            continue
        folder = directory / f"refused-{number}"
        folder.mkdir()
        host = Host(row, "a", folder, files, server, endpoints)
        try:
            load(host.config, host.environment)
        except ConfigError as error:
            faults = [(fault.path, fault.expected.startswith(rule.sentence)) for fault in error.faults]
        else:
            raise AssertionError(f"{rule.sentence} is not said of {row}")
        assert faults == [(rule.path, True)], (rule, row)
        count += 1
    return count


def refused_for_real(directory: Path, files: SharedFiles) -> None:
    """One of them, by the daemon itself: 78, and the sentence on standard error."""
    row, rule = next(row_and_rule for row_and_rule in refused_rows() if row_and_rule[0]["log"] == "files")
    host = Host(row, "a", directory, files, None, Endpoints("http://127.0.0.1:9", "http://127.0.0.1:9"))
    try:
        assert host.launch().wait(WAIT_S) == 78
        assert f"{rule.path} (file): {rule.sentence}" in host.log_ends(), host.log_ends()
    finally:
        host.close()


class Campaign:
    """Rows one after the other, with what they share."""

    def __init__(self, directory: Path, in_process: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.directory = directory
        (directory / "files").mkdir()
        self.files = SharedFiles.make(directory / "files")
        self._servers: dict[str, LogServer] = {}
        self._in_process = in_process

    def close(self) -> None:
        """Ends the servers of logs."""
        for server in self._servers.values():
            server.close()

    def _server(self, kind: str) -> LogServer | None:
        if kind == "none":
            return None
        if kind not in self._servers:
            self._servers[kind] = LogServer(self.directory / f"servers-{kind}", kind, self.files)
            self._servers[kind].start()
        return self._servers[kind]

    def play(self, number: int, row: Row) -> str:
        """One row; why it does not hold, empty where it does."""
        with tempfile.TemporaryDirectory(dir=self.directory, ignore_cleanup_errors=True) as name:
            server = self._server(row["servers"])
            play: RowRun | None = None

            async def scene() -> None:
                nonlocal play
                play = RowRun(row, Path(name), self.files, server, self.counts, self._in_process)
                await play.run()

            try:
                _run(scene())
            except Exception:
                words = play.log_ends() if play is not None else ""
                levels = ", ".join(f"{factor}: {level}" for factor, level in row.items())
                return f"row {number} does not hold: {levels}\n{traceback.format_exc()}\n{words}"
        self.counts["rows"] += 1
        return ""


def _run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="K/N: every N-th row, beginning with the K-th")
    parser.add_argument("--rows", type=int, nargs="*", help="these alone")
    parser.add_argument("--list", action="store_true", help="the rows, and what is refused")
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk")
    arguments = parser.parse_args()
    if BINARY is None:
        print(MISSING, file=sys.stderr)
        return 2
    alone()
    if not has_network():
        print(f"nothing listens beyond loopback: {why_no_network()}", file=sys.stderr)
    covering = rows_of(has_network())
    if arguments.list:
        for number, row in enumerate(covering.rows):
            print(number, ", ".join(f"{factor}: {level}" for factor, level in row.items()))
        print(f"{covering.covered} pairs; none of these is a row:", *covering.impossible, sep="\n")
        return 0
    part, parts = map(int, arguments.part.split("/"))
    chosen = arguments.rows if arguments.rows is not None else range(part - 1, len(covering.rows), parts)
    failed = 0
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="pairs-", ignore_cleanup_errors=True) as name:
        campaign = Campaign(Path(name), in_process=False)
        try:
            for number in chosen:
                began_s = time.monotonic()
                failure = campaign.play(number, covering.rows[number])
                failed += bool(failure)
                print(
                    f"row {number}: {'FAILED' if failure else 'held'}, {time.monotonic() - began_s:.1f} s",
                    file=sys.stderr,
                )
                print(failure, file=sys.stderr, end="", flush=True)
            (Path(name) / "refused").mkdir()
            campaign.counts["refused"] = refused(Path(name) / "refused", campaign.files)
            (Path(name) / "real").mkdir()
            refused_for_real(Path(name) / "real", campaign.files)
        finally:
            campaign.close()
    if failed:
        return 1
    print(json.dumps({"factors": len(FACTORS), "pairs": covering.covered, **campaign.counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
