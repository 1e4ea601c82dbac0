"""Calls fail for a tenth of the users: the lateness of the others' cutoffs, and the latency of commands.

One daemon and one receiver. For each kind of failure, `--rounds` times, two turns of `--seconds`: one without failures,
and one in which the endpoint fails for one user in ten, in that way. Each turn has `--users` new users who run out by
time alone, evenly spread over it, beside `--commands` top-ups a second. The calls of the sick users stay owed to the
end of their turn; then these users are topped up. One row per kind, medians of its rounds: the lateness of the healthy
from the exact instant to the arrival of their call, and the latency of commands, both without and with sick users, in
milliseconds.

    python -m benchmarks.cutoff_sick                              some ten minutes: 7 kinds
    python -m benchmarks.cutoff_sick --seconds 8 --users 800 --sick mixed,hang

`--markdown` prints the table of RESULTS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from benchmarks.endpoint import COIN, Endpoint, many, quantiles, top_ups
from billing.trial.faults import parse_fault
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

KINDS = {
    "hang": "hang@0.1",
    "504 after 5 s": "gateway=5000@0.1",
    "500": "status=500@0.1",
    "409, Retry-After 3600": "status=409:3600@0.1",
    "reset": "reset@0.1",
    "drip": "drip@0.1",
    "mixed": "+".join(
        f"{name}@{1 / 60:.6f}" for name in ("hang", "gateway=5000", "status=500", "status=409:3600", "reset", "drip")
    ),
}
LEAD_S = 3.0  # until the first user of a turn runs out: by then all of them have money and a rate
SETTLE_S = 2.0


class Turn(NamedTuple):
    """The result of one turn; quantiles in milliseconds."""

    lateness: dict[str, float]
    commands: dict[str, float]
    cpu_s: float
    healthy: int
    uncalled: int  # healthy users whose call had not arrived by the end


async def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures all kinds, `rounds` times."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        directory.chmod(0o700)
        endpoint = Endpoint()
        daemon = Daemon(directory, cutoff__url=endpoint.url + "/off", journal__segment_bytes=64 << 20)
        kinds = [kind for kind in KINDS if not arguments.sick or _first_word(kind) in arguments.sick]
        with endpoint, daemon:
            rpc = await Rpc.connect(daemon.rpc_port)
            await many(rpc, [("top_up", f"other_{number}", 1) for number in range(10_000)])
            turns: dict[str, list[tuple[Turn, Turn]]] = {kind: [] for kind in kinds}
            names = count()
            for _ in range(arguments.rounds):
                for kind in kinds:
                    well = await _turn(arguments, daemon, endpoint, rpc, KINDS[kind], False, next(names))
                    sick = await _turn(arguments, daemon, endpoint, rpc, KINDS[kind], True, next(names))
                    turns[kind].append((well, sick))
    return [_row(kind, pairs) for kind, pairs in turns.items()]


async def _turn(
    arguments: argparse.Namespace,
    daemon: Daemon,
    endpoint: Endpoint,
    rpc: Rpc,
    fault: str,
    sick: bool,
    number: int,
) -> Turn:
    users = [f"turn_{number}_{index}" for index in range(arguments.users)]
    meets = parse_fault(fault)
    ill = {user for user in users if meets.concerns(user)}
    seq = endpoint.page("/stats")["received"]
    step_s = arguments.seconds / len(users)
    if sick:
        endpoint.page("/misbehave", fault=fault, for_s=LEAD_S + arguments.seconds + 60)
    await many(rpc, [("top_up", user, int((LEAD_S + at * step_s) * COIN)) for at, user in enumerate(users)])
    await many(rpc, [("set_rate", user, COIN) for user in users])
    before_s = daemon.cpu_seconds(beside=True)
    latencies = await top_ups(daemon.rpc_port, arguments.commands, LEAD_S + arguments.seconds)
    await asyncio.sleep(SETTLE_S)
    cpu_s = daemon.cpu_seconds(beside=True) - before_s
    if sick:
        endpoint.page("/misbehave", fault=fault, for_s=0.0)
    first: dict[str, float] = {}
    while part := endpoint.page("/received", after=seq, limit=10_000)["calls"]:
        seq += len(part)
        for call in part:
            if call["user_id"] not in ill:
                first.setdefault(call["user_id"], (call["arrived_ns"] - call["exhausted_at_ns"]) / 1e6)
    await many(rpc, [("set_rate", user, 0) for user in users])
    await many(rpc, [("top_up", user, COIN) for user in users if user in ill])
    uncalled = len(users) - len(ill) - sum(user.startswith(f"turn_{number}_") for user in first)
    late = sorted(late_ms for user, late_ms in first.items() if user.startswith(f"turn_{number}_"))
    return Turn(quantiles(late, 1), quantiles(latencies, 1e3), cpu_s, len(late), uncalled)


def _row(kind: str, turns: list[tuple[Turn, Turn]]) -> dict[str, Any]:
    def middle(at: int, what: str, name: str) -> float:
        return round(statistics.median(float(getattr(pair[at], what)[name]) for pair in turns), 2)

    late = statistics.median(pair[1].lateness["p99"] / pair[0].lateness["p99"] for pair in turns)
    moved = statistics.median(pair[1].commands["p99"] / pair[0].commands["p99"] - 1 for pair in turns)
    return {
        "sick": kind,
        "healthy": sum(pair[1].healthy for pair in turns),
        "uncalled": sum(pair[at].uncalled for pair in turns for at in (0, 1)),
        "well_p50": middle(0, "lateness", "p50"),
        "p50": middle(1, "lateness", "p50"),
        "well_p99": middle(0, "lateness", "p99"),
        "p99": middle(1, "lateness", "p99"),
        "p99_times": round(late, 2),
        "commands_well_p99": middle(0, "commands", "p99"),
        "commands_p99": middle(1, "commands", "p99"),
        "commands_moved_percent": round(moved * 100),
        "cpu_s": [round(statistics.median(pair[at].cpu_s for pair in turns), 2) for at in (0, 1)],
    }


def _first_word(kind: str) -> str:
    return kind.split(" ")[0].rstrip(",")


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as the table of RESULTS."""
    lines = ["| sick for a tenth | healthy p50, without and beside | p99 | × | commands p99 | moved | CPU s |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        lines.append(
            f"| {row['sick']} ({row['healthy']} healthy) | {row['well_p50']} → {row['p50']} ms "
            f"| {row['well_p99']} → {row['p99']} ms | {row['p99_times']} "
            f"| {row['commands_well_p99']} → {row['commands_p99']} ms | {row['commands_moved_percent']:+} % "
            f"| {row['cpu_s'][0]} → {row['cpu_s'][1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sick", default="", type=lambda text: set(filter(None, text.split(","))), help="first words")
    parser.add_argument("--users", type=int, default=10_000, help="of each turn, a tenth of them sick in every other")
    parser.add_argument("--commands", type=int, default=500, help="top-ups a second beside")
    parser.add_argument("--seconds", type=float, default=36.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--directory", default="/tmp")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    if unknown := arguments.sick - {_first_word(kind) for kind in KINDS}:
        parser.error(f"--sick: no such kind: {', '.join(sorted(unknown))}")
    rows = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments))
    print(table(rows) if arguments.markdown else "\n".join(json.dumps(row) for row in rows))
    if uncalled := {row["sick"]: row["uncalled"] for row in rows if row["uncalled"]}:
        sys.exit(f"healthy users were not called: {uncalled}")


if __name__ == "__main__":
    main()
