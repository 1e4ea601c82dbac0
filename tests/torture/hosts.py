"""Two or three hosts over one log on three nats-servers, under load: a host that serves is struck again and again.

    python -m tests.torture.hosts --cycles 20 --seed 1
    python -m tests.torture.hosts --cycles 250 --faults kill kill kill kill term --accounts 80000
    python -m tests.torture.hosts --cycles 20 --at-once

The faults, drawn at random of those named (all by default):

    kill      kill −9 of all processes of the host that serves
    stop      SIGSTOP of all of them for 1 to 15 s; whoever slept longer than its grant ends with 75
    term      SIGTERM, as for a restart that was planned
    cut       the host that serves reaches no server of the log for 3 to 15 s, while clients reach it: its time stops at
              its grant, /readyz says 503, and it refuses commands and reads
    server    kill −9 of a nats-server, which is started again
    freeze    SIGSTOP of a nats-server for 1 to 5 s
    wipe      a host that stands by is killed, and comes back with an empty data directory
    two       of three hosts two are killed at once, the one that serves being one of them
    apart     with `--at-once`: no host reaches another one's links for 3 to 15 s, while all reach the log: each door
              answers for the shards of its own host, refuses the others with `applied: "no"`, and nobody takes a shard
    unreached for 3 to 15 s requests of clients do not reach the host that serves, or its answers do not reach them, so
              that what they ask for is done, and asked for again: it serves on, and nobody takes over from it
    move      with `--at-once`: buckets move to other shards, and so to other hosts; in every second one a host that
              serves is killed meanwhile. What a move that was broken off comes to is the same for all of them

The second command measures how long a failover and a planned hand-over take. Without `--at-once` one host serves
everything and the others stand by. With it each host serves some of the shards (`cluster.listen`; four of them, or
`--shards`): a struck host's shards go to the others, which is waited for until a user of every shard was answered
there; one that slept or was cut off goes on without them, and after each fault every host is waited for until it has
its part again: each shard is served by one host by the word of all of them.

`cut`, `apart` and `unreached` need a network namespace, where each host reaches the servers, and is reached by the
links of others and by clients, at addresses of its own, which a blackhole route takes away: as root, the program starts
itself anew in one. There each host also has a boot id of its own, as another machine would, and wall clocks differ by
up to four tenths of a second: one is 0.2 s behind, one as much ahead, a third one right. Without root there is one boot
id and one clock, these three are left out, and the program says so.

Clients and what is held against the daemon stand in `callers`. At the end every stream is read raw: epochs rise, and no
instant is stamped in two of them. Prints what it counted, and how long clients waited, as JSON; exit code 1 with the
reason where anything does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from billing.trial.receiver import Receiver
from shards.buckets import bucket_id_of
from shards.journal.jetstream import record
from shards.journal.jetstream.streams import Stream
from shards.supervisor.unserved import LAPSED
from shards.system.clock import MACHINE_CLOCKS
from tests.shards.journal.nats_cluster import BINARY, MISSING, NatsCluster
from tests.system.clock_step import ClockStep
from tests.system.daemon import Daemon
from tests.system.ports import free_port
from tests.system.rpc import ConnectionLost
from tests.torture.callers import PAUSE_S, Caller, ClientRoute, Prober, settle
from tests.torture.callers import Hosts as Doors
from tests.torture.volume import BOOT_ID

SHARDS, SHARDS_AT_ONCE = 2, 4
BUCKETS, MOVES = 32, 4
CALLERS, USERS_EACH, SPENDERS = 4, 3, 3
CLOCKS_S = (-0.2, 0.2, 0.0)  # of the hosts, ahead of the receiver's
ERROR_MS_MAX = 500  # two of them differ by more than the default allows
WAIT_S = 120.0
POLL_S, SELDOM_S = 0.02, 0.1  # the latter where every look costs all hosts something
PROBE_S = 0.01  # it measures how long a failover takes; at once, callers do
CALM_S = (1.0, 2.5)  # between two faults: load, and workers that stand by are loaded
LOADED_IN_FLIGHT = 256
SNAPSHOT_BYTES = 4 << 20
INSIDE = "TORTURE_NETWORK_NAMESPACE"
TAKES_OVER = ("kill", "stop", "term", "cut", "two")
FAULTS: Final = (*TAKES_OVER, "server", "freeze", "wipe", "apart", "unreached", "move")
AT_ONCE: Final = ("apart", "move")  # faults of hosts that serve at once
PARTITIONS: Final = ("cut", "apart", "unreached")


def has_network() -> bool:
    """Whether this process has a network of its own, whose routes it may take away."""
    return bool(os.environ.get(INSIDE))


def why_no_network() -> str:
    """Why there can be none; empty where there can."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    for tool in ("unshare", "ip", "mount", "cc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    result = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return result.stderr.strip()


