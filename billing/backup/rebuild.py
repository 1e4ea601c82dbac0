"""`billing rebuild`: makes the files of history and notices again while the daemon does not run.

For every shard whose journal exists, including shards that are gone from the map, the file is opened with suspicion, as
its own process would open it: a damaged file is made anew from its sound pages, a missing file is created, and all
later entries are read from the journal, to its end. So the followers of a shard that an older version removed too early
also reach the journal's end: the other shards take over the notices that they owed at the next start.

Rows that neither file nor journal has are restored from a backup (`--from-backup`), and so are the histories of drained
shards, which no log on servers has and only the host on which a backup was restored; the states of accounts when the
journal began, from the oldest snapshot that is kept (`billing.history.restoring`).

A file that is ahead of its journal proves that the journal lost batches. It is cut back with `--accept-loss` alone; a
copy of it is kept beside it as `ahead-…`.

Where the log is shared (`journal.kind = "jetstream"`), the shards are those that the log holds, and the files are this
host's; another host may serve meanwhile.

The files are the data directory's owner's, also where root rebuilds them, as for a service of systemd.

`--map` makes a missing bucket map again, from the buckets that the shards hold (`shards.supervisor.lost_map`).
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import click
import msgspec

from billing.cli.finding import config_file as found_config
from billing.cli.options import Command, config_option
from billing.cli.output import put
from billing.cli.places import DIRECTORY, Misplaced
from billing.doctor.examine import SHARD, Absent, DaemonRuns, hold, shards_in
from billing.follower.proof import Unproved
from billing.follower.store import ShardFile, StoreError, code_of, file_of, reason_of, shard_files
from billing.history import store as history
from billing.history.history_reader import HistoryReader
from billing.history.restoring import NO_JOURNAL, JournalPart, merge, open_accounts
from billing.notices import opening as notices
from shards.batch import BatchCorrupt
from shards.counting import counted
from shards.exits import ending_of, text_of
from shards.journal import Backend, JournalError, Reader, backends
from shards.supervisor.lost_map import MapLost, held_by, map_of, records_of, says_who_owns
from shards.supervisor.registry import LOCK
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import DirectoryRefused, Disk, RealDisk, give_to_owner, private_directory
from shards.system.host import REAL

ROWS_AT_ONCE = 20_000


class MapThere(Exception):
    """The map of the buckets is not gone: none is made again."""


@click.command(cls=Command)
@config_option
@click.option("--shard", type=int, help="Only the files of this shard.")
@click.option("--map", "map_too", is_flag=True, help="Makes the map of the buckets again, where it is gone, first.")
@click.option("--from-backup", type=DIRECTORY, metavar="DIRECTORY", help="Brings back what this backup has of history.")
@click.option("--accept-loss", is_flag=True, help="A file that is ahead of its journal is cut back; a copy is kept.")
def rebuild(
    config_file: str | None, shard: int | None, map_too: bool, from_backup: Path | None, accept_loss: bool
) -> None:
    """Makes history and notices again from the journal, and from what is good in their files.

    What the journal does not have any more is taken from a backup with --from-backup DIRECTORY; how accounts stood when
    the journal begins, from its oldest snapshot.

    With --map a missing bucket map is made again first, from the buckets that the shards hold.
    The daemon must be stopped. What cannot be made again is said, here and in each answer that misses it.
    """
    from billing.config.load import load, log_of, shard_count

    config = load(found_config(config_file, os.environ), os.environ).config
    disk, data_dir = RealDisk(), config.daemon.data_dir
    try:
        backend = backends.open(log_of(config), REAL)
        backend.prepare()  # else this host's files could be made of another cluster's journals
        is_shared = config.journal.is_shared
        shards_here = shards_in(disk.listdir(data_dir)) if disk.exists(data_dir) else []
        held = sorted(number for number in {*shards_here, *range(1, shard_count(config) + 1)} if backend.holds(number))
        with ExitStack() as stack:
            if disk.exists(data_dir):
                stack.callback(give_to_owner, data_dir)
            if map_too:  # before `hold` below takes the map's lock, which the map's log takes itself
                where = "stream M on the servers of the log" if is_shared else f"{data_dir}/map"
                put(rebuild_map(backend, held, config.shards.bucket_count, where))
                if is_shared and not disk.exists(data_dir):
                    return  # this host has no files yet; its start makes them
            if is_shared:
                shards_here = held
            hold_host(disk, data_dir, stack) if is_shared else hold(disk, data_dir, stack)
            check_shards(shard, shards_here)
            for number in [number for number in shards_here if shard in (None, number)]:
                reader = backend.reader(number)
                stack.callback(reader.close)
                options = {"accept_loss": accept_loss, "is_shared": is_shared}
                for line in rebuild_shard(disk, data_dir, number, reader, backup=str(from_backup or ""), **options):
                    put(line)
            if from_backup is not None and shard is None:
                for line in bring_drained(disk, data_dir, str(from_backup), shards_here):
                    put(line)
    except (DaemonRuns, MapThere) as refused:
        raise click.ClickException(str(refused)) from None
    except Absent as refused:
        raise Misplaced(str(refused)) from None
    except (JournalError, BatchCorrupt, MapLost) as error:
        click.echo(f"billing: {text_of(error)}", err=True)
        sys.exit(ending_of(error).code)
    except (DirectoryRefused, OSError) as error:
        click.echo(f"billing: {text_of(error)}", err=True)
        sys.exit(ending_of(error).code)
    except (StoreError, Unproved, sqlite3.Error) as error:
        click.echo(f"billing: {reason_of(error)}", err=True)
        sys.exit(code_of(error))


def hold_host(disk: Disk, data_dir: str, stack: ExitStack) -> None:
    """Takes the lock of this host's daemon until the stack is closed; for a shared log, whose journals have no locks.
    Raises DaemonRuns, Absent.
    """
    if not disk.exists(data_dir):
        raise Absent(f"there is no data directory {data_dir}")
    path = f"{data_dir}/{LOCK}"
    if disk.exists(path):
        try:
            stack.callback(disk.close, disk.lock(path))
        except BlockingIOError:
            raise DaemonRuns(f"a daemon runs on {data_dir}: {path} is locked. Stop it first") from None


def check_shards(asked_for: int | None, shards: list[int]) -> None:
    """Raises Absent where no journal was ever begun, or not that of the shard that was asked for."""
    if not shards:
        raise Absent("the log holds no data: no shard of it was ever served")
    if asked_for not in (None, *shards):
        raise Absent(f"there is no shard {asked_for}: the shards are {', '.join(map(str, shards))}")


def rebuild_map(backend: Backend, shards: list[int], bucket_count: int, where: str) -> str:
    """Makes the map again from the buckets that the shards hold. Returns a line about it. `where`: the place of the
    map, for people. Raises MapThere where a map exists already; MapLost; BatchCorrupt; JournalError.
    """
    log = backend.map_log(MACHINE_CLOCKS.wall_ns)
    try:
        version, payloads = log.load("billing rebuild")
        if any(says_who_owns(payload) for payload in payloads):
            raise MapThere(
                f"there is a map of the buckets already, {where} (version {version}): nothing was changed. Without "
                "--map, `billing rebuild` makes history and notices again; `billing doctor` says whether it is right"
            )
        held = {}
        for number in shards:
            with closing(backend.reader(number)) as reader:
                held[number] = held_by(reader)
        bucket_map = map_of(held, bucket_count)
        log.decide(version, msgspec.msgpack.encode(records_of(bucket_map)))
    finally:
        log.close()
    owned = ", ".join(f"shard {number} owns {len(bucket_map.buckets_of(number))}" for number in shards)
    return f"map: made again from what the shards hold: {owned}"


def rebuild_shard(
    disk: Disk,
    data_dir: str,
    shard: int,
    reader: Reader,
    *,
    accept_loss: bool,
    backup: str = "",
    is_shared: bool = False,
) -> Iterator[str]:
    """Brings the files of one shard to the end of its journal. Yields lines about what was done. `backup`: a directory
    that `billing backup` wrote. `is_shared`: other hosts have files of the same journal. Raises StoreError (Ahead,
    ForeignBackup), Unproved, sqlite3.Error, JournalError, OSError.
    """
    directory = f"{data_dir}/history"
    private_directory(disk, directory)
    file = ShardFile(directory, shard, reader.first, reader.head, disk)
    options = {"accept_loss": accept_loss, "is_shared": is_shared}
    rows, remarks = history.open_store(file, suspect=True, **options)
    yield from (f"{SHARD}{shard}: history: {remark}" for remark in remarks)
    backup_file = file_of(f"{backup}/history", shard)
    if backup and disk.exists(backup_file):
        behind = reader.replay(rows.position + 1)
        rows.close()
        journal = JournalPart(file.first, file.head, behind)
        yield f"{SHARD}{shard}: history: {merge(disk, file.path, backup_file, shard, journal)}"
        rows, _ = history.open_store(file, suspect=True, **options)
    start = rows.position
    for position, payload in reader.replay(start + 1):
        rows.take(position, payload)
        if rows.rows_open >= ROWS_AT_ONCE:
            rows.flush()
    rows.flush()
    if rows.begins > 1 and (opened := _open_accounts(disk, directory, rows, reader)):
        yield f"{SHARD}{shard}: history: {counted(opened, 'account')} got the beginning from the oldest snapshot"
    rows.close()
    yield f"{SHARD}{shard}: history: whole up to batch {rows.position}, {rows.position - start} of them read just now"
    file = file._replace(directory=f"{data_dir}/notices")
    if not disk.exists(file.path) and not disk.exists(notices.begun_of(file.directory, shard)):
        return
    owed, remarks = notices.open_store(
        file,
        suspect=True,
        file_id=secrets.randbits(62),
        now_ns=MACHINE_CLOCKS.wall_ns(),
        accept_loss=accept_loss,
    )
    yield from (f"{SHARD}{shard}: notices: {remark}" for remark in remarks)
    for position, payload in reader.replay(owed.position + 1):
        owed.take(position, payload, MACHINE_CLOCKS.wall_ns())
        if owed.changes >= ROWS_AT_ONCE:
            owed.flush()
    owed.flush()
    count = owed.owed()
    owed.close()
    yield f"{SHARD}{shard}: notices: whole up to batch {owed.position}, {count} owed"


def bring_drained(disk: Disk, data_dir: str, backup: str, shards: list[int]) -> Iterator[str]:
    """Brings back the histories of drained shards that the backup has and this host has not. Yields a line for each.
    `shards`: those with a journal. Raises StoreError, Unproved, sqlite3.Error, OSError.
    """
    directory = f"{backup}/history"
    for shard, source in sorted(shard_files(directory, disk).items() if disk.exists(directory) else ()):
        path = file_of(f"{data_dir}/history", shard)
        if shard not in shards and not disk.exists(path):
            yield f"{SHARD}{shard}: history: {merge(disk, path, source, shard, NO_JOURNAL)}; the shard is drained"


def _open_accounts(disk: Disk, directory: str, rows: history.Store, reader: Reader) -> int:
    """Writes opening rows from the oldest snapshot. Returns how many accounts got one."""
    snapshots = reader.snapshots()
    if not snapshots:
        return 0
    with closing(HistoryReader(directory, rows.shard, rows.db, disk)) as every:
        return open_accounts(rows, every, reader.chunks(snapshots[0].position))


COMMANDS: dict[str, click.Command] = {"rebuild": rebuild}
