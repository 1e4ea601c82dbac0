"""The capacity of the load generator: commands a second on one core, against a server that does nothing.

The server is a process of its own that answers each request with the same account, as cheaply as it can. The generator
is that of `billing loadtest`: it draws, encodes, sends, decodes, records latencies, and keeps every answer in columns.

    python -m benchmarks.generator                            as fast as it goes
    python -m benchmarks.generator --rate 100000 --seconds 5  open loop at a rate: was it on time?
    python -m benchmarks.generator --record                   the cost of recording one latency

CPU is the generator's own, from getrusage, so that a busy machine has little effect.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import time
from typing import Any

import msgpack
import uvloop

from benchmarks.floor import REPLY, child_process
from billing.client.client import Client
from billing.trial.loadtest.columns import Columns
from billing.trial.loadtest.latency import Histogram
from billing.trial.loadtest.load_driver import ClosedLoop, LoadDriver, OpenLoop
from billing.trial.loadtest.workload import Mixer, Share, Workload, names
from shards.system.clock import MACHINE_CLOCKS


class NullServer(asyncio.Protocol):
    """Answers every request with `REPLY`; reads only its msgid."""

    def __init__(self) -> None:
        self._unpacker: Any = msgpack.Unpacker(raw=True, max_buffer_size=64 << 20, strict_map_key=False)
        self._tail = msgpack.packb(None) + msgpack.packb(REPLY)
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        tail = self._tail
        out: list[bytes] = []
        for request in self._unpacker:
            out += (b"\x94\x01\xce", request[1].to_bytes(4, "big"), tail)
        self._transport.write(b"".join(out))


def serve(port: Any) -> None:
    """The main function of the server's process."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(NullServer, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(run())


async def measure(arguments: argparse.Namespace, port: int) -> dict[str, Any]:
    """Runs one measurement."""
    workload = Workload(accounts=arguments.accounts, seconds=arguments.seconds, warmup_s=0.0, closed=not arguments.rate)
    columns = Columns(0, names(workload, Share(), ""))
    mixer = Mixer(workload, Share(), 0)
    paces: list[LoadDriver] = []
    client = Client(f"127.0.0.1:{port}")

    def on_read() -> None:
        if paces:
            paces[0].on_read()

    batches = [client.batch(lambda *answer: paces[0].on_answer(*answer), on_read) for _ in range(arguments.connections)]
    for batch in batches:
        await batch.connect()
    if arguments.rate:
        mixer.until(columns, int(arguments.seconds * 1e9), arguments.rate)
    gc.collect()
    gc.freeze()
    gc.disable()
    loop: OpenLoop | ClosedLoop = OpenLoop(arguments.depth)
    if not arguments.rate:
        end_ns = MACHINE_CLOCKS.boot_ns() + int(arguments.seconds * 1e9)
        loop = ClosedLoop(arguments.depth, lambda: mixer.more(columns, 4096), end_ns)
    pace = LoadDriver(columns, batches, loop)
    paces.append(pace)
    before = resource.getrusage(resource.RUSAGE_SELF)
    await pace.run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    for batch in batches:
        batch.close()
    seconds = (pace.ended_ns - pace.started_ns) / 1e9
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "commands": pace.answered,
        "commands_per_s": round(pace.answered / seconds),
        "generator_cpu_us_per_command": round(cpu_s / pace.answered * 1e6, 2),
        "commands_per_s_of_a_whole_core": round(pace.answered / cpu_s),
        "generator_cores": round(cpu_s / seconds, 2),
        **({"lateness_p99_ms": round(pace.lateness.value_at(0.99) / 1e6, 3)} if arguments.rate else {}),
        "latency_p50_ms": round(pace.latency.value_at(0.5) / 1e6, 3),
    }


def record(count: int = 1_000_000) -> dict[str, float]:
    """Returns the nanoseconds for recording one latency, without the loop around it."""
    histogram, values = Histogram(), [(number * 7919) % 50_000_000 for number in range(count)]
    took = []
    for _ in range(5):
        began = time.process_time()
        for value in values:
            histogram.record(value)
        middle = time.process_time()
        for _value in values:
            pass
        took.append((2 * middle - began - time.process_time()) / count * 1e9)
    return {"record_ns_least": round(min(took), 1), "record_ns_median": round(sorted(took)[2], 1)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=0.0, help="a second; 0: a closed loop, as fast as it goes")
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--depth", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.record:
        print(json.dumps(record()))
        return
    with child_process(serve) as server:
        port = server.recv()
        for _ in range(arguments.runs):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                print(json.dumps(runner.run(measure(arguments, port))))
            gc.enable()
            gc.unfreeze()


if __name__ == "__main__":
    main()
