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
        outcome = play_hosts(seed) if hosts else play(seed, follows=follows)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"seed": seed, "ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": True, **outcome._asdict()}


def command_of(seed: int, *, follows: bool = False, hosts: bool = False) -> str:
    """What repeats a seed."""
    return f"python -m tests.simulation --seed {seed}{' --follows' * follows}{' --hosts' * hosts}"


def outcomes_in(path: Path | None) -> dict[int, dict[str, Any]]:
    """What the file has already."""
    if path is None or not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text().splitlines() if line.endswith("}"))
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
    first: int, last: int, jobs: int = 1, path: Path | None = None, *, follows: bool = False, hosts: bool = False
) -> dict[str, Any]:
    """Plays seeds first..last-1 but those in the file at `path`; prints each that fails. What all of them came to."""
    outcomes_known = outcomes_in(path)
    seeds_left = [seed for seed in range(first, last) if seed not in outcomes_known]
    file = None if path is None else path.open("a")
    for outcome in outcomes(seeds_left, jobs, follows=follows, hosts=hosts):
        outcomes_known[outcome["seed"]] = outcome
        if file is not None:
            print(json.dumps(outcome), file=file, flush=True)
        if not outcome["ok"]:
            command = command_of(outcome["seed"], follows=follows, hosts=hosts)
            print(f"seed {outcome['seed']}: {outcome['error']}\n  {command}", file=sys.stderr)
    if file is not None:
        file.close()
    fired: dict[str, int] = {}
    chosen = [outcomes_known[seed] for seed in range(first, last)]
    for seed_outcome in chosen:
        for kind, count in seed_outcome.get("fired", {}).items():
            fired[kind] = fired.get(kind, 0) + count
    return {
        "seeds": len(chosen),
        "failed": sorted(seed_outcome["seed"] for seed_outcome in chosen if not seed_outcome["ok"]),
        **{
            name: sum(seed_outcome.get(name, 0) for seed_outcome in chosen)
            for name in ("calls", "entries", "attempts", "epochs", "steps")
        },
        "faults": dict(sorted(fired.items())),
    }
