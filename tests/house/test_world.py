"""One module reads clocks, one touches files: whoever needs either is handed it, or its instants.

Where something else must touch a file after all, it stands in `FILES` with what it may do and why.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.house.source import ROOMS, Module, imports, is_below, module_of, modules, uses

CLOCK = "shards/system/clock.py"
DISK = "shards/system/disk.py"

# Where a process begins, it takes the clocks of its machine; whatever it makes is handed them.
PROCESSES = {
    *("shards/system/host.py", "billing/worker/dependencies.py", "billing/service/serve.py"),
    *("billing/history/projector.py", "billing/history/replica.py", "billing/notices/notifier.py"),
    *("billing/backup/command.py", "billing/backup/rebuild.py", "billing/doctor/cut.py"),
}
PROGRAMS = ("billing/cli/", "billing/trial/")  # of their own, beside the daemon

# path -> (what it may use, why)
FILES: dict[str, tuple[set[str], str]] = {
    CLOCK: ({"os.read"}, "the count of the timerfd"),
    "shards/system/links.py": ({"os.open", "os.stat", "os.unlink"}, "the directory of the workers' unix sockets"),
    "billing/api/tls.py": ({"open", "os.memfd_create"}, "certificates in memory: ssl takes them by path alone"),
    "billing/api/request_reader.py": ({"unpacker.read_bytes"}, "no file: bytes that a decoder was fed"),
    "billing/service/listeners.py": ({"os.path.exists", "os.stat", "os.unlink"}, "the door's unix socket"),
    "billing/service/logs.py": ({"os.fstat"}, "whether standard error is the journal's"),
    "billing/service/steady_stream.py": (
        {"os.write", "os.fstat", "os.open"},
        "standard error, on which records are logged",
    ),
    "billing/trial/log_servers.py": ({"shutil", "file.write_text"}, "nats-servers of a trial, and what they are told"),
    "billing/trial/own_daemon.py": ({"tempfile"}, "the data directory of a demonstration, thrown away behind it"),
    "billing/trial/loadtest/writing.py": ({"path.write_bytes", "path.read_bytes"}, "results, reports of a load test"),
    "billing/client/client.py": ({"().read_text"}, "the file of a token, where a caller names one"),
    "billing/cli/output.py": ({"os.open"}, "standard output that is closed or full, put on /dev/null"),
    "billing/doctor/notices.py": ({"sqlite3"}, "owed notices are kept in SQLite files"),
    "billing/doctor/history.py": ({"sqlite3"}, "history is derived data, read out of SQLite files a second time"),
    "billing/cli/finding.py": ({"open"}, "the configuration, which says where the daemon listens"),
    "billing/cli/options.py": ({"().write_text"}, "no file: the paragraphs of help"),
    "billing/cli/places.py": ({"os.stat"}, "why a file that the command line names cannot be read"),
    "billing/cli/showing.py": ({"shutil"}, "no file: the width of the terminal"),
    "billing/cli/token_commands.py": (
        {
            *("open", "fcntl", "os.open", "os.stat", "os.fchmod", "os.fchown", "os.fsync", "os.rename", "os.unlink"),
        },
        "the tokens file, put in place whole",
    ),
    "billing/cli/console/session.py": ({"file.touch"}, "what was typed before, kept in the user's own state folder"),
    "billing/backup/rebuild.py": ({"sqlite3"}, "the errors of the followers' files"),
    "billing/follower/damage.py": ({"sqlite3"}, "a table of a damaged SQLite file"),
    "billing/follower/store.py": ({"sqlite3"}, "a follower's derived data, kept in an SQLite file"),
    "billing/history/copying.py": ({"sqlite3"}, "SQLite's own online copy, for a backup"),
    "billing/history/accounts.py": ({"sqlite3"}, "history is derived data, kept in an SQLite file"),
    "billing/history/batches.py": ({"sqlite3"}, "a table of an SQLite file"),
    "billing/history/entries.py": ({"sqlite3"}, "history is derived data, read out of SQLite files"),
    "billing/history/feed_part.py": ({"sqlite3"}, "history is derived data, read out of an SQLite file"),
    "billing/history/gaps.py": ({"sqlite3"}, "what an SQLite file lacks, and what it has"),
    "billing/history/mending.py": ({"sqlite3"}, "a copy of an SQLite file, which gets what that lacks"),
    "billing/history/mender.py": ({"sqlite3"}, "the errors of the store"),
    "billing/history/projector.py": ({"sqlite3"}, "the errors of the store"),
    "billing/history/history_reader.py": ({"sqlite3"}, "history is derived data, read out of SQLite files"),
    "billing/history/openings.py": ({"sqlite3"}, "a table of an SQLite file"),
    "billing/history/restoring.py": ({"sqlite3"}, "what a backup's SQLite file has"),
    "billing/history/retention.py": ({"sqlite3"}, "what is old in an SQLite file"),
    "billing/history/salvage.py": ({"sqlite3"}, "what is good in a damaged SQLite file"),
    "billing/history/store.py": ({"sqlite3"}, "history is derived data, kept in an SQLite file"),
    "billing/history/tables.py": ({"sqlite3"}, "the tables of an SQLite file"),
    "billing/notices/copying.py": ({"sqlite3"}, "SQLite's own online copy, for a backup"),
    "billing/notices/opening.py": ({"sqlite3"}, "what is good in a damaged SQLite file"),
    "billing/notices/store.py": ({"sqlite3"}, "owed notices are derived data, kept in an SQLite file"),
    "billing/service/beginning.py": ({"open", "os.open", "os.fstat"}, "descriptors 0 to 2, where they are closed"),
    "billing/config/load.py": (
        {"open", "os.stat", "os.access", "os.path.isdir", "os.path.lexists"},
        "the configuration and the files and folders named in it",
    ),
}

DATE_CALLS = {"now", "utcnow", "today"}
OS_CALLS = {
    *("open", "fdopen", "read", "readv", "pread", "preadv", "write", "writev", "pwrite", "pwritev", "sendfile"),
    *("fsync", "fdatasync", "sync", "truncate", "ftruncate", "posix_fallocate", "rename", "renames", "replace", "link"),
    *(
        "symlink",
        "unlink",
        "remove",
        "removedirs",
        "rmdir",
        "mkdir",
        "makedirs",
        "mkfifo",
        "mknod",
        "listdir",
        "scandir",
    ),
    *("walk", "fwalk", "stat", "lstat", "fstat", "statvfs", "fstatvfs", "access", "chmod", "chown", "fchmod", "fchown"),
    *("utime", "lseek", "readlink", "copy_file_range", "memfd_create", "lockf"),
    *("path.exists", "path.lexists", "path.isfile", "path.isdir", "path.islink", "path.getsize", "path.getmtime"),
}
PATH_CALLS = {"read_text", "read_bytes", "write_text", "write_bytes", "iterdir", "rglob", "touch", "open_binary"}
FILE_MODULES = {
    "shutil",
    "tempfile",
    "mmap",
    "sqlite3",
    "fileinput",
    "glob",
    "fcntl",
    "shelve",
    "dbm",
    "importlib.resources",
}


def clock_reads(module: Module) -> Iterator[str]:
    if module.path == CLOCK:
        return
    for line, name in imports(module):
        if is_below(name, "time"):
            yield f"{module.path}:{line} imports {name}"
    for line, name in uses(module):
        *origin, last = name.split(".")
        of_date = last in DATE_CALLS and origin and origin[-1] in ("datetime", "date")
        if of_date or (last == "time" and origin and origin[-1].endswith(("loop", "()"))):
            yield f"{module.path}:{line} uses {name}"


def takes_clocks(module: Module) -> Iterator[str]:
    if module.path in {CLOCK, *PROCESSES} or module.path.startswith(PROGRAMS):
        return
    for line, name in imports(module):
        if name == "shards.system.clock.MACHINE_CLOCKS":
            yield f"{module.path}:{line} takes the clocks of the machine"


def file_touches(module: Module) -> Iterator[tuple[str, str]]:
    """(what is used, where)"""
    for line, name in imports(module):
        for forbidden in FILE_MODULES:
            if is_below(name, forbidden):
                yield forbidden, f"{module.path}:{line} imports {name}"
        if name.startswith("os.") and name.removeprefix("os.") in OS_CALLS:
            yield name, f"{module.path}:{line} imports {name}"
    for line, name in uses(module):
        origin, _, last = name.rpartition(".")
        touches = name in ("open", "io.open", "os.path.exists") or last in PATH_CALLS
        if touches or (name.startswith("os.") and name.removeprefix("os.") in OS_CALLS) or origin == "Path.open":
            yield name, f"{module.path}:{line} uses {name}"


def test_one_module_reads_clocks() -> None:
    assert [where for module in modules(*ROOMS) for where in clock_reads(module)] == []


def test_clocks_are_taken_where_a_process_begins_and_handed_in_everywhere_else() -> None:
    assert [where for module in modules(*ROOMS) for where in takes_clocks(module)] == []
    text = "from shards.system.clock import MACHINE_CLOCKS"
    assert list(takes_clocks(module_of("billing/expirationd/delivery.py", text)))
    assert list(takes_clocks(module_of("shards/worker/worker.py", text)))
    assert not list(takes_clocks(module_of("billing/trial/receiver.py", text)))


def test_one_module_touches_files() -> None:
    assert [
        where
        for module in modules(*ROOMS)
        for name, where in file_touches(module)
        if module.path != DISK and name not in FILES.get(module.path, (set(), ""))[0]
    ] == []


def test_every_exception_is_used_and_says_why() -> None:
    by_path = {module.path: module for module in modules(*ROOMS)}
    for path, (allowed, why) in FILES.items():
        assert why, path
        assert allowed == {name for name, _ in file_touches(by_path[path])} & allowed, path


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "from time import monotonic",
        "def f(loop):\n    return loop.time()",
        "import asyncio\nasyncio.get_running_loop().time()",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.utcnow()",
        "from datetime import date\nread = date.today",
    ],
)
def test_the_rule_of_clocks_sees(text: str) -> None:
    assert list(clock_reads(module_of("billing/x.py", text)))


@pytest.mark.parametrize(
    "text",
    [
        "from shards.system.clock import Clocks\ndef f(clocks: Clocks):\n    return clocks.boot_ns()",
        "from datetime import UTC, datetime\ndatetime.fromtimestamp(0, UTC)",
        "time = 5\nprint(time)",
        "import asyncio\nasyncio.timeout(5)",
    ],
)
def test_the_rule_of_clocks_allows(text: str) -> None:
    assert not list(clock_reads(module_of("billing/x.py", text)))


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "with open('x') as file: pass",
        "import os\nos.open('x', 0)",
        "import os\nwrite = os.write",
        "from os import fsync",
        "import os\nos.path.exists('x')",
        "from pathlib import Path\nPath('x').read_text()",
        "import shutil",
        "from tempfile import mkdtemp",
        "import sqlite3",
    ],
)
def test_the_rule_of_files_sees(text: str) -> None:
    assert list(file_touches(module_of("billing/x.py", text)))


@pytest.mark.parametrize(
    "text",
    [
        "def f(disk):\n    disk.open('x')\n    disk.rename('a', 'b')",
        "import os\nos.getpid()\nos.path.join('a', 'b')\nos.close(3)",
        "import os\nos.open = None",
        "from pathlib import Path\nPath('x').parent",
    ],
)
def test_the_rule_of_files_allows(text: str) -> None:
    assert not list(file_touches(module_of("billing/x.py", text)))
