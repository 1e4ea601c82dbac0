"""`make mutants`: every changed line of billing/ledger must make a test fail, or stand in mutants.toml with a reason.

mutmut makes the changes and runs the tests (its configuration is in pyproject.toml). This compares what survived with
the list beside it, which names changes by their text, because mutmut's numbers move with every edit:

    [[equivalent]]
    why = "what the change cannot make different"
    changes = [["the line as it is", "the line changed"], ...]

It ends with 1 where something survived that is not on the list, and says what is on the list and did not survive.
mutmut changes neither constants of modules nor properties, and assertions are left out.

    python -m tests.ledger.mutants               compares what the last run left
    mutmut show NAME                             shows one of them
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path

Change = tuple[str, str]

LIST = Path(__file__).with_name("mutants.toml")
SURVIVED = {"survived", "no tests", "suspicious"}
UNKNOWN = {"not checked", "segfault", "check was interrupted by user"}  # the last two: from outside


def listed(text: str) -> dict[Change, str]:
    """The changes of the list, each with its reason."""
    reasons: dict[Change, str] = {}
    for group in tomllib.loads(text)["equivalent"]:
        for was, becomes in group["changes"]:
            assert (was, becomes) not in reasons, f"listed twice: {was} -> {becomes}"
            reasons[was, becomes] = group["why"]
    return reasons


def change_of(diff: str) -> Change:
    """The change that a diff makes, as its lines without their indentation."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
    was, becomes = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return " ".join(was), " ".join(becomes)


def survivors() -> tuple[dict[str, Change], Counter[str]]:
    """What the last run left alive, by name, and how many there are of each status."""
    from mutmut.__main__ import status_by_exit_code, walk_mutatable_files
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    alive: dict[str, Change] = {}
    by_status: Counter[str] = Counter()
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            by_status[status] += 1
            if status in SURVIVED:
                alive[name] = change_of(get_diff_for_mutant(name))
    return alive, by_status


def main() -> int:
    """The comparison, told; 0 where nothing survived that is not listed."""
    reasons = listed(LIST.read_text())
    alive, by_status = survivors()
    unknown = {name: change for name, change in alive.items() if change not in reasons}
    for name, (was, becomes) in unknown.items():
        print(f"survived: {name}\n    {was}\n    {becomes}")
    for was, becomes in reasons.keys() - set(alive.values()):
        print(f"on the list, but not alive:\n    {was}\n    {becomes}")
    unchecked = sum(by_status[status] for status in UNKNOWN)
    print(
        f"{by_status.total()} changes: {by_status['killed']} made a test fail, {by_status['timeout']} never ended, "
        f"{len(unknown)} survived, {len(alive) - len(unknown)} are on the list, {unchecked} were not checked"
    )
    return 1 if unknown or unchecked else 0


if __name__ == "__main__":
    sys.exit(main())
