"""Our own faults, applied one at a time to a copy of the code, against the simulation: each must be caught.

    python -m tests.simulation.mutants [NAME …] [--seeds 200] [--jobs 2] [--out FILE]      all, or those named

Those of history and notices (`faulty.BESIDE`) are played with the followers as processes, those between hosts
(`faulty.BETWEEN`) with several hosts. The seed that is known to catch a fault is played first.
A line per fault: the seed that caught it, and how; "3 and not 5" where 5 is known to in `faulty` and does not any more.
With `--out` also as JSON lines, and those that it has are not tried again. Exit code 1 where one survives. A survivor
means that the simulation lacks a fault or the auditor a look.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.simulation.faulty import BESIDE, BETWEEN, FAULTS, UNSEEN, Faulty

SEEDS = 200
ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("billing", "shards", "tests/follower", "tests/simulation")
KNOWN = {**FAULTS, **BESIDE, **BETWEEN}  # the seed that catches each
_HUNT = (
    "import sys; from tests.simulation.campaign import first_failing; "
    "print(first_failing(int(sys.argv[1]), int(sys.argv[2]), **dict.fromkeys(sys.argv[3:], True)))"
)


def faulty_code(fault: Faulty, root: Path) -> None:
    """Links to the rooms that the simulation needs, and to what Python has compiled of them; the files of the fault are
    files of their own. AssertionError where the code has changed and the fault does not fit it any more.
    """
    (root / "tests").mkdir()
    (root / "tests" / "__init__.py").touch()
    for package in ROOMS:
        (root / package).symlink_to(ROOT / package)
    for file, old, new in fault.edits:
        text = (root / file).read_text()
        times = text.count(old)
        assert times == 1, f"{fault.name}: its text occurs {times} times in {file}: the code has changed, adapt it"
        _own(root, Path(file)).write_text(text.replace(old, new))


def _own(root: Path, file: Path) -> Path:
    """The file, in directories of its own: what stands beside it there is linked."""
    for directory in [root / parent for parent in reversed(file.parents)]:
        if directory.is_symlink():
            linked = directory.readlink()
            directory.unlink()
            directory.mkdir()
            for entry in linked.iterdir():
                (directory / entry.name).symlink_to(entry)
    (root / file).unlink()
    return root / file


def _world_of(fault: Faulty) -> list[str]:
    """In which world it is played."""
    return ["follows"] * (fault in BESIDE) + ["hosts"] * (fault in BETWEEN)


def said_by(fault: Faulty, program: str, *arguments: str) -> str:
    """The last line that a program prints which runs the faulty code."""
    with tempfile.TemporaryDirectory(prefix="billing-faulty-") as directory:
        faulty_code(fault, Path(directory))
        run = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    lines = run.stdout.strip().splitlines()[-1:] if run.returncode == 0 else []
    assert lines, f"{fault.name}: what runs it does not even start: {run.stderr[-2000:]}"
    return lines[0]


def hunt(fault: Faulty, seeds: int = SEEDS, first: int = 0) -> dict[str, Any]:
    """Plays seeds `first` to `seeds` - 1 against the faulty code until one fails."""
    outcome = said_by(fault, _HUNT, str(first), str(seeds), *_world_of(fault))
    if outcome == "None":
        return {"name": fault.name, "seed": None}
    seed, _, violation = outcome.strip("()").partition(", ")
    return {"name": fault.name, "seed": int(seed), "how": violation[:300]}


def hunt_anywhere(fault: Faulty, seeds: int = SEEDS) -> dict[str, Any]:
    """Plays the seed that is known to catch the fault, if there is one; where that does not, all below `seeds`."""
    known_seed = KNOWN.get(fault)
    outcome = {"name": fault.name, "seed": None} if known_seed is None else hunt(fault, known_seed + 1, known_seed)
    return outcome if outcome["seed"] is not None else hunt(fault, seeds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--unseen", action="store_true", help="those that no seed is known to catch")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    names_done: set[str] = set()
    survivors = 0
    if arguments.out is not None and arguments.out.exists():
        old = [json.loads(line) for line in arguments.out.read_text().splitlines() if line.endswith("}")]
        names_done = {outcome["name"] for outcome in old}
        survivors = sum(outcome["seed"] is None for outcome in old)
    caught = list(KNOWN)
    candidates = caught + UNSEEN if arguments.names else UNSEEN if arguments.unseen else caught
    chosen = [
        fault
        for fault in candidates
        if (not arguments.names or fault.name in arguments.names) and fault.name not in names_done
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = pool.map(lambda fault: hunt_anywhere(fault, arguments.seeds), chosen)
        for fault, outcome in zip(chosen, outcomes, strict=True):
            survivors += outcome["seed"] is None
            remark = "" if outcome["seed"] == KNOWN.get(fault) else f" and not {KNOWN.get(fault)}"
            verdict = (
                "SURVIVES" if outcome["seed"] is None else f"seed {outcome['seed']}{remark}: {outcome['how'][:110]}"
            )
            print(f"{outcome['name']:36} {verdict}", flush=True)
            if arguments.out is not None:
                with arguments.out.open("a") as file:
                    print(json.dumps(outcome), file=file)
    print(json.dumps({"faults": len(chosen) + len(names_done), "survivors": survivors}))
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
