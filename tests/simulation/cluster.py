"""Several hosts over one log, in one process and on one virtual clock: the daemon's real code on each of them.

Each host is a machine of its own (`tests.simulation.machine`): a disk, processes, a door, a boot clock that runs too
fast or too slow, and a wall clock that is off besides. They share nothing but the log (`tests.simulation.log_model`),
the endpoint and the clients, who knock at any door. One host serves and the others stand by; or all of them serve at
once, each some of the shards, and their workers have links to each other (`HostNetwork`).
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec.structs import replace

from billing.config.schema import Config, Cutoff, Ledger, Notify, class_of
from billing.follower.link import FollowedShard
from billing.worker.application import Billing
from billing.worker.dependencies import WorkerDependencies
from shards.buckets import HASH_NAME
from shards.control import Begin, WorkerSettings
from shards.exits import Exit, ending_of
from shards.journal.jetstream.guard import Shape
from shards.links.far import GONE_S
from shards.supervisor.settings import ShareSettings, SupervisorSettings
from shards.supervisor.supervisor import Supervisor
from shards.system.clock import Clocks
from shards.system.serial_executor import SerialExecutor
from shards.worker.process import Process
from tests.simulation.auditor import Violation
from tests.simulation.calls import GRACES_S, Call, Programs
from tests.simulation.clients import Client
from tests.simulation.cluster_auditor import NOBODY, HostsAuditor, Owner, WorkerCallObserver
from tests.simulation.course import CALLS_AT_ONCE, DATA, REST_S, SimulatedRun, supervisor_in
from tests.simulation.fibers import BlockingCommitter, BlockingLoop
from tests.simulation.log_model import FIRST_PORT, KIND, SERVERS, WORLDS, LogServers, StoredMessage
from tests.simulation.loop import SECOND_NS, Kernel, SimLoop
from tests.simulation.machine import Machine, SimProcess
from tests.simulation.outside import Archive, EndpointFaults, SimEndpoint, SimHistory
from tests.simulation.wires import Net, NetLoop, SimSocket, Stream

GRANT_NS = 2 * SECOND_NS
CLOCK_ERROR_NS_MAX = 500_000_000  # of the configuration: two good clocks differ by 400 ms, and drift
OFFSET_NS_MAX = 200_000_000
DRIFT_PPM_MAX = 300
WAKING_NS = 500_000  # so long a process that wakes up may be at what has come in, before it looks at its timers
WATCHED = 20  # reads of a watcher that may be without an answer
LOOK_S = 0.05  # so often a client without a host looks for one
IDENTITY = "5eed5eed5eed5eed"

_numbers = itertools.count(1)


def address_of(node: str) -> str:
    """The address of the host "a", "b", …: a number, as the resolver of the machine has no part in this world."""
    return f"10.0.0.{ord(node) - ord('a') + 1}"


def node_of(address: str) -> str:
    """The host that has this address."""
    return chr(ord("a") + int(address.rpartition(".")[2]) - 1)


class Oscillator:
    """The clocks of one host, as the true time makes them."""

    def __init__(self, kernel: Kernel, offset_ns: int, ppm: int, up_ns: int) -> None:
        self.offset_ns = offset_ns  # of the wall clock; a step changes it
        self._kernel = kernel
        self._ppm = ppm
        self._since_ns = kernel.now_ns  # since when the wall clock drifts
        self.booted_ns = kernel.now_ns - up_ns

    def _gone(self, since_ns: int) -> int:
        elapsed_ns = self._kernel.now_ns - since_ns
        return elapsed_ns + elapsed_ns * self._ppm // 10**6

    def boot_ns(self) -> int:
        """The boot clock. To read it takes time."""
        self._kernel.boot_ns()
        return self._gone(self.booted_ns)

    def peeked_ns(self) -> int:
        """The same, as somebody sees it who is not there."""
        return self._gone(self.booted_ns)

    def wall_ns(self) -> int:
        """The wall clock."""
        return self._since_ns + self._gone(self._since_ns) + self.offset_ns

    def true_ns(self, boot_ns: int) -> int:
        """The first true instant at which the boot clock is there."""
        elapsed_ns = boot_ns * 10**6 // (10**6 + self._ppm) - 2
        while elapsed_ns + elapsed_ns * self._ppm // 10**6 < boot_ns:
            elapsed_ns += 1
        return self.booted_ns + elapsed_ns


class HostMachine(Machine):
    """One host of the cluster."""

    def __init__(
        self, number: int, kernel: Kernel, rng: random.Random, servers: LogServers, network: HostNetwork
    ) -> None:
        self.node = "abc"[number - 1]
        self.network = network
        super().__init__(rng, lambda path, node: None, kernel, 1000 * number)
        offset_ns = rng.randint(-OFFSET_NS_MAX, OFFSET_NS_MAX)
        ppm = rng.randint(-DRIFT_PPM_MAX, DRIFT_PPM_MAX)
        self.clock = Oscillator(kernel, offset_ns, ppm, rng.randrange(1, 10**6) * SECOND_NS)
        self.clocks = Clocks(self.clock.boot_ns, self.clock.wall_ns)
        self.true_ns = self.clock.true_ns
        self.medium.boots = self._boots = 1000 * number
        self._servers = servers

    def loop_of(self, name: str) -> NetLoop:
        loop = BlockingLoop(self.kernel, name, self.net)  # type: ignore[abstract]  # of asyncio's loop what we use
        loop.node = self.node
        loop.dial = partial(self.network.connect, loop)
        return loop

    def executor_of(self, name: str, loop: NetLoop) -> SerialExecutor:
        assert isinstance(loop, BlockingLoop)
        if name.startswith("journal-"):
            loop.may_block = False  # from here on a thread waits for the log
        return BlockingCommitter(name, loop, self)

    def start(self, name: str) -> SimProcess:
        process = super().start(name)
        assert isinstance(process.loop, BlockingLoop)
        process.loop.may_block = name != "supervisor"
        self._servers.loops[process.pid] = process.loop
        return process

    def bind(self, host: str, port: int, backlog: int) -> Any:
        return self.network.listen(self.net, node_of(host))

    def booted(self) -> None:
        self.clock.booted_ns = self.kernel.now_ns


class HostNetwork:
    """The network between hosts: who listens where, and who cannot reach whom."""

    def __init__(self, kernel: Kernel, rng: random.Random) -> None:
        self.kernel = kernel
        self.rng = rng
        self.doors: dict[tuple[str, int], SimSocket] = {}
        self.parted: set[frozenset[str]] = set()  # nodes of which neither hears the other
        self._port = 20_000

    def listen(self, net: Net, node: str) -> SimSocket:
        """A socket at a free port of this host."""
        listener = net.listen()
        self._port += 1
        listener.address = (address_of(node), self._port)
        self.doors[listener.address] = listener
        return listener

    async def connect(self, loop: BlockingLoop, factory: Callable[[], Any], host: str, port: int) -> None:
        """Raises OSError, or waits for ever where nobody answers."""
        pair = frozenset({loop.node, node_of(host)})
        if pair in self.parted:
            await loop.create_future()
        await asyncio.sleep(0.0002)
        door = self.doors.get((host, port))
        if door is None or door.listener is None or not door.listener.servers():
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        stream = Stream(self.kernel, self.rng.getrandbits(32))
        cuts: list[int] = []

        def carried(data: bytes) -> list[int]:
            if pair in self.parted and not cuts:
                cuts.append(1)
                loop.call_in(GONE_S * SECOND_NS, stream.cut)
            return [] if cuts else [0]

        for end in stream.ends:
            end.filter, end.is_far = carried, True
        door.listener.connect(stream.ends[1])
        loop.net.attach(stream.ends[0], loop, factory())


class NoHistory(SimHistory):
    """A history that nobody asks: it follows nothing, and so reads nothing over the network."""

    def start(self, _: float = 0.0) -> None:
        """Nothing is followed."""

    def hand(self, position: int, payload: bytes) -> None:
        """Nothing is kept."""

    def trim_floor(self) -> int:
        return 1 << 62


class SimHost:
    """A host: its machine, and the daemon on it, which is started again whenever it ends."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.machine = HostMachine(
            number, cluster.kernel, random.Random(cluster.rng.getrandbits(64)), cluster.servers, cluster.network
        )
        self.node = self.machine.node
        self.door: SimSocket = self.machine.net.listen()
        self.supervisor: Supervisor | None = None
        self.is_wanted = True
        self.exits: list[tuple[str, int]] = []
        self.refused: list[str] = []
        self.bodies: dict[int, Process] = {}  # by pid
        self._rng = random.Random(cluster.rng.getrandbits(64))
        self.machine.start_worker = self._start_worker
        self.machine.on_alarm = self._on_alarm
        cluster.auditor.boots[self.boot_id] = self.machine.clock.peeked_ns

    @property
    def boot_id(self) -> bytes:
        """By which the map names this boot."""
        return self.machine.medium.boots.to_bytes(16, "big")

    @property
    def is_serving(self) -> bool:
        """Whether its supervisor serves, as far as it knows."""
        supervisor = self.supervisor
        return supervisor is not None and bool(supervisor.workers)

    def settings(self) -> SupervisorSettings:
        cluster = self.cluster
        return SupervisorSettings(
            data_dir=DATA,
            weights=dict.fromkeys(range(1, cluster.shards + 1), 1),
            bucket_count=cluster.buckets,
            slew_ppm_max=500,
            journal={
                "kind": KIND,
                "world": cluster.number,
                "servers": [f"nats://127.0.0.1:{FIRST_PORT + server}" for server in range(SERVERS)],
                "credentials_file": "",
                "tls_ca": "",
                "node": self.node,
                "shards": cluster.shards,
                "replicas": SERVERS,
                "bucket_count": cluster.buckets,
                "hash_name": HASH_NAME,
                "retain_bytes": 0,
                "grant_ns": GRANT_NS,
                "directory": DATA,
            },
            worker=WorkerSettings(0.05, cluster.snapshot_bytes),
            direct_host="",
            clock_error_ns_max=CLOCK_ERROR_NS_MAX,
            share=ShareSettings(2, f"{address_of(self.node)}:0", "", "", None) if cluster.is_at_once else None,
        )

    # -- the daemon -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the main process."""
        process = self.machine.start("supervisor")
        supervisor = self.supervisor = supervisor_in(process, self.settings(), self.door)
        process.on_end.append(self._on_supervisor_end)
        process.loop.on_trouble = self._on_trouble("supervisor")
        self.cluster.trace(self.node, "start", process.pid)

        process.run(supervisor.run())

    def start_again(self) -> None:
        """Starts it, where it is not there and somebody wants it."""
        if self.supervisor is None and self.is_wanted:
            self.start()

    def _on_supervisor_end(self, code: int) -> None:
        cluster = self.cluster
        cluster.trace(self.node, "supervisor ended", code)
        self.exits.append(("supervisor", code))
        self.supervisor = None
        failures, self.machine.failures = self.machine.failures, []
        for name, error in failures:
            self.refused.append(f"{name}: {type(error).__name__}: {error}")
            cluster.trace(self.node, self.refused[-1])
            code = ending_of(error).code
            if code in (Exit.BUG, Exit.DISK) or (code == Exit.DAMAGED and not cluster.lost):
                cluster.failed(error)
        cluster.outside.call_in(self._rng.randrange(SECOND_NS), self.start_again)

    def _on_trouble(self, name: str) -> Callable[[dict[str, Any]], None]:
        def trouble(context: dict[str, Any]) -> None:
            error = context.get("exception")
            self.cluster.trace(self.node, name, "trouble", repr(error), context.get("message"))
            if not isinstance(error, OSError):
                self.cluster.failed(error or Violation(f"{self.node} {name}: {context}"))

        return trouble

    def _start_worker(self, process: SimProcess, control: SimSocket) -> Any:
        cluster = self.cluster

        def build(begin: Begin) -> Billing:
            process.name = process.loop.name = f"worker-{begin.shard_id}"
            observer = WorkerCallObserver(cluster.auditor, self.owner(process.pid), begin.shard_id)

            def endpoint(origin: str, limits: object, clocks: Clocks, tls: object) -> SimEndpoint:
                return SimEndpoint(origin, clocks, cluster.endpoint_faults, observer, cluster.trace)

            def history(shard: FollowedShard, settings: object) -> NoHistory:
                return NoHistory(Archive(), shard.shard_id, shard.journal)

            dependencies = WorkerDependencies(
                clocks=self.machine.clocks,
                disk=process.disk,
                rng=process.rng,
                history=history,  # type: ignore[arg-type]
                endpoint=endpoint,  # type: ignore[arg-type]
                executor=process.host().executor,
            )
            cluster.trace(self.node, "worker", begin.shard_id, process.pid)
            process.on_end.append(lambda code: self._on_worker_end(process, begin.shard_id, code))
            return Billing(cluster.config, begin, dependencies)

        process.loop.on_trouble = self._on_trouble("worker")
        body = self.bodies[process.pid] = Process(control, build, process.host())  # type: ignore[arg-type]
        return body.run()

    def owner(self, pid: int) -> Owner:
        """Who a worker of this host is."""
        return Owner(pid, self.boot_id, self.machine.clock.peeked_ns, self.node)

    def _on_worker_end(self, process: SimProcess, shard: int, code: int) -> None:
        self.cluster.trace(self.node, "worker ended", shard, process.pid, code)
        self.exits.append((f"worker-{shard}", code))
        if code == Exit.DISK or (code == Exit.DAMAGED and not self.cluster.lost):
            reason = "" if self.supervisor is None else [worker.reason for worker in self.supervisor.workers.values()]
            self.cluster.failed(Violation(f"{self.node}: the worker of shard {shard} ended with {code}: {reason}"))

    def _on_alarm(self, process: SimProcess, boot_ns: int) -> None:
        self.cluster.audit_alarm(self.cluster.auditor.armed, self.bodies[process.pid], boot_ns)

    # -- what happens to it -----------------------------------------------------------------------------------------

    def pause(self, until_ns: int, names: tuple[str, ...] = ("",)) -> bool:
        """Lets the processes whose names begin so stand still; whether there were any."""
        processes_hit = [process for process in self.machine.processes.values() if process.name.startswith(names)]
        late_ns = self._rng.choice((0, WAKING_NS))
        for process in processes_hit:
            process.loop.hung_until_ns, process.loop.timers_late_ns = until_ns, late_ns
        return bool(processes_hit)

    def is_asleep(self) -> bool:
        """Whether a process of it stands still."""
        now_ns = self.machine.kernel.now_ns
        return any(process.loop.hung_until_ns > now_ns for process in self.machine.processes.values())

    def kill(self) -> None:
        """Every process of it ends at once."""
        for process in list(self.machine.processes.values()):
            process.kill()

    def lose_power(self) -> None:
        """It ends and what it had not synced may be gone; its boot clock begins anew."""
        self.cluster.auditor.boots.pop(self.boot_id)
        self.machine.lose_power()
        self.cluster.auditor.boots[self.boot_id] = self.machine.clock.peeked_ns


