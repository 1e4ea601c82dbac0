"""One host over a log on three nats-servers, under load: the servers are struck again and again.

    python -m tests.torture.servers --cycles 25 --seed 1
    python -m tests.torture.servers --cycles 100 --faults kill stop --proofs-every 5

The faults, drawn at random of those named (all by default), each of one server or of two of the three:

    kill      kill −9; started again
    restart   SIGTERM, as an operator does it; started again
    stop      SIGSTOP for some seconds
    lead      leaders are forced to change, of the journals, of the map and of JetStream itself, several times
    cut       the host reaches one, two or none of the servers, while they reach each other
    wipe      one is killed, and comes back with an empty directory
    full      a journal's stream takes no more until clients were refused

A server that is struck is most often one that leads a journal. `cut` needs a network namespace, where each server has
an address of its own, which a blackhole route takes away: as root, the program starts itself anew in one; otherwise
`cut` is left out, and the program says so.

After each fault the daemon, which may have to be started again where it ended with 75, serves by itself, and then:

    kept      each answered call is in the raw stream of every server exactly once, read through NATS' own client; the
              replicas are the same, message by message; chain, epochs and grants are whole (`raw_streams`)
    once      a call that was answered before is answered from what is stored when it is made again
    fenced    an owner of an older sequence, which publishes over each of the servers, is refused, and writes nothing
    owners    `billing doctor --online` finds no faults; after every fault, or as `--proofs-every` says

Clients hold each answer against a ledger in fractions all the while, and at the end the receiver's calls against its
crossings (`callers`). Then a backup is made and proved by the doctor, and with nothing running each server leads each
stream in its turn and shows all of it again. Prints what it counted as JSON; exit code 1 with the reason where anything
does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NamedTuple

from billing.trial.receiver import Receiver
from shards.journal.jetstream import record
from shards.journal.jetstream.connection import NoAnswer, Unreachable
from shards.journal.jetstream.streams import EXPECTED, NOT_NOW, WRONG_SEQUENCE
from tests.shards.journal.nats_cluster import BINARY, MISSING, OPERATOR, WITH_OPERATOR, NatsCluster
from tests.shards.journal.replicas import last_of, wait_current
from tests.system.commands import carried_out
from tests.system.daemon import Daemon
from tests.torture.callers import PAUSE_S, Caller, ClientRoute, settle
from tests.torture.hosts import alone, has_network, why_no_network
from tests.torture.raw_streams import RawStreams

CALLERS, USERS_EACH, SPENDERS = 3, 3, 2
AGAIN = "again"  # the user whose calls are made again
WAIT_S = 120.0
POLL_S = 0.05
CALM_S = (0.2, 0.8)  # of load before a fault
FAULT_S = (0.2, 2.0)  # until what was struck is started again, or goes on
CUT_S = (0.5, 4.0)
TURNS = 4  # of leaders, in one fault
NO_ROOM_BYTES = 2000  # what a stream still takes that becomes full
FAULTS: Final = ("kill", "restart", "stop", "lead", "cut", "wipe", "full")


def address_of(number: int) -> str:
    """At which the host reaches a server; the campaign itself and the other servers do so at 127.0.0.1."""
    return f"127.0.2.{number + 1}"


class Campaign:
    """See the module."""

    def __init__(self, directory: Path, seed: int, shards: int, pause_s: float) -> None:
        assert BINARY is not None, MISSING
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        (directory / "servers").mkdir()
        (directory / "host").mkdir()
        listen = "0.0.0.0" if has_network() else "127.0.0.1"
        self.servers = NatsCluster(directory / "servers", extra=WITH_OPERATOR, listen=listen)
        urls = [f"nats://{address_of(number)}:{port}" for number, port in enumerate(self.servers.ports)]
        self.receiver = Receiver("127.0.0.1", 0)
        self.raw = RawStreams(self.servers, shards)
        self._directory, self._seed, self._shards, self._pause_s = directory, seed, shards, pause_s
        self._urls = urls if has_network() else self.servers.urls
        self._streams = ["M", *(f"{kind}_{shard}" for shard in range(1, shards + 1) for kind in "JS")]
        self.callers: list[Caller] = []
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._spent = 0

    # -- the beginning and the end ----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Servers, streams, a daemon that serves, and clients."""
        await asyncio.to_thread(self.servers.start)
        await self.receiver.start()
        keys: dict[str, object] = {
            "journal.kind": "jetstream",
            "journal.snapshot_bytes": 1 << 18,
            "cluster.servers": self._urls,
            "cluster.shards": self._shards,
            "shards.workers": self._shards,
            "shards.bucket_count": 32,
            "cutoff.url": f"{self.receiver.url}/off",
            "ledger.request_ids_per_bucket": 1_000_000,
        }
        self.daemon = Daemon(self._directory / "host", **keys)
        await asyncio.to_thread(self.servers.make_all, self._shards)
        await asyncio.to_thread(self.daemon.start, WAIT_S)
        routes = [ClientRoute(self.daemon.rpc_port)]
        seeds = {f"user_{number}": f"{self._seed}:{number}" for number in range(CALLERS + 1)}
        self.callers = [Caller(name, routes, seed, self._pause_s) for name, seed in seeds.items()]
        self._tasks = [asyncio.create_task(caller.walk(self._stop, USERS_EACH)) for caller in self.callers[:CALLERS]]

    async def prove(self) -> None:
        """What can be said only at the end."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        self.counts.update(await settle(self.callers, lambda: self.receiver.calls))
        for caller in self.callers:
            self.counts["history rows"] += await caller.check_history()
            self.counts["read"] += caller.reads
            self.counts["asked in vain"] += caller.hosts.unanswered
        copy = str(self._directory / "copy")
        assert "no faults" in await self._billing("backup", copy, "--address", self.daemon.address)
        assert await asyncio.to_thread(self.daemon.stop) == 0, self._said()
        await asyncio.to_thread(self.raw.read_on, self._answered())
        await asyncio.to_thread(self.raw.read_as_leaders)
        self.counts["answered"] = len(self._answered())
        self.counts["epochs"] = self.raw.epochs
        self.counts.update(self.raw.counts)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for caller in self.callers:
            caller.hosts.close()
        if self.daemon.process is not None and self.daemon.process.poll() is None:
            self.daemon.kill()
        await self.receiver.close()
        self.servers.close()

    # -- a fault ----------------------------------------------------------------------------------------------------

    async def strike(self, fault: str) -> None:
        """One of them, under load, until everything is there again."""
        spent = [f"spender_{self._spent + number}" for number in range(SPENDERS)]
        self._spent += SPENDERS
        caller = self.callers[CALLERS]
        calling = asyncio.gather(caller.spend(spent), caller.do(AGAIN, "top_up", amount=self.counts["faults"] + 1))
        await asyncio.sleep(self.rng.uniform(*CALM_S))
        strikes: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "kill": self._kill, "restart": self._restart, "stop": self._stop_and_go, "lead": self._lead,
            "cut": self._cut, "wipe": self._wipe, "full": self._full,
        }  # fmt: skip
        await strikes[fault]()
        self.counts["faults"] += 1
        self.counts[fault] += 1
        await self._serves()
        await calling
        for task in self._tasks:
            if task.done():
                task.result()

    def _struck(self, count_max: int = 2) -> list[int]:
        """One or two servers, most often one that leads a journal."""
        numbers = [0, 1, 2]
        self.rng.shuffle(numbers)
        if self.rng.random() < 0.7:
            leader = self.servers.leader(f"J_{self.rng.randint(1, self._shards)}")
            numbers.sort(key=lambda number: number != leader)
        return numbers[: self.rng.randint(1, count_max)]

    async def _kill(self) -> None:
        struck = await asyncio.to_thread(self._struck)
        for number in struck:
            self.servers.kill(number)
        self.counts["servers killed"] += len(struck)
        await self._start(struck)

    async def _restart(self) -> None:
        struck = await asyncio.to_thread(self._struck)
        for number in struck:
            self.servers.signal(number, signal.SIGTERM)
        for number in struck:
            process = self.servers.processes[number]
            assert process is not None
            await asyncio.to_thread(process.wait, WAIT_S)
        self.counts["servers restarted"] += len(struck)
        await self._start(struck)

    async def _start(self, struck: list[int]) -> None:
        await asyncio.sleep(self.rng.uniform(*FAULT_S))
        for number in struck:
            self.servers.start_server(number)
        await asyncio.to_thread(self.servers.wait_ready)

    async def _stop_and_go(self) -> None:
        struck = await asyncio.to_thread(self._struck)
        for number in struck:
            self.servers.signal(number, signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(*FAULT_S) * 2)
        for number in struck:
            self.servers.signal(number, signal.SIGCONT)
        self.counts["servers stopped"] += len(struck)
        await asyncio.to_thread(self.servers.wait_ready)

    async def _lead(self) -> None:
        for _ in range(TURNS):
            name = self.rng.choice(["", *self._streams])
            question = (
                (f"STREAM.LEADER.STEPDOWN.{name}", None, None) if name else ("META.LEADER.STEPDOWN", None, OPERATOR)
            )
            reply = await asyncio.to_thread(self.servers.ask, *question)
            self.counts["leaders stepped down"] += bool(reply.get("success"))
            await asyncio.sleep(self.rng.uniform(0, 0.3))

    async def _cut(self) -> None:
        assert has_network()
        struck = await asyncio.to_thread(self._struck, 3)
        for number in struck:
            _route("add", number)
        try:
            await asyncio.sleep(self.rng.uniform(*CUT_S))
        finally:
            for number in struck:
                _route("del", number)
        self.counts["ways cut"] += len(struck)

    async def _wipe(self) -> None:
        for name in self._streams:
            await asyncio.to_thread(wait_current, self.servers, name)
        (number,) = await asyncio.to_thread(self._struck, 1)
        self.servers.kill(number)
        shutil.rmtree(self.servers.directory / f"server-{number}")
        await self._start([number])
        for name in self._streams:
            await asyncio.to_thread(wait_current, self.servers, name)

    async def _full(self) -> None:
        name, caller = f"J_{self.rng.randint(1, self._shards)}", self.callers[0]
        size = (await asyncio.to_thread(self.servers.ask, f"STREAM.INFO.{name}"))["state"]["bytes"]
        await asyncio.to_thread(self.servers.limit, name, size + NO_ROOM_BYTES)
        refused, deadline = caller.hosts.unanswered, time.monotonic() + WAIT_S
        while caller.hosts.unanswered == refused:
            assert time.monotonic() < deadline, f"{name} is full, and nobody is refused"
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(self.rng.uniform(*FAULT_S))
        await asyncio.to_thread(self.servers.limit, name, -1)

    # -- afterwards -------------------------------------------------------------------------------------------------

    async def _serves(self) -> None:
        """Returns once a call of each client was answered."""
        counts_before = [sum(map(len, caller.answered.values())) for caller in self.callers[:CALLERS]]
        deadline = time.monotonic() + WAIT_S
        while True:
            process = self.daemon.process
            assert process is not None
            if (code := process.poll()) is not None:
                self.counts[f"ended with {code}"] += 1
                assert code == 75, f"it ended with {code}:\n{self._said()}"
                self.daemon.launch()
            now = [sum(map(len, caller.answered.values())) for caller in self.callers[:CALLERS]]
            if all(later > earlier for earlier, later in zip(counts_before, now, strict=True)):
                return
            assert time.monotonic() < deadline, f"it does not serve:\n{self._said()}"
            await asyncio.sleep(POLL_S)

    async def check(self, with_proof: bool) -> None:
        """What must hold after each fault."""
        await asyncio.to_thread(self.raw.read_on, self._answered())
        await self._once()
        await asyncio.to_thread(self._fenced)
        if with_proof:
            output = await self._billing("doctor", "--online", "--address", self.daemon.address)
            assert "no faults" in output, output
            self.counts["examined by the doctor"] += 1

    def _answered(self) -> set[str]:
        return {request_id for caller in self.callers for ids in caller.answered.values() for request_id in ids}

    async def _once(self) -> None:
        """A call that was answered long ago, or during the fault, changes nothing when it is made again."""
        caller = self.callers[CALLERS]
        ids = caller.answered[AGAIN]
        for number in {self.rng.randrange(len(ids)), len(ids) - 1}:
            reply = await caller.hosts.call("top_up", AGAIN, number + 1, {"request_id": ids[number]})
            assert reply["replayed"] is True, f"{ids[number]} was made twice: {reply}"
            self.counts["made again"] += 1

    def _fenced(self) -> None:
        """An owner that was asleep publishes at the sequence that it knows."""
        shard = self.rng.randint(1, self._shards)
        last_sequence = last_of(self.servers, f"J_{shard}") - 1
        beat = record.pack(record.Record(record.BEAT, 1, 0, shard, 1, 0, 0, 0, 0, 0, b""))
        for url in self.servers.urls:
            deadline = time.monotonic() + WAIT_S
            while (reply := self._publish_late(url, shard, beat, last_sequence)) is None:
                assert time.monotonic() < deadline, f"nobody takes messages over {url}"
                time.sleep(POLL_S)
            assert reply.get("error", {}).get("err_code") == WRONG_SEQUENCE, f"an older owner was answered {reply}"
            self.counts["older owners refused"] += 1

    def _publish_late(self, url: str, shard: int, message: bytes, last_sequence: int) -> dict[str, Any] | None:
        """What it is answered; None where nobody can answer at this moment."""
        connection = self.servers.connect("an older owner", [url])
        try:
            answer = connection.request(f"J.{shard}", message, {EXPECTED: str(last_sequence)})
        except (NoAnswer, Unreachable):
            return None
        finally:
            connection.close()
        if answer.status:
            return None
        reply: dict[str, Any] = json.loads(answer.payload)
        return None if reply.get("error", {}).get("err_code") in NOT_NOW else reply

    async def _billing(self, *arguments: str) -> str:
        result = await asyncio.to_thread(carried_out, *arguments)
        assert result.returncode == 0, (
            f"{arguments}: {result.returncode}\n{result.stdout}{result.stderr}\n{self._said()}"
        )
        return result.stdout + result.stderr

    def _said(self) -> str:
        return self.daemon.log.read_text()[-6000:]


def _route(verb: str, number: int) -> None:
    """Takes the way to a server, or gives it back."""
    command = ["ip", "route", verb, "blackhole", f"{address_of(number)}/32", "table", "local"]
    subprocess.run(command, check=True)


class CampaignLimits(NamedTuple):
    """What a campaign costs."""

    proofs_every: int  # so many faults the doctor looks
    seconds: float  # after these no further fault begins
    pause_s: float  # between two calls of a client


async def campaign(
    directory: Path, cycles: int, seed: int, faults: list[str], shards: int, limits: CampaignLimits
) -> dict[str, int]:
    """So many faults, or as many as begin within so many seconds, and the proof. AssertionError."""
    run, deadline = Campaign(directory, seed, shards, limits.pause_s), time.monotonic() + limits.seconds
    turn = [faults[number % len(faults)] for number in range(cycles)]
    run.rng.shuffle(turn)
    try:
        await run.begin()
        for number, fault in enumerate(turn, 1):
            if time.monotonic() < deadline:
                await run.strike(fault)
                await run.check(number % limits.proofs_every == 0)
        await run.prove()
    except BaseException:
        print(f"seed {seed}, after {dict(run.counts)}", file=sys.stderr)
        raise
    finally:
        await run.close()
    if run.counts["faults"] == cycles:
        assert all(run.counts[fault] for fault in set(turn)), "a fault that never fired proves nothing"
    return dict(run.counts)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--proofs-every", type=int, default=1, help="the doctor after every so many faults")
    parser.add_argument("--seconds", type=float, default=3600, help="no further fault after so long")
    parser.add_argument("--pause", type=float, default=PAUSE_S, help="seconds between two calls of a client")
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk")
    arguments = parser.parse_args()
    alone()
    faults = arguments.faults
    if not has_network() and "cut" in faults:
        print(f"without partitions: {why_no_network()}", file=sys.stderr)
        faults = [fault for fault in faults if fault != "cut"]
    if not faults:
        return 2
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="servers-", ignore_cleanup_errors=True) as name:
        try:
            limits = CampaignLimits(arguments.proofs_every, arguments.seconds, arguments.pause)
            run = campaign(Path(name), arguments.cycles, arguments.seed, faults, arguments.shards, limits)
            counts = asyncio.run(run)
        except BaseException:
            traceback.print_exc()
            return 1
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
