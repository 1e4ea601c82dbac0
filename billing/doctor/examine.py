"""The examination of a whole data directory, in order: locks, the map, each shard, and what must hold between them.

The locks of every journal are taken first and held to the end: a directory in which something runs is not looked at,
because its files change meanwhile, and nothing can start while it is looked at.
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
from shards.system.disk import Disk

MAP: Final = "map"
LOCK: Final = "lock"
SHARD: Final = "shard-"
HISTORY: Final = "history"

Progress = Callable[[str, int, int], None]  # what is read, bytes of it done, bytes of it in all


L = TypeVar("L", bound=Log)


class Logs(NamedTuple, Generic[L]):
    """The journals there are."""

    numbers: list[int]  # of shards, ascending; before them 0, where there is that of the map
    opened: Callable[[int], L]
    is_shared: bool  # other hosts may have served shards of it: they have their histories


class DaemonRuns(Exception):
    """Something runs on the directory."""


class Absent(Exception):
    """There is no data directory, or nothing in it."""


def shards_in(names: list[str]) -> list[int]:
    """The numbers of the shards whose directories are among these names, ascending."""
    numbers = [name.removeprefix(SHARD) for name in names if name.startswith(SHARD)]
    return sorted(int(number) for number in numbers if number.isdecimal())


def hold(disk: Disk, data_dir: str, stack: ExitStack) -> None:
    """Takes the lock of every journal until the stack is closed. Raises DaemonRuns, Absent."""
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
            if error.errno == errno.EROFS:  # nothing can run on it either
                continue
            raise
        stack.callback(disk.close, handle)


def examine(
    disk: Disk, data_dir: str, ids_max: int, report: Report, progress: Progress, seed: bytes = b""
) -> dict[int, Directory]:
    """Checks everything there is; the journals by shard, 0 the map's. Call `hold` before. Raises OSError.

    ids_max: request ids kept a bucket, by the configuration. seed: which accounts' statements are proved.
    """
    names = disk.listdir(data_dir)

    def opened(number: int) -> Directory:
        return Directory(disk, f"{data_dir}/{SHARD}{number}" if number else f"{data_dir}/{MAP}", number, report)

    numbers = [*([0] if MAP in names else []), *shards_in(names)]
    return examine_logs(Logs(numbers, opened, False), disk, data_dir, ids_max, report, progress, seed)


def examine_logs(
    logs: Logs[L], disk: Disk, data_dir: str, ids_max: int, report: Report, progress: Progress, seed: bytes = b""
) -> dict[int, L]:
    """As `examine`, with the journals wherever they are; history and notices are in `data_dir`."""
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
    examine_notices(disk, data_dir, directories, report)
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
    """Why the history is not held against the journals; empty where it is."""
    if not disk.exists(f"{data_dir}/{HISTORY}"):
        return "there is no history"
    if is_shared and not all(disk.exists(path_of(data_dir, shard)) for shard in shards):
        return "this host does not have that of every shard"
    return ""


def compare_balances(chains: Chains, statements: Statements, report: Report) -> None:
    """Whether the rows of all files, each of which is its entry, add up; only where none is at fault."""
    if report.faults["history"]:
        report.not_checked("history", "whether the rows of all files add up to the balances")
        report.not_checked("statements", "rows are not what they must be")
    else:
        chains.link()
        statements.compare()


def lone_histories(
    disk: Disk, data_dir: str, directories: Mapping[int, Log], owners: OwnerMap | None, chains: Chains, report: Report
) -> None:
    """A history is made of a journal: one without it is a fault, but for that of a shard that was drained and is gone,
    to which nothing is added any more; a log on servers has no journals of such shards.
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
    """Shards of the map without a directory; a fault where one has served before."""
    gone = [shard_id for shard_id in sorted(owners.weights) if shard_id not in numbers]
    for shard_id in gone:
        if shard_id in owners.founded:
            report.fault("owners", f"the directory of shard {shard_id} is missing", file=data_dir)
    return gone


def missing(directory: Log, path: str, chains: Chains, report: Report) -> None:
    """A shard with entries has no history file. It is made when the daemon first runs, and the power may go before."""
    if directory.first_position == 1:
        report.note(f"{path} is not there yet; the next start makes it from the journal, which is whole")
        chains.is_behind = True
    else:
        report.fault("history", f"the history of shard {directory.shard} is missing", file=path)


def sum_off(sums: dict[str, int]) -> int:
    """By how much all balances differ from what all entries sum up to; 0 is right."""
    expected = sums["top_ups"] - sums["debits"] - sums["accrued"] + sums["adjustments"] - sums["paid_out"]
    return sums["balances"] - expected