def alone() -> None:
    """Goes on in a network namespace of its own: starts this program anew there, unless it runs in one."""
    if has_network() or why_no_network():
        return
    script = 'ip link set lo up && exec "$@"'
    command = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.orig_argv[1:]]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


class Host:
    """One of them."""

    def __init__(self, servers: NatsCluster, directory: Path, number: int, cutoff_url: str, size: Size) -> None:
        directory.mkdir()
        shards, at_once = size.shards, size.at_once
        self.name = f"host-{number}"
        self.address = f"127.0.1.{number}"  # at which it reaches the servers
        self.links = f"127.0.2.{number}" if has_network() else "127.0.0.1"  # at which others reach it
        self.route = (
            ClientRoute(free_port(), f"127.0.3.{number}", f"127.0.4.{number}")
            if has_network()
            else ClientRoute(free_port())
        )
        keys: dict[str, object] = {
            "rpc.listen": f"{self.route.host}:{self.route.port}",
            "journal.kind": "jetstream",
            "cluster.servers": servers.urls_at(self.address) if has_network() else servers.urls,
            "cluster.node": self.name,
            "cluster.shards": shards,
            "cluster.listen": f"{self.links}:0" if at_once else "",
            "clock.error_ms_max": ERROR_MS_MAX,
            "shards.workers": shards,
            "shards.bucket_count": BUCKETS,
            "cutoff.url": cutoff_url,
            "journal.snapshot_bytes": SNAPSHOT_BYTES,
            "ledger.request_ids_per_bucket": 1_000_000,
        }
        self.daemon = Daemon(directory, **keys)
        if has_network():
            self._be_another_machine(directory, CLOCKS_S[number - 1])
        self.prober = Prober(self.route, f"probe_{number}", SELDOM_S if at_once or size.brief else PROBE_S)
        self.is_reached = True  # the log, by this host

    def _be_another_machine(self, directory: Path, clock_s: float) -> None:
        clock, boot_id = ClockStep(directory), directory / "boot_id"
        clock.to(clock_s)
        boot_id.write_text(f"{uuid.uuid4()}\n")
        self.daemon.environment = clock.environment
        script = f'mount --bind {boot_id} {BOOT_ID} && exec "$@"'
        self.daemon.prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]

    def page(self) -> tuple[int, str]:
        """Status and text of /readyz; (0, "") where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.daemon.admin_port}/readyz", timeout=1) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def cut(self, is_cut: bool) -> None:
        """Takes the way to the log, or gives it back."""
        _blackhole(self.address, is_cut)

    def part(self, is_apart: bool) -> None:
        """Takes the way by which others reach it, or gives it back."""
        _blackhole(self.links, is_apart)

    def hide(self, direction: str, is_hidden: bool) -> None:
        """Takes one direction of its way to clients, or gives it back: of "requests", or of "answers"."""
        _blackhole(self.route.host if direction == "requests" else self.route.source, is_hidden)


def _blackhole(address: str, is_cut: bool) -> None:
    verb = "add" if is_cut else "del"
    subprocess.run(["ip", "route", verb, "blackhole", f"{address}/32", "table", "local"], check=True)


async def shards_of(host: Host) -> dict[int, tuple[str, str]]:
    """State and reason of each shard, as a host says them; empty where it does not."""
    with suppress(ConnectionLost, OSError, TimeoutError):
        async with asyncio.timeout(5):
            rpc = await host.route.connect()
            try:
                error, rows = await rpc.call("shards_info")
            finally:
                rpc.close()
        if error is None:
            return {row["shard_id"]: (row["state"], row["reason"]) for row in rows}
    return {}


def each_has_its_part(shards_by_host: list[dict[int, tuple[str, str]]]) -> bool:
    """Whether each shard is served by one host by the word of all of them, and each host serves some. A host that has
    slept, and has not noticed yet that others have its shards, says `serving`, as they do.
    """
    served = [[shard for shard, (state, _) in shards.items() if state == "serving"] for shards in shards_by_host]
    all_served = sorted(shard for of_host in served for shard in of_host)
    return all(served) and all(all_served == sorted(shards) for shards in shards_by_host)


class Campaign:
    """See the module."""

    def __init__(self, directory: Path, seed: int, size: Size) -> None:
        assert BINARY is not None, MISSING
        self._size = size
        self._at_once = size.at_once
        self._probed: list[str] = []  # a user of each shard, where hosts serve at once
        self.rng = random.Random(seed)
        (directory / "servers").mkdir()
        self.servers = NatsCluster(directory / "servers", listen="0.0.0.0" if has_network() else "127.0.0.1")
        self.receiver = Receiver("127.0.0.1", 0)
        self._directory = directory
        self._seed = seed
        self.hosts: list[Host] = []
        self.callers: list[Caller] = []
        self.counts: Counter[str] = Counter()
        self.waits: dict[str, list[float]] = {}  # fault -> seconds that clients waited
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._spent = 0

    # -- the beginning and the end ----------------------------------------------------------------------------------

    async def begin(self, accounts: int, hosts: int) -> None:
        """So many hosts, one of which serves, and clients."""
        await asyncio.to_thread(self.servers.start)
        await self.receiver.start()
        self.hosts = [
            Host(self.servers, self._directory / f"host-{number}", number, f"{self.receiver.url}/off", self._size)
            for number in range(1, hosts + 1)
        ]
        first, route = self.hosts[0].daemon, self.hosts[0].route
        await asyncio.to_thread(self.servers.make_all, self._size.shards, BUCKETS)
        await asyncio.to_thread(first.start, WAIT_S)
        for host in self.hosts[1:]:
            host.daemon.launch()
        if accounts:
            await _fill(route, accounts)
        self._probed = await _user_of_each_shard(route) if self._at_once else []
        routes = [host.route for host in self.hosts]
        names = [f"user_{number}" for number in range(self._size.callers + 1)]  # the last one spends
        pause_s = SELDOM_S if self._size.brief else PAUSE_S
        self.callers = [Caller(name, routes, f"{self._seed}:{name}", pause_s) for name in names]
        walks = [caller.walk(self._stop, USERS_EACH) for caller in self.callers[:-1]]
        self._tasks = [asyncio.create_task(run) for run in (*walks, *(host.prober.run() for host in self.hosts))]

    async def prove(self) -> None:
        """Everything that was answered and called is right, and so are the raw streams."""
        self._stop.set()
        await asyncio.gather(*self._tasks[: self._size.callers])
        self.counts.update(await settle(self.callers, lambda: self.receiver.calls))
        for caller in self.callers:
            self.counts["history rows"] += await caller.check_history()
            self.counts["answered"] += sum(map(len, caller.answered.values()))
            self.counts["read"] += caller.reads
            self.counts["asked in vain"] += caller.hosts.unanswered
        for shard in range(1, self._size.shards + 1):
            self.counts["epochs"] += await asyncio.to_thread(check_grants, self.servers, shard)
        for host in self.hosts:
            if host.daemon.process is not None:
                assert await asyncio.to_thread(host.daemon.stop) == 0, host.daemon.log.read_text()[-4000:]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for caller in self.callers:
            caller.hosts.close()
        for host in self.hosts:
            if host.daemon.process is not None:
                host.daemon.signal(signal.SIGCONT)
                host.daemon.kill()
        await self.receiver.close()
        self.servers.close()

    # -- a fault ----------------------------------------------------------------------------------------------------

    async def strike(self, fault: str) -> None:
        """One of them, under load, until all hosts are there again."""
        serving = await self.serving()
        spent = [f"spender_{self._spent + number}" for number in range(SPENDERS)]
        self._spent += SPENDERS
        spending = asyncio.create_task(self.callers[-1].spend(spent))
        await asyncio.sleep(self.rng.uniform(*CALM_S))
        strikes: dict[str, Callable[[Host], Coroutine[Any, Any, None]]] = {
            "kill": self._kill, "stop": self._stop_and_go, "term": self._term, "cut": self._cut,
            "server": self._server, "freeze": self._freeze, "wipe": self._wipe, "two": self._two,
            "apart": self._apart, "unreached": self._unreached, "move": self._move,
        }  # fmt: skip
        await strikes[fault](serving)
        self.counts[fault] += 1
        await self.all_there()
        if fault == "move":
            self._probed = await self._after_moves()
        await spending
        for task in self._tasks:
            if task.done():
                task.result()

    async def serving(self) -> Host:
        """The host that serves, once there is one; one of those that do."""
        deadline = time.monotonic() + WAIT_S
        while True:
            for host in self.rng.sample(self.hosts, len(self.hosts)):
                if (await asyncio.to_thread(host.page))[0] == 200:
                    return host
            assert time.monotonic() < deadline, f"nobody serves: {self._said()}"
            await asyncio.sleep(POLL_S)

    async def all_there(self) -> None:
        """Returns once one host serves and the others stand by; or where they serve at once, once each has its part."""
        deadline = time.monotonic() + WAIT_S
        while True:
            for host in self.hosts:
                if host.daemon.process is None or host.daemon.process.poll() is not None:
                    if host.daemon.process is not None:
                        code = host.daemon.process.returncode
                        self.counts[f"ended with {code}"] += 1
                        assert code in (0, 75), f"{host.name} ended with {code}:\n{host.daemon.log.read_text()[-4000:]}"
                    host.daemon.launch()
            pages = [await asyncio.to_thread(host.page) for host in self.hosts]
            standing_by = sum("stands by" in page[1] for page in pages)
            serving = sum(page[0] == 200 for page in pages)
            if (serving, standing_by) == ((len(self.hosts), 0) if self._at_once else (1, len(self.hosts) - 1)) and (
                not self._at_once or each_has_its_part([await shards_of(host) for host in self.hosts])
            ):
                return
            assert time.monotonic() < deadline, f"{pages}\n{self._said()}"
            await asyncio.sleep(SELDOM_S)

    def _said(self) -> str:
        return "\n".join(f"{host.name}: {host.daemon.log.read_text()[-3000:]}" for host in self.hosts)

    async def _next_serves(self, fault: str, struck: list[Host], since_s: float) -> None:
        """Notes how long it took until a host that was not struck answered a change; or where several serve at once,
        until they had answered one in every shard.
        """
        others = [host for host in self.hosts if host not in struck]
        if self._at_once:
            doors = Doors([host.route for host in others], self.rng)
            try:
                async with asyncio.timeout(WAIT_S):
                    for user in self._probed:
                        await doors.call("top_up", user, 1)
            except TimeoutError:
                raise AssertionError(f"some shard has no host:\n{self._said()}") from None
            doors.close()
            self.waits.setdefault(fault, []).append(time.monotonic() - since_s)
            return
        deadline = time.monotonic() + WAIT_S
        while True:
            first = [first_ns for host in others if (first_ns := host.prober.first_after(since_s)) is not None]
            if first:
                self.waits.setdefault(fault, []).append(min(first) - since_s)
                return
            assert time.monotonic() < deadline, f"nobody took over:\n{self._said()}"
            await asyncio.sleep(POLL_S)

    async def _kill(self, serving: Host) -> None:
        since_s = time.monotonic()
        await asyncio.to_thread(serving.daemon.kill)
        await self._next_serves("kill", [serving], since_s)

    def _for_s(self, least: float) -> float:
        """How long a host sleeps or is cut off, where it is not until another one has taken over."""
        return least if self._size.brief else self.rng.uniform(least, 15)

    async def _two(self, serving: Host) -> None:
        struck = [serving, self.rng.choice([host for host in self.hosts if host is not serving])]
        since_s = time.monotonic()
        for host in struck:
            await asyncio.to_thread(host.daemon.kill)
        await self._next_serves("two", struck, since_s)

    async def _stop_and_go(self, serving: Host) -> None:
        for_s, since_s = self._for_s(1), time.monotonic()
        if self._at_once:
            await self._sleep_and_go_on(serving, for_s)
            return
        serving.daemon.signal(signal.SIGSTOP)
        if self._size.brief:
            await self._next_serves("stop", [serving], since_s)
        await asyncio.sleep(max(0.0, since_s + for_s - time.monotonic()))
        overtaken = any(host.prober.first_after(since_s) for host in self.hosts if host is not serving)
        serving.daemon.signal(signal.SIGCONT)
        assert overtaken or for_s < 10, "nobody took over from a host that slept"
        if overtaken:
            if not self._size.brief:
                await self._next_serves("stop", [serving], since_s)
            assert serving.daemon.process is not None
            code = await asyncio.to_thread(serving.daemon.process.wait, WAIT_S)
            assert code == 75, f"it woke up, and ended with {code}"

    async def _sleep_and_go_on(self, serving: Host, for_s: float) -> None:
        """A host that sleeps loses its shards, and goes on without them once it wakes up."""
        since_s = time.monotonic()
        serving.daemon.signal(signal.SIGSTOP)
        try:
            if for_s > 5 or self._size.brief:
                await self._next_serves("stop", [serving], since_s)
            await asyncio.sleep(max(0.0, since_s + for_s - time.monotonic()))
        finally:
            serving.daemon.signal(signal.SIGCONT)

    async def _term(self, serving: Host) -> None:
        process = serving.daemon.process
        assert process is not None
        since_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await self._next_serves("term", [serving], since_s)
        assert await asyncio.to_thread(process.wait, WAIT_S) == 0
        if self._at_once:
            return
        gap = min(
            first_ns
            for host in self.hosts
            if host is not serving and (first_ns := host.prober.first_after(since_s)) is not None
        )
        self.waits.setdefault("between two answers, term", []).append(gap - serving.prober.last())

    async def _cut(self, serving: Host) -> None:
        assert has_network()
        for_s, since_s = self._for_s(3), time.monotonic()
        serving.cut(True)
        try:
            await self._next_serves("cut", [serving], since_s)
            last = serving.prober.last()
            assert last - since_s < 3 or self._at_once, "it answered a change beyond its grant"
            deadline = time.monotonic() + WAIT_S
            while (await asyncio.to_thread(serving.page))[0] == 200:
                assert time.monotonic() < deadline, "/readyz of a host whose grant has run out"
                await asyncio.sleep(POLL_S)
            if not self._at_once:  # else what another host answers comes through this door, too
                await self._read_is_refused(serving)
            await asyncio.sleep(max(0.0, since_s + for_s - time.monotonic()))
        finally:
            serving.cut(False)
        assert serving.daemon.process is not None
        if not self._at_once:
            assert await asyncio.to_thread(serving.daemon.process.wait, WAIT_S) == 75

    async def _read_is_refused(self, serving: Host) -> None:
        """Of a host whose grant has run out."""
        with suppress(OSError):
            rpc = await serving.route.connect()
            with suppress(TimeoutError):
                error, _ = await asyncio.wait_for(rpc.call("get_account", serving.prober._user), 1)
                assert error is not None, "it answered a read beyond its grant"
                assert error.startswith("UNAVAILABLE"), error
                self.counts["read refused by a host that was cut off"] += 1
            rpc.close()

    async def _apart(self, _: Host) -> None:
        assert has_network()
        for_s, since_s = self._for_s(3), time.monotonic()
        shards_before = [await shards_of(host) for host in self.hosts]
        for host in self.hosts:
            host.part(True)
        try:
            for host in self.hosts:
                await self._until_apart(host)
            for host, shards in zip(self.hosts, shards_before, strict=True):
                await self._answers_its_own(host, shards)
            await asyncio.sleep(max(0.0, since_s + for_s - time.monotonic()))
            for host, shards in zip(self.hosts, shards_before, strict=True):
                states = {shard: state for shard, (state, _) in (await shards_of(host)).items()}
                assert states == {shard: state for shard, (state, _) in shards.items()}, "a shard changed its host"
        finally:
            for host in self.hosts:
                host.part(False)
        doors = Doors([host.route for host in self.hosts], self.rng)
        for user in self._probed * len(self.hosts):
            await doors.call("top_up", user, 1, anywhere=True)
        doors.close()

    async def _unreached(self, serving: Host) -> None:
        """Clients and the host that serves lose one another in one direction; it reaches the log and the others."""
        assert has_network()
        direction = self.rng.choice(("requests", "answers"))
        serving.hide(direction, True)
        try:
            await asyncio.sleep(self._for_s(3))
            status, page = await asyncio.to_thread(serving.page)
        finally:
            serving.hide(direction, False)
        if status != 200:  # on a machine that was too busy to renew a grant, or to answer within a second
            assert status == 0 or LAPSED in page, f"a host that only clients do not reach does not serve: {page}"
            self.counts["lapsed while unreached"] += 1
            serving = await self.serving()
        self.counts[f"{direction} lost"] += 1
        door = Doors([serving.route], self.rng)
        await door.call("top_up", "reached_again", 1)
        door.close()

    async def _move(self, serving: Host) -> None:
        moving = asyncio.create_task(self._move_some(serving.route))
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.uniform(0, 0.3))
            await self._kill(serving)
            self.counts["killed beside moves"] += 1
        await moving

    async def _move_some(self, route: ClientRoute) -> None:
        """Asks one host for some moves, one after the other, for as long as it is there."""
        with suppress(ConnectionLost, OSError, TimeoutError):
            async with asyncio.timeout(WAIT_S):
                rpc = await route.connect()
                for bucket_id in self.rng.sample(range(1, BUCKETS + 1), MOVES):
                    error, _ = await rpc.call("move_bucket", bucket_id, self.rng.randrange(1, self._size.shards + 1))
                    assert error is None or error.startswith(("MOVE_REFUSED", "UNAVAILABLE")), error
                    self.counts["moved" if error is None else "move refused"] += 1
                rpc.close()

    async def _after_moves(self) -> list[str]:
        """A user of each shard, once no move is under way and every host says the same of all buckets."""
        deadline = time.monotonic() + WAIT_S
        while True:
            owners = [await _owners(host) for host in self.hosts]
            if owners[0] and all(owners_told == owners[0] for owners_told in owners):
                return await _user_of_each_shard(self.hosts[0].route)
            assert time.monotonic() < deadline, f"the hosts do not agree: {owners}\n{self._said()}"
            await asyncio.sleep(POLL_S)

    async def _until_apart(self, host: Host) -> None:
        """Returns when the host says of every shard of the others that it has no link to it."""
        deadline = time.monotonic() + WAIT_S
        while True:
            states = await shards_of(host)
            elsewhere = [reason for state, reason in states.values() if state == "elsewhere"]
            if elsewhere and all("no link from this host" in reason for reason in elsewhere):
                return
            assert time.monotonic() < deadline, f"{host.name} says {states}"
            await asyncio.sleep(POLL_S)

    async def _answers_its_own(self, host: Host, shards: dict[int, tuple[str, str]]) -> None:
        """A change of a user of each shard, by the door of a host that no other one reaches."""
        rpc = await host.route.connect()
        await rpc.ask("hello", {"errors": "map"})
        for shard, user in enumerate(self._probed, 1):
            error, _ = await rpc.call("top_up", user, 1)
            if error is not None and error["applied"] == "unknown":  # of several workers this one had not lost its link
                error, _ = await rpc.call("top_up", user, 1)
            if shards[shard][0] == "serving":
                assert error is None, f"{host.name}, of its own shard {shard}: {error}"
                self.counts["answered apart"] += 1
            else:
                assert (error["name"], error["applied"]) == ("UNAVAILABLE", "no"), (
                    f"{host.name}, shard {shard}: {error}"
                )
                self.counts["refused apart"] += 1
        rpc.close()

    async def _server(self, _: Host) -> None:
        number = self.rng.randrange(3)
        self.servers.kill(number)
        await asyncio.sleep(self.rng.uniform(*CALM_S))
        self.servers.start_server(number)
        await asyncio.to_thread(self.servers.wait_ready)

    async def _freeze(self, _: Host) -> None:
        number = self.rng.randrange(3)
        self.servers.signal(number, signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(1, 5))
        self.servers.signal(number, signal.SIGCONT)
        await asyncio.to_thread(self.servers.wait_ready)

    async def _wipe(self, serving: Host) -> None:
        host = self.rng.choice([host for host in self.hosts if host is not serving])
        await asyncio.to_thread(host.daemon.kill)
        data = host.daemon.directory / "data"
        while data.exists():  # a process that a killed one had started may make a file until it notices
            await asyncio.to_thread(shutil.rmtree, data, ignore_errors=True)


async def _fill(route: ClientRoute, accounts: int) -> None:
    """So many accounts with money."""
    rpc, gate = await route.connect(), asyncio.Semaphore(LOADED_IN_FLIGHT)

    async def top_up(number: int) -> None:
        async with gate:
            await rpc.ask("top_up", f"filler_{number}", 1_000_000_000)

    await asyncio.gather(*map(top_up, range(accounts)))
    rpc.close()


async def _owners(host: Host) -> list[int]:
    """The shard of each bucket, as a host says; empty where it does not, or while one is on its way."""
    with suppress(ConnectionLost, OSError, TimeoutError):
        async with asyncio.timeout(5):
            rpc = await host.route.connect()
            try:
                error, rows = await rpc.call("buckets_info")
            finally:
                rpc.close()
        if error is None and all(row["state"] == "active" for row in rows):
            return [row["shard_id"] for row in rows]
    return []


async def _user_of_each_shard(route: ClientRoute) -> list[str]:
    """A user in each shard, in the order of the shards."""
    rpc = await route.connect()
    error, routing = await rpc.call("route")
    rpc.close()
    assert error is None, error
    owners: list[int] = routing["owners"]
    users: dict[int, str] = {}
    for number in range(1000):
        user = f"probed_{number}"
        users.setdefault(owners[bucket_id_of(user.encode(), len(owners)) - 1], user)
    return [users[shard] for shard in sorted(users)]


def check_grants(servers: NatsCluster, shard: int) -> int:
    """No instant belongs to two epochs of the shard; how many epochs there were. AssertionError."""
    with closing(servers.connect("raw")) as connection:
        stream = Stream(connection, f"J_{shard}", WAIT_S, MACHINE_CLOCKS.boot_ns)
        state = stream.state()
        epochs: dict[int, list[record.Record]] = {}
        for stored in stream.walk(state.first, state.last):
            unpacked = record.unpack(stored.payload)
            epochs.setdefault(unpacked.epoch, []).append(unpacked._replace(body=b""))
    assert list(epochs) == sorted(epochs)
    granted_ns = 0
    for epoch, records in epochs.items():
        stamped = [entry.time_ns for entry in records if entry.kind == record.BATCH]
        assert min(stamped, default=granted_ns) >= granted_ns, f"epoch {epoch} stamps what was granted to another"
        last = records[-1]
        granted_ns = last.until_ns if last.kind == record.SEAL else max(entry.until_ns for entry in records)
        assert max(stamped, default=0) < granted_ns, f"epoch {epoch} stamps beyond its grant"
    return len(epochs)


def milliseconds(waits: list[float]) -> dict[str, Any]:
    """For people; texts, since sums of these mean nothing."""
    ordered = sorted(waits)
    quantile = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in QUANTILES.items()}
    return {"of": str(len(ordered)), **{name: f"{1000 * value:.0f} ms" for name, value in quantile.items()}}


QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


class Size(NamedTuple):
    """Of a campaign."""

    accounts: int  # beside those of the clients
    hosts: int
    at_once: bool  # whether all hosts serve
    shards: int
    callers: int
    brief: bool  # whether a host sleeps or is cut off for no longer than a takeover takes, and callers call seldom


async def campaign(
    directory: Path, cycles: int, seed: int, faults: list[str], size: Size, seconds: float
) -> dict[str, Any]:
    """So many faults, or as many as begin within so many seconds, and the proof. AssertionError."""
    run, deadline = Campaign(directory, seed, size), time.monotonic() + seconds
    turn = [faults[number % len(faults)] for number in range(cycles)]
    run.rng.shuffle(turn)
    try:
        await run.begin(size.accounts, size.hosts)
        await run.all_there()
        for fault in turn:
            if time.monotonic() < deadline:
                await run.strike(fault)
        await run.prove()
    finally:
        await run.close()
    assert all(run.counts[fault] for fault in set(turn)), "a fault that never fired proves nothing"
    return {**run.counts, "waited": {fault: milliseconds(waits) for fault, waits in run.waits.items()}}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seconds", type=float, default=3600, help="no further fault after so long")
    parser.add_argument("--hosts", type=int, choices=(2, 3), default=3)
    parser.add_argument("--at-once", action="store_true", help="all hosts serve, each some of the shards")
    parser.add_argument("--shards", type=int, help=f"{SHARDS} by default, and {SHARDS_AT_ONCE} with --at-once")
    parser.add_argument("--callers", type=int, default=CALLERS, help="of whom each makes a call at a time")
    parser.add_argument(
        "--brief", action="store_true", help="no longer without the log than a takeover takes; few calls"
    )
    parser.add_argument("--accounts", type=int, default=0, help="beside those of the clients")
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk")
    arguments = parser.parse_args()
    alone()
    faults = arguments.faults
    if not has_network() and {*PARTITIONS} & set(faults):
        print(f"without partitions: {why_no_network()}", file=sys.stderr)
        faults = [fault for fault in faults if fault not in PARTITIONS]
    if not arguments.at_once:
        faults = [fault for fault in faults if fault not in AT_ONCE]
    if arguments.hosts == 2:
        faults = [fault for fault in faults if fault != "two"]
    if not faults:
        return 2
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="hosts-", ignore_cleanup_errors=True) as name:
        try:
            shards = arguments.shards or (SHARDS_AT_ONCE if arguments.at_once else SHARDS)
            of_callers = arguments.callers, arguments.brief
            size = Size(arguments.accounts, arguments.hosts, arguments.at_once, shards, *of_callers)
            run = campaign(Path(name), arguments.cycles, arguments.seed, faults, size, arguments.seconds)
            counts = asyncio.run(run)
        except BaseException:
            traceback.print_exc()
            return 1
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
