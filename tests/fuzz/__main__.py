"""Fuzzing for as long as one likes; what breaks is kept in tests/fuzz/corpus, and tried again by every run.

    python -m tests.fuzz frames --seconds 1800           or another of the targets in tests/fuzz/targets.py
    python -m tests.fuzz journal --seed 7 --first 120000 goes on where seed 7 was stopped, which it says

Prints what it counted as JSON on its last line; exit code 1 where something broke.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback

from tests.fuzz.run import run
from tests.fuzz.targets import TARGETS


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=10.0, help="of CPU, so that a busy machine takes nothing away")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    arguments = parser.parse_args()
    try:
        count = run(
            arguments.target, arguments.seed, arguments.first, lambda _: time.process_time() < arguments.seconds
        )
    except BaseException:
        traceback.print_exc()
        return 1
    print(f"goes on with --seed {arguments.seed} --first {arguments.first + count}")
    print(json.dumps({"inputs": count}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
