"""`billing backup` and `billing restore`: copy everything while the daemon serves, and restore such a copy.

Both run on the daemon's host and as its user, since they work on its files; `backup` asks the daemon only to keep the
files from being trimmed or moved. The copy is then proved as `billing doctor` proves a data directory, unless the
caller leaves the proof out.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click

from billing.backup.files import NOTICES, NoBackup, check_free, copy, finish, read_list, restore
from billing.cli.calling import CommandRefused, NotReached, Target, ask, target_options
from billing.cli.finding import config_file as found_config
from billing.cli.options import Command, config_option
from billing.cli.output import put
from billing.cli.places import DIRECTORY, Misplaced, there
from billing.follower.proof import Unproved
from billing.follower.store import UNREADABLE, StoreError, reason_of
from shards.exits import Exit, ending_of
from shards.journal import JournalError
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import Disk, RealDisk, discard_tree

RENEW_EVERY_NS = 10 * 10**9


@click.command(cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--no-proof", is_flag=True, help="Leaves out the proof of the copy, which takes as long as the doctor.")
@target_options
def backup(target: Target, directory: Path, no_proof: bool) -> None:
    """Copies all data as of one instant to the new DIRECTORY, while the daemon serves.

    Run it on the daemon's host, as its user, with a token of the role admin. Snapshots, trimming and moves of buckets
    rest meanwhile; commands do not.
    """
    disk = RealDisk()
    there(directory.absolute().parent)
    try:
        check_free(disk, str(directory.absolute()))
    except NoBackup as error:
        raise click.ClickException(f"no backup was made: {error}") from None
    try:
        cut = ask(target, "backup", "begin")  # the first request, since it needs the highest role
    except NotReached:
        with contextlib.suppress(CommandRefused):  # what has begun would keep snapshots and moves waiting for nobody
            ask(target, "backup", "cancel")
        raise
    renewed_ns = MACHINE_CLOCKS.boot_ns()

    def renew() -> None:
        nonlocal renewed_ns
        if MACHINE_CLOCKS.boot_ns() - renewed_ns > RENEW_EVERY_NS:
            renewed_ns = MACHINE_CLOCKS.boot_ns()
            ask(target, "backup", "renew")

    try:
        work, remarks = copy(disk, cut, str(directory.absolute()), renew)
    except (NoBackup, JournalError, StoreError, Unproved, *UNREADABLE, OSError) as error:
        ask(target, "backup", "cancel")
        _end(f"no backup was made: {reason_of(error)}", error)
    except KeyboardInterrupt:
        ask(target, "backup", "cancel")  # else moves and snapshots would rest for a minute, for nobody
        raise
    try:
        ask(target, "backup", "end")  # refused where a worker ended meanwhile: the copy is invalid then
        ids_max = ask(target, "server_info")["request_ids_per_bucket"]
    except BaseException:
        discard_tree(work)
        raise
    for remark in remarks:
        put(remark)
    if not no_proof:
        try:
            _prove(disk, work, str(directory.absolute()), ids_max)
        except KeyboardInterrupt:
            discard_tree(work)
            raise
    finish(disk, work, str(directory.absolute()))
    put(f"{directory.absolute()} holds everything up to {_shown(cut['at_ns'])}")


@click.command(name="restore", cls=Command)
@click.argument("directory", type=DIRECTORY)
@config_option
def restore_command(directory: Path, config_file: str | None) -> None:
    """Makes the configured data directory, which must be empty, from the backup in DIRECTORY.

    The next start holds every overdue cutoff back until `billing cutoffs release`: money may have come after the
    backup was taken. Notices that were still to be told then are told at once, with those that were told since, under
    the same ids.
    """
    from billing.config.load import load, log_of

    config = load(found_config(config_file, os.environ), os.environ).config
    data_dir = config.daemon.data_dir
    disk, source = RealDisk(), str(directory.absolute())
    try:
        about = read_list(disk, source)
        if about["bucket_count"] != config.shards.bucket_count:
            raise Misplaced(
                f"nothing was restored: shards.bucket_count is {config.shards.bucket_count}, and the backup has "
                f"{about['bucket_count']} buckets; the number is fixed for the life of the data"
            )
        details = {"backup": source, "taken_at_ns": about["taken_at_ns"]}
        record = {"at_ns": MACHINE_CLOCKS.wall_ns(), "actor": f"uid:{os.getuid()}", "act": "restore"}
        restore(disk, source, data_dir, log_of(config), record | {"details": details})
    except (NoBackup, JournalError, OSError) as error:
        _end(f"nothing was restored: {error}", error)
    put(f"{data_dir} is as it was at {_shown(about['taken_at_ns'])}")
    put("overdue cutoffs will wait for: billing cutoffs release")
    for line in _lines_on_notices(about, config.notify.url):
        put(line)


def _end(text: str, error: Exception) -> NoReturn:
    """Prints the text and ends the command. A failure of the log has the exit code that it has in other commands."""
    click.echo(f"billing: {text}", err=True)
    sys.exit(ending_of(error).code if isinstance(error, JournalError) else Exit.REFUSED)


def _lines_on_notices(about: dict[str, Any], url: str) -> Iterator[str]:
    """Yields lines about the notices that were owed at the instant of a backup. `about`: the contents of its
    `backup.json`.
    """
    owed = sum(row["owed"] for row in about.get(NOTICES, {}).values())
    if NOTICES not in about:
        if url:
            yield "a version made the backup that left notices out: what was still to be told then may stay untold"
    elif owed:
        resent = "they are told at the next start, those that were told since once more, under the same ids"
        given_up = "the next start gives them up, since notify.url is empty"
        yield f"notices that were still to be told then: {owed:,}; {resent if url else given_up}"


def _prove(disk: Disk, work: str, target: str, ids_max: int) -> None:
    """Lets the doctor prove the copy in `work`, which will be renamed to `target`; ends the command if it finds a
    fault.
    """
    from billing.doctor.examine import examine
    from billing.doctor.report import Report

    report = Report()
    examine(disk, work, ids_max, report, lambda what, done, total: None)
    final_path = work if report.fault_count else target  # a sound copy gets its final name right afterwards
    for line in report.lines():
        put(line.replace(work, final_path))
    if report.fault_count:
        click.echo(f"billing: the copy is not good; it is left in {work}", err=True)
        sys.exit(Exit.DAMAGED)


def _shown(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


COMMANDS: dict[str, click.Command] = {"backup": backup, "restore": restore_command}
