"""Our own faults in the rules for ties, ends and numbers, applied one at a time to a copy of the code: a test of
credits, leases, classes or cutoffs that runs against the copy must fail.

    python -m tests.ledger.hunting [NAME …]      all, or those named: which are caught by random programs alone
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

# name: (file, what stands there, what is put instead)
TIE_RULES: Final = {
    "lease-before-exhaustion": (
        "billing/ledger/schedule.py",
        "    if account.runs_out_ns() == due_ns:\n",
        "    if account.runs_out_ns() == due_ns and not ends:\n",
    ),
    "lease-behind-threshold": (
        "billing/ledger/schedule.py",
        "    if ends:\n        accrued",
        "    if ends and not fallen_at(account, due_ns):\n        accrued",
    ),
    "last-lease-first": (
        "billing/ledger/rates.py",
        '    ends_ns, resource = extra.next_lease() or (NEVER_NS, b"")\n',
        "    ends_ns, resource = due_ns, max(name for name, ends_ns in extra.leases.items() if ends_ns == due_ns)\n",
    ),
    "change-moves-the-lease": (
        "billing/ledger/rates.py",
        "    ends_ns = max(known_ns, _lease_end(account, packed) if packed else -1)\n",
        "    ends_ns = _lease_end(account, packed) if packed else known_ns\n",
    ),
    "credit-before-hold": (
        "billing/ledger/schedule.py",
        "    if extra is not None and ends and (expired := _expire(account, extra)):\n",
        "    if extra is not None and ends and not (account.credits and _next_end_ns(account) == due_ns) "
        "and (expired := _expire(account, extra)):\n",
    ),
    "larger-credit-first": (
        "billing/ledger/credits.py",
        "    return tuple(sorted((*credits, credit)))\n",
        "    return tuple(sorted((*credits, credit), key=lambda one: (one[0], -one[1], one[2])))\n",
    ),
    "newer-credit-first": (
        "billing/ledger/credits.py",
        "    return tuple(sorted((*credits, credit)))\n",
        "    return tuple(sorted((*credits, credit), key=lambda one: (one[0], one[1], -one[2])))\n",
    ),
    "later-credit-first": (
        "billing/ledger/credits.py",
        "    return tuple(sorted((*credits, credit)))\n",
        "    return tuple(sorted((*credits, credit), key=lambda one: (-one[0], one[1], one[2])))\n",
    ),
    "admission-takes-credit-as-lasting": (
        "billing/ledger/rates.py",
        "        falls_at_ns = falls_ns(account.credits, total,",
        "        falls_at_ns = falls_ns((), total,",
    ),
    "lease-forgets-its-rate-seq": (
        "billing/ledger/rates.py",
        "    _put(account, extra, resource, 0, rate_seq, NEVER_NS)\n    account.rate -= rate\n",
        "    _put(account, extra, resource, 0, -1, NEVER_NS)\n    account.rate -= rate\n",
    ),
}
OF_CLASSES: Final = {
    "grace-a-nanosecond-longer": (
        "billing/ledger/classes.py",
        "    return min(exhausted_at_ns + grace_ns, INT64_MAX)\n",
        "    return min(exhausted_at_ns + grace_ns + (grace_ns > 0), INT64_MAX)\n",
    ),
    "grace-a-nanosecond-shorter": (
        "billing/ledger/classes.py",
        "    return min(exhausted_at_ns + grace_ns, INT64_MAX)\n",
        "    return min(exhausted_at_ns + max(0, grace_ns - 1), INT64_MAX)\n",
    ),
    "top-up-at-the-end-comes-first": (
        "billing/ledger/schedule.py",
        "    return coming_ns(account) <= at_ns\n",
        "    grace = extra.grace()\n"
        "    return coming_ns(account) <= at_ns and (grace is None or grace.due_ns < at_ns)\n",
    ),
    "grace-before-hold": (
        "billing/ledger/schedule.py",
        "    if extra is not None and ends and (expired := _expire(account, extra)):\n",
        "    if extra is not None and ends and ((grace := extra.grace()) is None or grace.due_ns != due_ns) "
        "and (expired := _expire(account, extra)):\n",
    ),
    "grace-behind-lease": (
        "billing/ledger/schedule.py",
        "(grace := extra.grace()) is not None and grace.due_ns == due_ns:\n",
        "(grace := extra.grace()) is not None and grace.due_ns == due_ns and due_ns not in extra.leases.values():\n",
    ),
    "a-class-leaves-the-grace-alone": (
        "billing/ledger/posting.py",
        "        cutoffs.move_grace(account, due_ns)\n",
        "        due_ns = cutoff.due_ns\n",
    ),
    "a-class-begins-the-grace-anew": (
        "billing/ledger/posting.py",
        "self.due_after_ns(account, cutoff.exhausted_at_ns))\n",
        "self.due_after_ns(account, account.settled_ns))\n",
    ),
    "a-raised-line-calls-in-the-grace": (
        "billing/ledger/posting.py",
        '        elif account.need_extra().grace() is not None:\n            return flags, b""\n',
        "        elif (grace := account.need_extra().grace()) is not None:\n            due_ns = grace.due_ns\n",
    ),
    "replay-asks-the-rules": (
        "billing/ledger/posting.py",
        "        if self.presumed is not None:\n            return max(exhausted_at_ns, self.grace_end_ns)\n",
        "",
    ),
    "replay-numbers-by-its-own-floor": (
        "billing/ledger/ledger.py",
        "        posting.seq_floor = seq_of(packed) if flags & CROSSED and not is_first(packed) else 0\n",
        "",
    ),
    "an-everyday-exhaustion-forgets-the-floor": (
        "billing/ledger/fast_path.py",
        "    if seq < posting.seq_floor:\n        seq = posting.seq_floor\n",
        "",
    ),
    "a-start-takes-the-exhaustion-for-the-call": (
        "billing/ledger/cutoffs.py",
        "cutoff.due_ns <= started_ns)",
        "cutoff.exhausted_at_ns <= started_ns)",
    ),
}
# What a fault needs beside its line.
_MORE: Final = {
    "lease-behind-threshold": "\n\ndef fallen_at(account: Account, due_ns: int) -> bool:\n"
    "    return next_crossing_ns(account) == due_ns\n",
}
ENDS_S: Final = 300  # a fault may make a step that goes on for ever
_TESTS: Final = tuple(f"tests/ledger/test_{of}.py" for of in ("credits", "leases", "classes", "cutoffs"))
# Instead of the tests: random programs against the model.
_PROGRAMS: Final = """
from billing.ledger.ledger import ReplayDifference
from tests.ledger.programs import Program
for seed in range(1, 61):
    try:
        Program(seed).run(400)
    except (AssertionError, ReplayDifference) as found:
        print(str(found)[:300])
        break
