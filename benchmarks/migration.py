"""How long the import of a million accounts takes: `billing import` of CSV and of a snapshot that Tarantool wrote.

Both files are made first: the CSV with a balance and one rate line per account, so two commands each; the snapshot by
the `tarantool` in PATH, with the spaces of `docs/coming-from-tarantool.md`. Each is imported into an empty daemon by
the command that users run. Seconds are those of the whole command: reading, sending, waiting for the last durable
answer. CPU is that of the command, and that of the daemon with its history.

    python -m benchmarks.migration --accounts 1000000
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import show_each
from tests.system.daemon import Daemon

SNAPSHOT = """
box.cfg{wal_mode = 'none', memtx_memory = 2^31, log = 'log'}
local balance = box.schema.space.create('balance')
balance:format({{name = 'username', type = 'string'}, {name = 'coins', type = 'unsigned'}})
balance:create_index('primary', {type = 'hash', parts = {'username'}})
for number = 1, tonumber(arg[1]) do
    balance:insert{string.format('user_%08d', number), 100 + number % 1000}
end
box.snapshot()
os.exit(0)
"""


def csv_file(directory: Path, accounts: int) -> Path:
    """Writes a CSV file with one line per account: a balance, and one machine billed by the hour."""
    path = directory / "accounts.csv"
    with path.open("w") as file:
        file.write("user_id,balance,resource,rate,per\n")
        for number in range(accounts):
            file.write(f"user_{number:08d},{100 + number % 1000}.25,vm-1,0.0{number % 9 + 1},hour\n")
    return path


def snapshot_file(directory: Path, accounts: int) -> Path:
    """Lets Tarantool write a snapshot with one tuple per account."""
    (directory / "make.lua").write_text(SNAPSHOT)
    subprocess.run(["tarantool", "make.lua", str(accounts)], cwd=directory, check=True, capture_output=True)
    return max(directory.glob("*.snap"))


def imported(path: Path, directory: Path, accounts: int) -> dict[str, Any]:
    """Imports the file once, into a daemon of its own. Returns figures."""
    with Daemon(directory, journal__segment_bytes=64 * 1024 * 1024) as daemon:
        command = [sys.executable, "-m", "billing", "import", str(path), "--address", daemon.address]
        before, daemon_s, began = (
            resource.getrusage(resource.RUSAGE_CHILDREN),
            daemon.cpu_seconds(True),
            time.monotonic(),
        )
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        took_s = time.monotonic() - began
        after, daemon_s = resource.getrusage(resource.RUSAGE_CHILDREN), daemon.cpu_seconds(True) - daemon_s
    assert f"imported {accounts:,} accounts" in ended.stdout, ended.stdout + ended.stderr
    command_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(took_s, 1),
        "accounts_per_s": round(accounts / took_s),
        "command_cpu_s": round(command_s, 1),
        "daemon_cpu_s": round(daemon_s, 1),
        "command_mib": round(after.ru_maxrss / 1024),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=1, help="of each file")
    parser.add_argument("--directory", default="/tmp", help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    makers: list[Callable[[Path, int], Path]] = [csv_file]
    if shutil.which("tarantool"):
        makers.append(snapshot_file)
    else:
        print("tarantool is not installed: only CSV is imported", file=sys.stderr)
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        for maker in makers:
            source_directory = Path(name) / maker.__name__
            source_directory.mkdir()
            path = maker(source_directory, arguments.accounts)
            for run in range(arguments.runs):
                data_directory = source_directory / f"daemon-{run}"
                data_directory.mkdir(mode=0o700)
                runs.setdefault(path.suffix, []).append(imported(path, data_directory, arguments.accounts))
    show_each(arguments, runs)


if __name__ == "__main__":
    main()
