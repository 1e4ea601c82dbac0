"""A seed of several hosts, played: what is drawn from it, what goes wrong when, and what must be so at the end."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from shards.journal import backends
from tests.simulation.auditor import Violation
from tests.simulation.calls import Call
from tests.simulation.cluster import OFFSET_NS_MAX, Cluster, HostsClient, HostsPrograms, SimHost
from tests.simulation.log_model import KIND, KIND_MODULE, SERVERS
from tests.simulation.loop import SECOND_NS

CLIENTS = 3
CALLS = 25  # of each client
AT_ONCE_SHARE = 0.35
AWAITED_S = 15.0  # so long a fault waits for a host that serves
HEARD_S = 2.5  # so long after its claim a host has surely been heard of
SEEN_NS = 2_500_000_000  # what was stored so long ago, every host has seen and remembers


class HostsRunResult(NamedTuple):
    """What a run was."""

    seed: int
    digest: str
    calls: int
    entries: int
    attempts: int
    epochs: int
    fired: dict[str, int]
    steps: int
    seconds: int  # of virtual time


class HostsFaultInjector:
    """The faults of one run, one after the other, at random moments."""

    def __init__(self, cluster: Cluster, operator: HostsClient, programs: HostsPrograms, rng: random.Random) -> None:
        self.cluster = cluster
        self.operator = operator
        self.programs = programs
        self.rng = rng
        self.fired: dict[str, int] = {}
        self.done = False
        self._kinds = KINDS | AT_ONCE if cluster.is_at_once else KINDS
        weights = [weight for weight, _ in self._kinds.values()]
        self.chosen = rng.choices(list(self._kinds), weights, k=rng.choice((2, 3, 4, 5)))
        cluster.servers.trouble.is_slow = rng.random() < 0.3
        if rng.random() < 0.3:
            cluster.servers.trouble.shares["behind"] = 0.2
        for host in cluster.hosts:
            host.machine.net.slow = rng.random() < 0.2

    def hit(self, kind: str) -> None:
        """It has happened."""
        self.fired[kind] = self.fired.get(kind, 0) + 1
        self.cluster.trace("fault", kind)

    async def run(self) -> None:
        """Lets all chosen ones happen."""
        if self.rng.random() < 0.8:
            await asyncio.sleep(HEARD_S)
        for kind in self.chosen:
            if self.rng.random() < 0.7:
                await self.until(lambda: self.cluster.serving() is not None)
            await asyncio.sleep(self.rng.choice((0.05, 0.5, 2.0)) * self.rng.random())
            await self._kinds[kind][1](self)
        self.done = True

    async def until(self, holds: Callable[[], object], seconds: float = AWAITED_S) -> bool:
        """Waits until it is so; whether it came to that."""
        for _ in range(int(seconds / 0.05)):
            if holds():
                return True
            await asyncio.sleep(0.05)
        return False

    def host(self) -> SimHost:
        """The one that serves, mostly."""
        serving = self.cluster.serving()
        return serving if serving is not None and self.rng.random() < 0.7 else self.rng.choice(self.cluster.hosts)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Ends a fault."""
        self.cluster.outside.call_in(int(seconds * SECOND_NS), function)

    async def live_through(self, seconds: float) -> None:
        """Until the fault is over, and a little longer."""
        await asyncio.sleep(seconds + 0.5 * self.rng.random())
        self.programs.is_quiet = False

    async def run_dry(self, seconds: float) -> None:
        """Lets users run dry within so many seconds, and nobody change anything from there on: time alone does it, and
        a host that does not know that its own is over would call.
        """
        self.programs.is_quiet = True
        await asyncio.sleep(0.2)
        for user in self.programs.users:
            account = await self.operator.until_known(Call("get_account", user, [], {}))
            available_nanos = account.get("available_nanos", 0)
            rate = int(available_nanos * 3600 / (seconds * (0.4 + 0.5 * self.rng.random())))
            if available_nanos > 0:
                message = b"dry %b %d" % (user, self.cluster.kernel.now_ns)
                call = Call("set_rate", user, [rate], {"per": "hour", "message": message, "request_id": message})
                call.number, call.tag = rate, call.options["message"]
                await self.operator.until_known(call)

    # -- hosts --------------------------------------------------------------------------------------------------------

    def down(self, host: SimHost, seconds: float) -> None:
        """Its daemon is not started again before that."""
        host.is_wanted = False

        def up() -> None:
            if not self.done:  # else `heal` has started it
                host.is_wanted = True
                host.start_again()

        self.later(seconds, up)

    async def kill_host(self) -> None:
        host = self.host()
        self.down(host, self.rng.choice((0.1, 1.0, 5.0)))
        host.kill()
        self.hit("kill_host")

    async def power(self) -> None:
        host = self.host()
        self.down(host, self.rng.choice((1.0, 5.0)))
        host.lose_power()
        self.hit("power")

    async def kill_process(self) -> None:
        host = self.host()
        if host.machine.processes:
            process = self.rng.choice(list(host.machine.processes.values()))
            self.hit(f"kill_{process.name.partition('-')[0]}")
            process.kill()

    async def pause(self) -> None:
        """Longer than a grant, or not; a whole host, or one of its processes."""
        host = self.host()
        seconds = self.rng.choice((0.5, 1.9, 2.2, 3.0, 5.0, 8.0)) * (0.9 + 0.2 * self.rng.random())
        names = self.rng.choice((("",), ("",), ("worker",), (f"worker-{self.rng.randint(1, 2)}",), ("supervisor",)))
        lives_through = self.rng.random() < 0.7
        if lives_through and self.rng.random() < 0.4:
            await self.run_dry(seconds)
        if host.pause(self.cluster.kernel.now_ns + int(seconds * SECOND_NS), names):
            self.hit(f"pause_{names[0].partition('-')[0] or 'host'}")
            if lives_through:  # else what comes next meets it asleep
                await self.live_through(seconds)
        self.programs.is_quiet = False

    async def restart(self) -> None:
        host = self.host()
        if host.supervisor is not None:
            self.down(host, self.rng.choice((0.0, 2.0)))
            host.supervisor.stop()
            self.hit("restart")

    # -- hosts that serve at once -------------------------------------------------------------------------------------

    async def part(self) -> None:
        """Two hosts do not hear each other; the log hears both."""
        parted = self.cluster.network.parted
        pair = frozenset(host.node for host in self.rng.sample(self.cluster.hosts, 2))
        parted.add(pair)
        seconds = self.rng.choice((1.0, 5.0)) * (0.5 + self.rng.random())
        self.later(seconds, lambda: parted.discard(pair))
        self.hit("part")
        if self.rng.random() < 0.5:
            await self.live_through(seconds)

    async def move(self) -> None:
        """Buckets, by hand, while the next faults come."""
        self.hit("move")
        for _ in range(self.rng.choice((1, 3))):
            self.cluster.task(self._move_one())

    async def _move_one(self) -> None:
        cluster, rng = self.cluster, self.rng
        bucket, shard = rng.randint(1, cluster.buckets), rng.randint(1, cluster.shards)
        _, result = await self.operator.ask("move_bucket", bucket, shard)
        if result is not None and cluster.auditor.owner[bucket][1] < result["generation"]:
            raise Violation(f"bucket {bucket} is said to be moved: {result}, but is {cluster.auditor.owner[bucket]}")
        if result is not None:
            self.hit("moved")

    # -- the log ------------------------------------------------------------------------------------------------------

    async def cut(self) -> None:
        trouble, node = self.cluster.servers.trouble, self.host().node
        ways = {(node, way) for way in self.rng.choice((("to", "from"), ("to", "from"), ("to",), ("from",)))}
        seconds = self.rng.choice((0.5, 2.5, 6.0)) * (0.5 + self.rng.random())
        lives_through = self.rng.random() < 0.7
        if lives_through and self.rng.random() < 0.4:
            await self.run_dry(seconds)
        trouble.cut |= ways
        self.later(seconds, lambda: trouble.cut.difference_update(ways))
        self.hit("cut_one_way" if len(ways) == 1 else "cut")
        if lives_through:
            await self.live_through(seconds)

    async def answers(self) -> None:
        """Requests and answers are lost, doubled and late for a while."""
        trouble = self.cluster.servers.trouble
        kinds = ("lost", "lost_ack", "doubled", "doubled_ack", "late", "not_now")
        chosen = self.rng.sample(kinds, self.rng.choice((1, 2, 3)))
        trouble.shares |= dict.fromkeys(chosen, self.rng.choice((0.03, 0.1, 0.3)))

        def over() -> None:
            for kind in chosen:
                trouble.shares.pop(kind, None)

        self.later(1 + 4 * self.rng.random(), over)
        for kind in chosen:
            self.hit(kind)

    async def leaderless(self) -> None:
        seconds = self.rng.choice((0.3, 1.5, 4.0, 12.0)) * self.rng.random()
        self.cluster.servers.trouble.leaderless_until_ns = self.cluster.kernel.now_ns + int(seconds * SECOND_NS)
        self.hit("leaderless")

    async def server_down(self) -> None:
        servers, server = self.cluster.servers, self.rng.randrange(SERVERS)
        servers.stop(server)
        servers.trouble.leaderless_until_ns = self.cluster.kernel.now_ns + self.rng.randrange(SECOND_NS)
        self.later(1 + 4 * self.rng.random(), lambda: servers.trouble.down.discard(server))
        self.hit("server_down")

    async def forget(self) -> None:
        """A stream loses an end that hosts have seen: nobody serves from what is left, until it is found again."""
        cluster, servers = self.cluster, self.cluster.servers
        cluster.heal()
        if not await self.until(lambda: cluster.serving() is not None, 60):
            raise Violation(f"nobody serves: {cluster.state()}")
        await self.until(lambda: all(host.supervisor is not None and not host.is_asleep() for host in cluster.hosts))
        await asyncio.sleep(1.5 * SEEN_NS / SECOND_NS)  # every host is there, and has seen what is lost below
        serving = cluster.serving()
        if serving is None:
            return
        hosts_struck = self.rng.choice(([serving], cluster.hosts))
        stream = self.rng.choice([f"J_{shard}" for shard in range(1, cluster.shards + 1)] + ["M"])
        for host in hosts_struck:
            self.down(host, 0.5)
            host.kill()
        before_ns = cluster.kernel.now_ns - SEEN_NS
        if stream == "M":  # where seconds may pass without a message
            stored = list(servers.streams[stream].messages.values())
            if stored[-1].at_ns > cluster.kernel.now_ns - SECOND_NS:
                stream = "J_1"  # not every host has seen that
        if stream == "M":
            before_ns = stored[-self.rng.randint(1, min(3, len(stored) - 1))].at_ns - 1
        messages_lost = servers.forget(stream, before_ns)
        assert messages_lost, "its owner has not been heard of"
        cluster.lost[stream] = messages_lost
        cluster.auditor.damaged.add(stream)
        self.hit("forget")
        await asyncio.sleep(self.rng.choice((6.0, 15.0)))
        for host in cluster.hosts:
            host.kill()
        servers.restore(stream, messages_lost)
        cluster.auditor.damaged.discard(stream)
        del cluster.lost[stream]

    # -- clocks -------------------------------------------------------------------------------------------------------

    async def clock_set(self) -> None:
        """A wall clock is set, to something that is still good."""
        self.host().machine.clock.offset_ns = self.rng.randint(-OFFSET_NS_MAX, OFFSET_NS_MAX)
        self.hit("clock_set")

    def informed(self) -> list[SimHost]:
        """Those that stand by, and have heard what time it is for the one that serves."""
        serving = self.cluster.serving()
        return [
            host
            for host in self.cluster.hosts
            if host is not serving
            and host.supervisor is not None
            and host.supervisor.registry.clock_watch.guard.is_informed
        ]

    async def clock_wrong(self) -> None:
        """A wall clock is set to what is bad, while other hosts are heard: this host serves nothing."""
        cluster = self.cluster
        is_takeover = self.rng.random() < 0.7
        if is_takeover:
            await self.until(self.informed, 8)
            await asyncio.sleep(HEARD_S)
        serving = cluster.serving()
        hosts = self.informed() if is_takeover else []
        if serving is None:
            return
        host = self.rng.choice(hosts or [serving])
        clock, before_ns = host.machine.clock, host.machine.clock.offset_ns
        clock.offset_ns += self.rng.choice((-1, 1, 1)) * self.rng.choice((1, 5, 3600)) * SECOND_NS
        self.hit("clock_wrong")
        if serving is not host:
            await asyncio.sleep(0.3 * self.rng.random())
            for other in cluster.hosts:
                if other is not host:
                    self.down(other, 4.0)
                    other.kill()
            self.hit("clock_wrong_takeover")
        supervisor = host.supervisor  # once it is another one it has heard nobody, and cannot know that it is behind
        await self.until(lambda: host.supervisor is not supervisor, 4 + 4 * self.rng.random())
        clock.offset_ns = before_ns

    # -- the endpoint -------------------------------------------------------------------------------------------------

    async def bad_endpoint(self) -> None:
        endpoint_faults, kinds = self.cluster.endpoint_faults, ("refused", "slow", "5xx", "lost")
        chosen = self.rng.sample(kinds, self.rng.choice((1, 2)))
        endpoint_faults.wrong |= dict.fromkeys(chosen, self.rng.choice((0.2, 0.8)))
        self.later(2 + 4 * self.rng.random(), endpoint_faults.wrong.clear)
        self.hit("bad_endpoint")


