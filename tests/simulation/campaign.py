"""Many seeds, on several processes, resumable: each line of the file is one seed that was played.

{"seed": 17, "ok": true, "calls": 190, "entries": 240, "attempts": 12, "fired": {"power": 1}, "steps": 9000}
{"seed": 18, "ok": false, "error": "Violation: …"}

With `hosts` a seed is one of several hosts over one log (`tests.simulation.cluster_run`).
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.simulation.cluster_run import play_hosts
from tests.simulation.run import play


def outcome_of(seed: int, *, follows: bool = False, hosts: bool = False) -> dict[str, Any]:
    """Plays one seed; never raises but for an interrupt."""
    try:
        played = play_hosts(seed) if hosts else play(seed, follows=follows)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"seed": seed, "ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": True, **played._asdict()}


def command_of(seed: int, *, follows: bool = False, hosts: bool = False) -> str:
    """What repeats a seed."""
    return f"python -m tests.simulation --seed {seed}{' --follows' * follows}{' --hosts' * hosts}"


def known(out: Path | None) -> dict[int, dict[str, Any]]:
    """What the file has already."""
    if out is None or not out.exists():
        return {}
    lines = (json.loads(line) for line in out.read_text().splitlines() if line.endswith("}"))
    return {line["seed"]: line for line in lines}


def outcomes(
    seeds: Iterable[int], jobs: int, *, follows: bool = False, hosts: bool = False
) -> Iterator[dict[str, Any]]:
    """As they come."""
    outcome = partial(outcome_of, follows=follows, hosts=hosts)
    if jobs == 1:
        yield from map(outcome, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(outcome, seeds, chunksize=4)


def first_failing(first: int, last: int, *, follows: bool = False, hosts: bool = False) -> tuple[int, str] | None:
    """The first seed that fails, and how."""
    for seed in range(first, last):
        outcome = outcome_of(seed, follows=follows, hosts=hosts)
        if not outcome["ok"]:
            return seed, outcome["error"]
    return None


def campaign(
    first: int, last: int, jobs: int = 1, out: Path | None = None, *, follows: bool = False, hosts: bool = False
) -> dict[str, Any]:
    """Plays seeds first..last-1 but those that `out` has; prints each that fails. What all of them came to."""
    done = known(out)
    left = [seed for seed in range(first, last) if seed not in done]
    file = None if out is None else out.open("a")
    for outcome in outcomes(left, jobs, follows=follows, hosts=hosts):
        done[outcome["seed"]] = outcome
        if file is not None:
            print(json.dumps(outcome), file=file, flush=True)
        if not outcome["ok"]:
            command = command_of(outcome["seed"], follows=follows, hosts=hosts)
            print(f"seed {outcome['seed']}: {outcome['error']}\n  {command}", file=sys.stderr)
    if file is not None:
        file.close()
    fired: dict[str, int] = {}
    chosen = [done[seed] for seed in range(first, last)]
    for one in chosen:
        for kind, count in one.get("fired", {}).items():
            fired[kind] = fired.get(kind, 0) + count
    return {
        "seeds": len(chosen),
        "failed": sorted(one["seed"] for one in chosen if not one["ok"]),
        **{
            name: sum(one.get(name, 0) for one in chosen)
            for name in ("calls", "entries", "attempts", "epochs", "steps")
        },
        "faults": dict(sorted(fired.items())),
    }