class HostsClient(Client):
    """Knocks at any door behind which somebody answers, and goes to another one where it is refused."""

    doors: list[SimSocket]

    def _open(self) -> list[SimSocket]:
        return [door for door in self.doors if door.listener is not None and door.listener.servers()]

    async def _chosen(self) -> SimSocket:
        while not (open_ones := self._open()):
            self._loop.call_later(LOOK_S, self._look, opened := self._loop.create_future())
            await opened
        return self._rng.choice(open_ones)

    def _look(self, opened: asyncio.Future[None]) -> None:
        """Somebody looks again and again, for hours: by a timer, which costs less than a task that sleeps."""
        if opened.done():
            return
        if self._open():
            opened.set_result(None)
        else:
            self._loop.call_later(LOOK_S, self._look, opened)

    def _take(self, call: Call, outcome: Any) -> bool:
        is_again = super()._take(call, outcome)
        if is_again and self._rng.random() < 0.5:
            self.drop()
        return is_again


class Watcher(HostsClient):
    """Reads at one door for ever, and waits longer than a host that stands still does."""

    wait_s = 12.0

    async def watch(self, users: list[bytes]) -> None:
        """To be cancelled. It asks again without having an answer."""
        tasks: set[asyncio.Task[Any]] = set()
        try:
            while True:
                if len(tasks) < WATCHED:
                    call = Call("get_account", self._rng.choice(users), [], {})
                    tasks.add(task := self._loop.create_task(self.until_known(call)))
                    task.add_done_callback(tasks.discard)
                await asyncio.sleep(0.6 * self._rng.random())
        finally:
            for task in tasks:
                task.cancel()


