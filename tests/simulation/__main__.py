"""The simulation from a terminal.

    python -m tests.simulation --seed N [--log LINES]                      one seed, with what it came to
    python -m tests.simulation --seeds A..B [--jobs J] [--out FILE]        seeds A to B - 1; skips those that FILE has
    … --follows                            with history and notices as processes on failing files (`followers`)
    … --hosts                              several hosts over one log (`cluster_run`)

Exit code 1 where one failed; the last line of output is a JSON object with the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path

from tests.simulation.campaign import campaign
from tests.simulation.cluster_run import play_hosts
from tests.simulation.run import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--log", type=int, default=0, help="show so many last lines of the trace")
    parser.add_argument("--seeds", help="A..B")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--follows", action="store_true", help="with history and notices as processes")
    parser.add_argument("--hosts", action="store_true", help="several hosts over one log")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return play_one(arguments.seed, arguments.log, follows=arguments.follows, hosts=arguments.hosts)
    first, last = arguments.seeds.split("..")
    figures = campaign(
        int(first), int(last), arguments.jobs, arguments.out, follows=arguments.follows, hosts=arguments.hosts
    )
    print(json.dumps(figures))
    return bool(figures["failed"])


def play_one(seed: int, lines: int, *, follows: bool, hosts: bool) -> int:
    """Plays one seed and shows what happened."""
    log: list[str] = []
    kept_log = log if lines else None
    try:
        outcome = play_hosts(seed, kept_log) if hosts else play(seed, kept_log, follows=follows)
        print(json.dumps(outcome._asdict()))
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        if lines:
            print(*log[-lines:], sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
