"""Memory of one account in a worker, by kind of account: the ledger alone, in a process of its own for each kind.

An account has money and one rate line. It is larger if the line is named by its resource (as the reports of machines
name it), and if the daemon remembers request ids, for seven days: here one of the top-up and one of the rate. The
figure is the resident memory above that of a ledger without accounts, divided by the number of accounts.

    python -m benchmarks.account_size
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys

import psutil

from billing.ledger import commands as ops
from billing.ledger.ledger import Ledger, Rules

BUCKETS = 1000
KINDS = {
    "unnamed line": (b"", b"", b""),
    "named line": (b"vm-1", b"", b""),
    "named line, two request ids": (b"vm-1", b"import:balance", b"import:rate:vm-1"),
}


def bytes_an_account(kind: str, accounts: int) -> float:
    """Returns the resident bytes per account, measured in this process, which must have created no accounts
    before.
    """
    resource, of_top_up, of_rate = KINDS[kind]
    ledger = Ledger(Rules(False, 10**6, False), lambda ref, due_ns: due_ns)
    for bucket_id in range(1, BUCKETS + 1):
        ledger.create(bucket_id)
        ledger.wake(bucket_id)
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    for number in range(accounts):
        bucket_id, user = number % BUCKETS + 1, b"user_%08d" % number
        ledger.apply(bucket_id, 1, (ops.TOP_UP, user, 10**15, 0, 0, b"", of_top_up, b"", b"", b""))
        ledger.apply(bucket_id, 2, (ops.SET_RATE, user, 5, -1, -1, resource, of_rate, b"", b"", b""))
        ledger.records.clear()
    gc.collect()
    return (process.memory_info().rss - before) / accounts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=200_000)
    parser.add_argument("--kind", choices=KINDS, help="only this one, in this process")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.kind is not None:
        print(round(bytes_an_account(arguments.kind, arguments.accounts)))
        return
    sizes = {}
    for kind in KINDS:
        command = [sys.executable, "-m", "benchmarks.account_size", "--kind", kind]
        ended = subprocess.run(
            [*command, "--accounts", str(arguments.accounts)], check=True, capture_output=True, text=True
        )
        sizes[kind] = int(ended.stdout)
    if arguments.json:
        print(json.dumps(sizes))
    else:
        for kind, size in sizes.items():
            print(f"{kind:30}{size:8} bytes an account")


if __name__ == "__main__":
    main()
