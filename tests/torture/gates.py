"""Faults made by hand in the gates between hosts, one at a time in a copy of the code: the test named must fail.

    python -m tests.torture.gates [NAME …]

Each row of `GATES` is one precondition of a takeover, or one gate behind which a host without a grant does nothing. A
row whose text does not occur exactly once in its file is told: the code has changed, and the row must follow. Prints
what it counted as JSON; exit code 1 where a fault survives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPOSITORY

ROOMS = ("billing", "shards", "tests")
STANDBY = "tests/shards/supervisor/test_standby.py"
GUARD = "tests/shards/supervisor/test_clock_guard.py"
GRANT = "tests/shards/worker/test_grant.py"
FAULTS = "tests/shards/journal/test_jetstream_faults.py"


class Gate(NamedTuple):
    """One fault, and the test that catches it."""

    name: str
    file: str
    old: str
    new: str
    test: str


GATES = [
    Gate(
        "a host claims without waiting for the grant",
        "shards/supervisor/standby.py",
        "if not sign.is_given_up and now_ns - self._last[shard][1] < self._still_ns",
        "if False",
        f"{STANDBY}::test_an_owner_that_is_not_heard_of_for_a_grant_is_followed",
    ),
    Gate(
        "a host claims although one shard is heard of",
        "shards/supervisor/standby.py",
        'return reason if alive else ""',
        'return reason if len(alive) == len(signs) else ""',
        f"{STANDBY}::test_one_shard_that_is_heard_of_speaks_for_its_host",
    ),
    Gate(
        "a host that has just claimed is given no time",
        "shards/supervisor/standby.py",
        "if now_ns - self._claim[1] < GRACE_NS and not self._is_heard:",
        "if False:",
        f"{STANDBY}::test_a_host_that_has_just_claimed_is_given_time_for_its_first_record",
    ),
    Gate(
        "a journal is opened while its owner may live",
        "shards/journal/jetstream/journal.py",
        "if now_ns - self._still[1] < STILL_SHARE * self._terms.grant_ns:",
        "if False:",
        f"{FAULTS}::test_an_owner_that_beats_is_not_overtaken_and_one_that_has_sealed_need_not_be_waited_for",
    ),
    Gate(
        "a new owner begins before the end of the older one's grant",
        "shards/journal/jetstream/journal.py",
        "began_ns = newest.until_ns if newest is not None else 0",
        "began_ns = newest.time_ns if newest is not None else 0",
        f"{FAULTS}::test_an_older_owner_that_wakes_up_has_no_instant_in_common_with_the_newer_one",
    ),
    Gate(
        "an owner counts on a grant that nobody acknowledged",
        "shards/journal/jetstream/journal.py",
        "        record = pack(Record(*fields, body))\n        try:",
        "        record = pack(Record(*fields, body))\n        self._granted_ns = until_ns\n        try:",
        f"{FAULTS}::test_an_older_owner_that_wakes_up_has_no_instant_in_common_with_the_newer_one",
    ),
    Gate(
        "a host decides by a map that is old",
        "shards/journal/jetstream/publisher.py",
        "sequence = stream.publish(subject, message, expected)",
        "expected = stream.state().last\n                sequence = stream.publish(subject, message, expected)",
        f"{FAULTS}::test_of_two_supervisors_that_decide_at_once_the_second_one_learns_what_the_first_one_did",
    ),
    Gate(
        "a worker stamps and reads beyond its grant",
        "shards/worker/worker.py",
        "        if now_ns < granted_ns:\n",
        "        if now_ns < granted_ns or True:\n",
        f"{GRANT}::test_commands_and_reads_beyond_the_grant_are_refused_until_it_is_renewed",
    ),
    Gate(
        "a read leaves beyond the grant",
        "shards/worker/worker.py",
        "                elif not self.may_act():\n",
        "                elif False:\n",
        f"{GRANT}::test_a_read_that_was_answered_within_the_grant_does_not_leave_beyond_it",
    ),
    Gate(
        "a cutoff leaves beyond the grant",
        "shards/worker/worker.py",
        "        if granted_ns == ALL_TIME_NS or self.clock.at(self._boot_ns()) < granted_ns:\n",
        "        if True:\n",
        f"{GRANT}::test_nothing_may_leave_that_no_append_has_proved",
    ),
    Gate(
        "a call begins without asking for the grant",
        "billing/expirationd/delivery.py",
        "        if not self._may_act():",
        "        if False:",
        "tests/expirationd/test_delivery.py::test_nothing_is_sent_while_another_owner_may_live_and_everything_after",
    ),
    Gate(
        "a host with a bad clock serves",
        "shards/supervisor/clock_guard.py",
        "return judgement.error_ns > self.error_ns_max\n",
        "return False\n",
        f"{GUARD}::test_a_clock_that_differs_from_that_of_the_host_that_serves_is_unfit",
    ),
]


def fault(gate: Gate, root: Path) -> None:
    """Puts the fault into the copy; AssertionError where the code has changed and it does not fit any more."""
    path = root / gate.file
    text = path.read_text()
    times = text.count(gate.old)
    assert times == 1, f"{gate.name}: its text occurs {times} times in {gate.file}: the code has changed, adapt it"
    path.write_text(text.replace(gate.old, gate.new))


def is_caught(gate: Gate) -> bool:
    """Whether its test fails on the faulty code. AssertionError where the test cannot be run."""
    with tempfile.TemporaryDirectory(prefix="billing-gate-") as directory:
        root = Path(directory)
        for room in ROOMS:
            shutil.copytree(REPOSITORY / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "config.toml"):
            shutil.copy(REPOSITORY / name, root / name)
        fault(gate, root)
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", gate.test],
            cwd=root, env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert result.returncode in (0, 1), (
        f"{gate.name}: {gate.test} cannot be run:\n{result.stdout[-3000:]}{result.stderr}"
    )
    assert "skipped" not in result.stdout, f"{gate.name}: {gate.test} is skipped here"
    return result.returncode == 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    survivors = 0
    chosen = [gate for gate in GATES if not arguments.names or gate.name in arguments.names]
    for gate in chosen:
        caught = is_caught(gate)
        survivors += not caught
        verdict = f"caught by {gate.test.rpartition('::')[2]}" if caught else "SURVIVES"
        print(f"{gate.name}: {verdict}", flush=True)
    print(json.dumps({"faults": len(chosen), "survivors": survivors}))
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
