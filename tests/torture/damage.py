"""Damage at every place of a 64 KiB journal with a switch of segments, its snapshots and its manifest.

    python -m tests.torture.damage flips --state closed --part 1/4      every single bit
    python -m tests.torture.damage cuts --state killed --part 1/1       every file cut off, or zero, from every byte on

Each must be noticed or be without effect; never may the journal say something else. Prints what it counted as JSON;
exit code 1 with the place where that does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections import Counter

from tests.shards.journal.journal_machine import DIRECTORY
from tests.shards.journal.specimen import STATES, Specimen, cut_off, flip, zeros_from

SEGMENT_BYTES = 32_768  # two of them


def share(length: int, part: int, parts: int) -> range:
    """The part-th of so many about equal parts of a range."""
    return range(length * (part - 1) // parts, length * part // parts)


def flips(specimen: Specimen, part: int, parts: int) -> Counter[str]:
    """Every bit of this part of every file."""
    verdicts: Counter[str] = Counter()
    for name in specimen.names:
        length = len(specimen.medium.node(f"{DIRECTORY}/{name}").content)
        verdicts += flip(specimen, name, share(length * 8, part, parts))
    assert min(verdicts["refused"], verdicts["whole"]) > 0, "both must occur, or nothing was damaged that counts"
    return verdicts


def cuts(specimen: Specimen, part: int, parts: int) -> Counter[str]:
    """Every file cut off at every byte of this part, and the newest segment zero from there on."""
    verdicts: Counter[str] = Counter()
    for name in specimen.names:
        length = len(specimen.medium.node(f"{DIRECTORY}/{name}").content)
        verdicts += cut_off(specimen, name, share(length, part, parts))
    newest = max(name for name in specimen.names if name.startswith("segment-"))
    heads = zeros_from(specimen, newest, range(4096, SEGMENT_BYTES)) if part == 1 else set()
    if part == 1:
        verdicts["zeros"] = SEGMENT_BYTES - 4096
        positions = set(range(min(heads), len(specimen.log) + 1)) if specimen.state != "closed" else {len(specimen.log)}
        assert heads == positions, f"prefixes {heads}, wanted {positions}"
    return verdicts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["flips", "cuts"])
    parser.add_argument("--state", choices=STATES, required=True)
    parser.add_argument("--part", default="1/1")
    arguments = parser.parse_args()
    part, parts = (int(number) for number in arguments.part.split("/"))
    specimen = Specimen(arguments.state, SEGMENT_BYTES)
    try:
        counts = (flips if arguments.what == "flips" else cuts)(specimen, part, parts)
    except AssertionError:
        traceback.print_exc()
        return 1
    print(json.dumps({"tried": sum(counts.values()), **counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