"""


def hunt(name: str, *, by_programs: bool = False) -> str:
    """What finds the fault: the first test that fails, or a difference of a random program; "" where nothing does."""
    file, old, new = (TIE_RULES | OF_CLASSES)[name]
    with tempfile.TemporaryDirectory(prefix="ledger-faulty-") as where:
        root = Path(where)
        for room in ("billing", "tests/ledger"):
            shutil.copytree(ROOT / room, root / room)  # with what Python has compiled of it
        shutil.copy(ROOT / "tests" / "__init__.py", root / "tests")
        text = (root / file).read_text()
        assert text.count(old) == 1, f"{name}: its text occurs {text.count(old)} times in {file}: adapt it"
        (root / file).write_text(text.replace(old, new) + _MORE.get(name, ""))
        environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        tests = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not tie_rule", *_TESTS]
        command = [sys.executable, *(["-c", _PROGRAMS] if by_programs else tests)]
        try:
            run = subprocess.run(
                command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=ENDS_S
            )
        except subprocess.TimeoutExpired:
            return f"no end within {ENDS_S} s"
    assert run.returncode in (0, 1), f"{name}: the tests do not even start: {run.stdout[-1000:]}{run.stderr[-1000:]}"
    if by_programs:
        assert run.returncode == 0, f"{name}: the programs do not even start: {run.stderr[-2000:]}"
        return run.stdout.strip()
    return "" if run.returncode == 0 else run.stdout.strip().splitlines()[-2]


def main() -> int:
    """Prints how each fault is caught; 1 where one survives."""
    survivors = 0
    for name in sys.argv[1:] or sorted(TIE_RULES | OF_CLASSES):
        difference = hunt(name, by_programs=True)
        survivors += not difference
        print(f"{name:30} {difference.splitlines()[0][:110] if difference else 'SURVIVES'}", flush=True)
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