KINDS: dict[str, tuple[int, Callable[[HostsFaultInjector], Awaitable[None]]]] = {
    "kill_host": (5, HostsFaultInjector.kill_host),
    "power": (2, HostsFaultInjector.power),
    "kill_process": (3, HostsFaultInjector.kill_process),
    "pause": (8, HostsFaultInjector.pause),
    "restart": (3, HostsFaultInjector.restart),
    "cut": (5, HostsFaultInjector.cut),
    "answers": (5, HostsFaultInjector.answers),
    "leaderless": (3, HostsFaultInjector.leaderless),
    "server_down": (2, HostsFaultInjector.server_down),
    "forget": (4, HostsFaultInjector.forget),
    "clock_set": (2, HostsFaultInjector.clock_set),
    "clock_wrong": (3, HostsFaultInjector.clock_wrong),
    "bad_endpoint": (2, HostsFaultInjector.bad_endpoint),
}


AT_ONCE: dict[str, tuple[int, Callable[[HostsFaultInjector], Awaitable[None]]]] = {
    "part": (5, HostsFaultInjector.part),
    "move": (8, HostsFaultInjector.move),
}


def play_hosts(seed: int, log: list[str] | None = None) -> HostsRunResult:
    """Plays a seed; raises what is wrong. In a third of the worlds all hosts serve at once, each some of the shards."""
    loggers = [logging.getLogger(name) for name in ("shards", "billing")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    backends.KINDS[KIND] = backends.Kind(KIND_MODULE, is_shared=True)
    draw = random.Random(seed ^ 0x5EED)
    hosts, shards, at_once = draw.choice((2, 3, 3)), draw.choice((1, 2)), draw.random() < AT_ONCE_SHARE
    cluster = Cluster(seed, hosts=hosts, shards=3 if at_once else shards, is_at_once=at_once)
    cluster.log = log
    try:
        return _play(seed, cluster)
    finally:
        cluster.close()
        del backends.KINDS[KIND]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _play(seed: int, cluster: Cluster) -> HostsRunResult:
    draw = random.Random(seed ^ 0xFACE)
    users = [b"%d" % number for number in draw.sample(range(1, 1000), draw.choice((2, 3, 5)))]
    programs = HostsPrograms(random.Random(draw.getrandbits(64)), users, lambda: cluster.kernel.now_ns)
    clients = [cluster.client(f"client-{number}", programs) for number in range(CLIENTS)]
    rest_s = draw.choice((0.3, 0.3, 3.0))
    for client in clients:
        client.rest_s = rest_s
    injector = HostsFaultInjector(
        cluster, cluster.client("operator", programs), programs, random.Random(draw.getrandbits(64))
    )
    began_ns = cluster.kernel.now_ns
    for host in cluster.hosts:
        cluster.outside.call_in(draw.randrange(SECOND_NS), host.start_again)
    cluster.run(lambda: cluster.serving() is not None, 60, "a first start")
    first = cluster.task(clients[0].open_accounts())
    cluster.run(first.done, 60, "accounts are opened")

    async def all_clients() -> None:
        await asyncio.gather(*(client.run(CALLS, lambda: injector.done) for client in clients))

    calling = cluster.task(all_clients())
    watching = [cluster.task(cluster.watcher(host, programs).watch(users)) for host in cluster.hosts]
    injecting = cluster.task(injector.run())
    cluster.run(injecting.done, 600, "all faults injected")
    cluster.heal()
    for task in watching:
        task.cancel()
    cluster.run(calling.done, 120, "all calls answered")
    cluster.rest()
    reading = cluster.task(_read_all(clients[0], users))
    cluster.run(reading.done, 60, "all accounts are read")
    _stop(cluster)
    return HostsRunResult(
        seed,
        cluster.digest(),
        sum(client.calls for client in clients),
        cluster.auditor.entries,
        cluster.auditor.attempts,
        cluster.auditor.epochs,
        injector.fired,
        cluster.kernel.steps,
        (cluster.kernel.now_ns - began_ns) // SECOND_NS,
    )


async def _read_all(client: HostsClient, users: list[bytes]) -> None:
    for user in users:
        answer = await client.until_known(Call("get_account", user, [], {}))
        if "name" in answer and answer["name"] != "UNKNOWN_ACCOUNT":
            raise Violation(f"{user!r} cannot be read: {answer}")


def _stop(cluster: Cluster) -> None:
    """An orderly end of all, one after the other: every shard is given back."""
    for host in cluster.hosts:
        host.is_wanted = False
        if host.supervisor is not None:
            host.supervisor.stop()
            cluster.run(lambda: not host.machine.processes, 40, "an orderly end")  # noqa: B023
    for shard, log in cluster.auditor.logs.items():
        if not log.is_sealed:
            raise Violation(f"shard {shard} was not given back at an orderly end")
