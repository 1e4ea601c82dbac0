"""Examines a whole data directory, in order: locks, the map, each shard, and what must hold between them.

`hold` takes the locks of every journal first, and they are held to the end. So the doctor never examines a directory in
which a daemon runs, whose files change meanwhile, and no daemon can start during the examination.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final, Generic, NamedTuple, TypeVar

from billing.doctor.directory import Directory
from billing.doctor.history import Chains, history_files, open_history, path_of
from billing.doctor.log import Log
from billing.doctor.notices import examine_notices
from billing.doctor.owners import OwnerMap, compare_owners, examine_map
from billing.doctor.report import Report
from billing.doctor.shard import Moves, Shard
from billing.doctor.statements import Statements
from shards.system.disk import LOST_AND_FOUND, Disk

MAP: Final = "map"
LOCK: Final = "lock"
SHARD: Final = "shard-"
HISTORY: Final = "history"

Progress = Callable[[str, int, int], None]  # path of the log, bytes read so far, bytes in all


L = TypeVar("L", bound=Log)


class Logs(NamedTuple, Generic[L]):
    """The journals to examine."""

    numbers: list[int]  # of shards, ascending; the first is 0 if there is a journal of the map
    opened: Callable[[int], L]  # opens the journal of a number
    is_shared: bool  # other hosts may have served some of its shards, and have the histories of these


class DaemonRuns(Exception):
    """A daemon runs on the data."""


class Absent(Exception):
    """There is no data directory, or there are no data in it."""


def shards_in(names: list[str]) -> list[int]:
    """The numbers of the shards whose directories are among these names, ascending."""
    numbers = [name.removeprefix(SHARD) for name in names if name.startswith(SHARD)]
    return sorted(int(number) for number in numbers if number.isdecimal())


def hold(disk: Disk, data_dir: str, stack: ExitStack) -> None:
    """Takes the lock of every journal until the stack is closed. Raises DaemonRuns, Absent."""
    is_filled = disk.exists(data_dir) and set(disk.listdir(data_dir)) - {LOST_AND_FOUND}
    restoring = f"{data_dir}/restored.unfinished" if is_filled else f"{data_dir.rstrip('/')}.unfinished"
    if disk.exists(restoring) and disk.listdir(restoring):
        raise Absent(f"a backup is being restored, or its restore was cut off: restore again (file {restoring})")
    if not disk.exists(data_dir):
        raise Absent(f"there is no data directory {data_dir}")
    names = disk.listdir(data_dir)
    rooms = [name for name in (MAP, *(f"{SHARD}{shard}" for shard in shards_in(names))) if name in names]
    if not rooms:
        raise Absent(f"{data_dir} holds no data: there is neither a map nor a shard in it")
    for room in rooms:
        path = f"{data_dir}/{room}/{LOCK}"
        if not disk.exists(path):
            continue
        try:
            handle = disk.lock(path)
        except BlockingIOError:
            raise DaemonRuns(f"a daemon runs on {data_dir}: {path} is locked. Stop it, or look at a copy") from None
        except OSError as error:
            if error.errno == errno.EROFS:  # a daemon cannot run on a read-only file system either
                continue
            raise
        stack.callback(disk.close, handle)


def examine(
    disk: Disk, data_dir: str, ids_max: int, report: Report, progress: Progress, seed: bytes = b""
) -> dict[int, Directory]:
    """Checks all data in the directory; returns the journals by shard, with 0 for the map's. The caller must have
    called `hold`. Raises OSError.

    ids_max: the number of request ids that a bucket keeps, by the configuration. seed: selects the accounts whose
    statements are checked.
    """
    names = disk.listdir(data_dir)

    def opened(number: int) -> Directory:
        return Directory(disk, f"{data_dir}/{SHARD}{number}" if number else f"{data_dir}/{MAP}", number, report)

    numbers = [*([0] if MAP in names else []), *shards_in(names)]
    return examine_logs(Logs(numbers, opened, False), disk, data_dir, ids_max, report, progress, seed)


def examine_logs(
    logs: Logs[L], disk: Disk, data_dir: str, ids_max: int, report: Report, progress: Progress, seed: bytes = b""
) -> dict[int, L]:
    """As `examine`, with the journals that `logs` opens; history and notices are in `data_dir`."""
    directories: dict[int, L] = {}
    owners: OwnerMap | None = None
    shards = [number for number in logs.numbers if number]
    if 0 in logs.numbers:
        directories[0] = logs.opened(0)
        report.count("files", "journals")
        owners = examine_map(directories[0], report)
    else:
        report.fault("owners", "there is no map", file=f"{data_dir}/{MAP}")
    if owners is None:
        report.not_checked("owners", "nobody says who owns what")
    held: dict[int, dict[int, int]] = {}
    untouched: dict[int, set[int]] = {}
    statements = Statements(report, seed)
    moves, chains = Moves(), Chains(report, statements)
    why_none = why_no_history(disk, data_dir, shards, is_shared=logs.is_shared)
    has_history = not why_none
    if why_none:
        report.not_checked("history", why_none)
        report.not_checked("statements", why_none)
    for number in shards:
        directory = directories[number] = logs.opened(number)
        report.count("files", "journals")
        shard = Shard(directory, owners, moves, statements, report, ids_max)
        path = path_of(data_dir, number)
        is_retired = owners is not None and number not in owners.weights
        history = None
        if has_history and disk.exists(path):
            history = open_history(disk, path, number, chains, report, is_retired=is_retired)

        def on_bytes(done: int, directory: Log = directory) -> None:
            progress(directory.path, done, directory.bytes_total)

        if shard.examine(history, on_bytes):
            held[number] = {bucket.bucket_id: bucket.generation for bucket in shard.held.values()}
            untouched[number] = shard.untouched
            if has_history:
                for bucket in shard.owned():
                    chains.expect(bucket)
                if shard.entries and not disk.exists(path):
                    missing(directory, path, chains, report)
    retired = set[int]() if owners is None else set(shards) - owners.weights.keys()
    examine_notices(disk, data_dir, directories, retired, report)
    if has_history:
        lone_histories(disk, data_dir, directories, owners, chains, report)
        if len(held) == len(shards):
            compare_balances(chains, statements, report)
    if owners is not None:
        for shard_id in missing_shards(owners, shards, data_dir, report):
            held[shard_id] = {}
        if directories[0].damage is None:
            compare_owners(owners, held, untouched, report)
    moves.compare(report)
    if report.sums and sum_off(report.sums):
        report.fault("conservation", f"over all accounts the sums are {sum_off(report.sums)} internal units off")
    return directories


def why_no_history(disk: Disk, data_dir: str, shards: list[int], *, is_shared: bool) -> str:
    """Why the history cannot be compared with the journals; "" if it can."""
    if not disk.exists(f"{data_dir}/{HISTORY}"):
        return "there is no history"
    if is_shared and not all(disk.exists(path_of(data_dir, shard)) for shard in shards):
        return "this host does not have that of every shard"
    return ""


def compare_balances(chains: Chains, statements: Statements, report: Report) -> None:
    """Checks that the rows of all files add up to the balances and statements. Skipped, with a note, if rows already
    have faults.
    """
    if report.faults["history"]:
        report.not_checked("history", "whether the rows of all files add up to the balances")
        report.not_checked("statements", "rows are not what they must be")
    else:
        chains.link()
        statements.compare()


def lone_histories(
    disk: Disk, data_dir: str, directories: Mapping[int, Log], owners: OwnerMap | None, chains: Chains, report: Report
) -> None:
    """Examines the history files whose journal is not among `directories`. Such a file is a fault, unless its shard was
    drained and removed: then nothing is added to it any more, and a log on servers has no journal of the shard.
    """
    for number in history_files(disk.listdir(f"{data_dir}/{HISTORY}")):
        if number in directories:
            continue
        path = path_of(data_dir, number)
        if owners is None or number in owners.weights or number not in owners.founded:
            report.fault("history", "its journal is gone", file=path)
        elif history := open_history(disk, path, number, chains, report, is_retired=True):
            history.end(history.position + 1, history.position)


def missing_shards(owners: OwnerMap, numbers: list[int], data_dir: str, report: Report) -> list[int]:
    """The shards of the map that have no journal. Reports a fault for each that has served before."""
    gone = [shard_id for shard_id in sorted(owners.weights) if shard_id not in numbers]
    for shard_id in gone:
        if shard_id in owners.founded:
            report.fault("owners", f"the directory of shard {shard_id} is missing", file=data_dir)
    return gone


def missing(directory: Log, path: str, chains: Chains, report: Report) -> None:
    """Reports that a shard with entries has no history file: a note if its journal goes back to position 1, because the
    power may have failed before the daemon's first run made the file; otherwise a fault.
    """
    if directory.first_position == 1:
        report.note(f"{path} is not there yet; the next start makes it from the journal, which is whole")
        chains.is_behind = True
    else:
        report.fault("history", f"the history of shard {directory.shard} is missing", file=path)


def sum_off(sums: dict[str, int]) -> int:
    """The difference between the sum of all balances and the sum of all entries, in internal units; must be 0."""
    expected = sums["top_ups"] - sums["debits"] - sums["accrued"] + sums["adjustments"] - sums["paid_out"]
    return sums["balances"] - expected
