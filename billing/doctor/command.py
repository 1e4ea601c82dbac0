"""`billing doctor --config FILE`: the examination as a command.

With `--online` it checks a running daemon instead (`billing.cli.online_check`).

Exit codes: 0 no faults, 65 faults were found (each is printed), 1 a daemon runs on the data or a cut was refused,
74 a file cannot be read, 78 the configuration cannot be used, or names a directory without data.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Container, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import click

from billing.cli.calling import Target, target_options
from billing.cli.online_check import check_online
from billing.cli.options import Command
from billing.cli.output import put
from billing.doctor import cut
from billing.doctor.directory import Directory
from billing.doctor.examine import Absent, DaemonRuns, Logs, Progress, examine, examine_logs, hold
from billing.doctor.files import InUse
from billing.doctor.log import ReadLog
from billing.doctor.report import Report
from shards.counting import counted
from shards.exits import Exit, ending_of, text_of
from shards.journal import JournalError, backends
from shards.system.disk import Disk, RealDisk, give_to_owner
from shards.system.host import REAL

STEP_BYTES = 1 << 20  # the progress bar is drawn again after so many more bytes


@click.command(cls=Command)
@click.option("--truncate-at", type=int, metavar="POSITION", help="Cut a damaged journal here; needs --accept-loss.")
@click.option("--shard", type=int, help="With --truncate-at: the shard whose journal is meant, 0 for the map.")
@click.option("--accept-loss", is_flag=True, help="With --truncate-at: what is cut off may have been answered.")
@click.option("--online", is_flag=True, help="Asks a daemon that serves instead; then --address and the like count.")
@target_options
def doctor(
    target: Target,
    truncate_at: int | None,
    shard: int | None,
    accept_loss: bool,
    online: bool,
) -> None:
    """Proves from what is stored alone that a stopped daemon's data are right.

    Computes every account anew with code that shares nothing with the daemon's, and compares journals, snapshots,
    history and bucket map with each other. It changes nothing, except with --truncate-at POSITION --accept-loss: that
    cuts the damaged tail off a journal, keeps a copy of what it cut off, and writes an audit record beside it.
    """
    from billing.config.load import load, log_of, shard_count

    if online:
        sys.exit(0 if check_online(target) else Exit.DAMAGED)
    if (truncate_at is None) is not (accept_loss is False):
        raise click.UsageError("--truncate-at and --accept-loss are only taken together")
    config = load(target.file, os.environ).config
    disk = RealDisk()
    report = Report()
    data_dir, ids_max = config.daemon.data_dir, config.ledger.request_ids_per_bucket
    try:
        backends.check_kind(config.journal.kind, data_dir, disk)
        with ExitStack() as stack:
            if config.journal.kind != "file":
                if truncate_at is not None:
                    _end(Exit.REFUSED, "--truncate-at cuts files, and this log is none: restore a backup")
                settings = log_of(config)
                with _progress() as progress:
                    examine_servers(settings, shard_count(config), disk, ids_max, report, progress, stack)
            else:
                hold(disk, data_dir, stack)
                with _progress() as progress:
                    directories = examine(disk, data_dir, ids_max, report, progress, os.urandom(8))
            _tell_of_classes(report, config.cutoff.classes)
            if truncate_at is not None:
                stack.callback(give_to_owner, data_dir)
                _cut(disk, cut.damaged_journal(directories, shard), truncate_at)
                return
    except InUse as no:
        _end(Exit.REFUSED, str(no))
    except DaemonRuns as no:
        _end(Exit.REFUSED, f"{no}; --online proves what can be proved while it serves")
    except cut.CutRefused as no:
        _end(Exit.REFUSED, str(no))
    except Absent as no:
        _end(Exit.CONFIG, str(no))
    except (OSError, JournalError) as error:
        _end(ending_of(error).code, text_of(error))
    if target.as_json:
        put(json.dumps(report.as_map(), indent=2))
    else:
        for line in report.lines():
            put(line)
    if report.fault_count:
        sys.exit(Exit.DAMAGED)


def examine_servers(
    settings: dict[str, Any],
    shards: int,
    disk: Disk,
    ids_max: int,
    report: Report,
    progress: Progress,
    stack: ExitStack,
) -> None:
    """Checks the log on servers that `settings` name, and this host's history and notices. Waits for one grant of time
    if a daemon may run, to see whether it does. Raises DaemonRuns, Absent, the journal's Unavailable and Unknown,
    OSError.
    """
    backend = backends.open(settings, REAL)
    signs = backend.signs()
    if any(sign.sequence and not sign.is_given_up for sign in signs.values()):  # its daemon may run, or was killed
        threading.Event().wait(-(-backend.grant_ns // 10**9))

    def check_still() -> None:
        if backend.signs() != signs:
            raise DaemonRuns("a daemon serves from this log: stop it, or take a backup, whose copy is proved")

    check_still()
    if not any(sign.sequence for sign in signs.values()):
        raise Absent("the log holds no data: no shard of it was ever served")

    def opened(number: int) -> ReadLog:
        reader = stack.enter_context(closing(backend.reader(number)))
        return ReadLog(reader, f"shard-{number} on the servers" if number else "the map on the servers", number, report)

    logs = Logs(list(range(shards + 1)), opened, True)
    examine_logs(logs, disk, settings["directory"], ids_max, report, progress, os.urandom(8))
    report.not_checked("cutoffs", "whether what was due came in time: a log on servers shows no instants of batches")
    check_still()


def _tell_of_classes(report: Report, class_names: Container[str]) -> None:
    """Adds a note for each cutoff class that has accounts and that the configuration does not have."""
    for name, accounts in sorted(report.classes.items()):
        shown = name.decode(errors="backslashreplace")
        if shown not in class_names:
            are = "is" if accounts == 1 else "are"
            text = f"{counted(accounts, 'account')} {are} in the cutoff class {shown}"
            report.note(f"{text}, which is not in the configuration: the default serves them")


def _cut(disk: Disk, directory: Directory, position: int) -> None:
    audit = cut.cut(disk, directory, position)
    put(f"everything from position {position} on was cut off {directory.path}; audit record: {audit}")
    put("run the doctor again before the daemon is started")


def _end(code: int, text: str) -> None:
    click.echo(f"billing: {text}", err=True)
    sys.exit(code)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Shows progress bars if standard error is a terminal. Yields the function to call with the progress."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, tuple[TaskID, int]] = {}

        def update(what: str, done: int, total: int) -> None:
            task, shown = tasks.get(what) or (bars.add_task(what, total=total), -STEP_BYTES)
            if done - shown >= STEP_BYTES:
                bars.update(task, completed=done)
                shown = done
            tasks[what] = task, shown

        yield update


COMMANDS: dict[str, click.Command] = {"doctor": doctor}