class HostsPrograms(Programs):
    """All calls but those for the history."""

    is_quiet = False  # only reads

    def call(self) -> Call:
        return self._get_account(self._rng.choice(self.users)) if self.is_quiet else super().call()

    def _history(self, user: bytes) -> Call:
        return self._get_account(user)


class Cluster(SimulatedRun):
    """The hosts, the log, and everybody around them."""

    def __init__(
        self, seed: int, *, hosts: int = 3, shards: int = 2, buckets: int = 4, is_at_once: bool = False
    ) -> None:
        """`is_at_once`: every host serves some of the shards; else one serves all, and the others stand by."""
        super().__init__()
        self.is_at_once = is_at_once
        self.rng = random.Random(seed)
        self.number = next(_numbers)
        self.shards = shards
        self.buckets = buckets
        self.snapshot_bytes = 24 * 1024
        self.kernel = Kernel(random.Random(self.rng.getrandbits(64)))
        self.kernel.on_crash = self._on_crash
        shape = Shape(shards, SERVERS, buckets, HASH_NAME)
        self.servers = LogServers(self.kernel, random.Random(self.rng.getrandbits(64)), shape, IDENTITY)
        WORLDS[self.number] = self.servers
        self.auditor = HostsAuditor(self.kernel, self._owner_of)
        self.servers.on_stored = self._on_stored
        self.endpoint_faults = EndpointFaults(random.Random(self.rng.getrandbits(64)))
        self.net = Net(self.kernel, random.Random(self.rng.getrandbits(64)))
        self.outside = NetLoop(self.kernel, "outside", self.net)  # type: ignore[abstract]
        self.outside.on_trouble = self.on_trouble
        self.lost: dict[str, dict[int, StoredMessage]] = {}  # stream -> what it has forgotten
        cutoff = Cutoff(
            url="http://sim/cutoff",
            restore_url="http://sim/restore" if self.rng.random() < 0.7 else "",
            concurrency=CALLS_AT_ONCE,
        )
        classes = {name: class_of(cutoff, grace_s=grace_s) for name, grace_s in GRACES_S.items()}
        self.config = Config(cutoff=replace(cutoff, classes=classes), notify=Notify(url=""), ledger=Ledger())
        self.network = HostNetwork(self.kernel, random.Random(seed ^ 0xBE7))
        self.hosts = [SimHost(self, number) for number in range(1, hosts + 1)]
        self.kernel.on_crash = self._on_crash

    def _owner_of(self, pid: int) -> Owner:
        for host in self.hosts:
            if pid in host.bodies:
                return host.owner(pid)
        return NOBODY

    def _on_stored(self, stream: str, sequence: int, subject: str, payload: bytes) -> None:
        self.trace("stored", stream, sequence, subject, len(payload))
        try:
            self.auditor.stored(stream, sequence, subject, payload)
        except Violation as error:
            self.failed(error)

    def _on_crash(self, loop: SimLoop) -> None:
        for host in self.hosts:
            if loop in host.machine.processes:
                host.machine.on_crash(loop)

    # -- running ----------------------------------------------------------------------------------------------------

    def state(self) -> str:
        """Where everything is, for a message."""
        lines = []
        for host in self.hosts:
            reasons = "down" if host.supervisor is None else [shard.text for shard in host.supervisor.unserved()]
            lines.append(f"{host.node}: {reasons}, refused {host.refused[-2:]}, exits {host.exits[-6:]}")
        return f"{'; '.join(lines)}; owed: {self.auditor.owed()[:5]}"

    def serving(self) -> SimHost | None:
        """The host that serves, or one of those that do, if every bucket is served."""
        states = {
            worker.pid: (host, worker.state)
            for host in self.hosts
            if host.supervisor is not None and (self.is_at_once or not host.supervisor.unserved())
            for worker in host.supervisor.workers.values()
        }
        owners = [states.get(log.owner.pid) for log in self.auditor.logs.values()]
        if len(owners) < self.shards or any(owner is None or owner[1] != "serving" for owner in owners):
            return None
        return next(owner[0] for owner in owners if owner is not None)

    def is_quiet(self) -> bool:
        """Every bucket is served, nothing is owed, nothing waits for the log."""
        if self.serving() is None or self.auditor.owed():
            return False
        pids = {log.owner.pid for log in self.auditor.logs.values()}
        for host in self.hosts:
            if host.supervisor is not None and host.supervisor.mover.running:
                return False
            for process in host.machine.processes.values():
                if process.loop.hung_until_ns > self.kernel.now_ns:
                    return False
        workers = [host.bodies[pid].worker for host in self.hosts for pid in host.bodies if pid in pids]
        if any(worker is None or worker._writing or worker.shard.has_more() for worker in workers):
            return False
        if any(worker is not None and (worker.shard._frozen or worker.shard._arrived) for worker in workers):
            return False  # the last word of a move is on its way
        return all(worker is not None and worker.may_act() for worker in workers)

    def client(self, name: str, programs: Programs) -> HostsClient:
        """One that knows all doors."""
        rng = random.Random(self.rng.getrandbits(64))
        client = HostsClient(name, self.outside, self.hosts[0].door, self.auditor, programs, rng, self.trace)
        client.doors = [host.door for host in self.hosts]
        return client

    def watcher(self, host: SimHost, programs: Programs) -> Watcher:
        """One that reads at this host's door."""
        rng = random.Random(self.rng.getrandbits(64))
        watcher = Watcher(f"at {host.node}", self.outside, host.door, self.auditor, programs, rng, self.trace)
        watcher.doors = [host.door]
        return watcher

    def heal(self) -> None:
        """Nothing goes wrong from here on, and every daemon is there."""
        trouble = self.servers.trouble
        trouble.shares.clear()
        trouble.cut.clear()
        trouble.down.clear()
        trouble.is_slow = False
        trouble.leaderless_until_ns = 0
        self.network.parted.clear()
        self.endpoint_faults.wrong.clear()
        for host in self.hosts:
            host.machine.net.slow = host.machine.slow_disk = False
            host.is_wanted = True
            host.start_again()

    def rest(self) -> None:
        """Waits until it is quiet, then lets the auditor look."""
        self.run(self.is_quiet, REST_S, "everything at rest")
        self.auditor.finish()

    def close(self) -> None:
        """Ends everything at once, so that nothing of this world is left."""
        for host in self.hosts:
            host.is_wanted = False
            host.kill()
        self.outside.die()
        del WORLDS[self.number]
