"""Checks the files of owed notices: each notice is what was written, and each file joins its journal without a gap.

A file `notices/shard-N.sqlite` has the notices that shard N still owes from its journal up to batch `position` (see
`billing.notices.store`; this module reads it with SQL of its own). Batches behind `position` are read from the journal
later. So a file that ends before the journal begins has lost the batches between. A missing file has lost them if the
small file `begun-N` shows that notices had begun. Notices of lost batches will never be sent, which is a fault. A
delivered notice is deleted, so this module cannot work out which entries of the journal still owe a notice.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Container, Mapping
from typing import Final

import msgpack

from billing.doctor.files import check_free
from billing.doctor.log import Log
from billing.doctor.report import Report
from shards.counting import counted
from shards.system.disk import Disk, read_file

NOTICES: Final = "notices"
APPLICATION_ID: Final = 0x424E4F54
VERSION: Final = 3
OLDER_VERSIONS: Final = (1, 2)
MARKS: Final = ("about", "departures", "arrivals", "claims")  # the tables other than that of owed notices
_UNREADABLE: Final = (sqlite3.Error, TypeError, ValueError, KeyError, OverflowError)  # errors of damaged bytes


def notices_of(names: list[str]) -> list[int]:
    """The shards that have a file of notices, or had begun one, given the names in the directory; ascending."""
    numbers = {name.removeprefix("shard-").removesuffix(".sqlite") for name in names if name.endswith(".sqlite")}
    numbers |= {name.removeprefix("begun-") for name in names if name.startswith("begun-")}
    return sorted(int(number) for number in numbers if number.isdecimal())


def examine_notices(
    disk: Disk, data_dir: str, journals: Mapping[int, Log], retired: Container[int], report: Report
) -> None:
    """Checks every file of notices. `journals`: the journals that were read, by shard. `retired`: the shards that are
    gone, which nobody serves any more. Raises OSError, InUse.
    """
    directory = f"{data_dir}/{NOTICES}"
    if not disk.exists(directory):
        report.not_checked(NOTICES, "there is no file of notices")
        return
    for shard in notices_of(disk.listdir(directory)):
        path, begun = f"{directory}/shard-{shard}.sqlite", f"{directory}/begun-{shard}"
        journal = journals.get(shard)
        if disk.exists(path):
            try:
                _examine_file(disk, path, shard, journal, report, is_retired=shard in retired)
            except _UNREADABLE as error:
                check_free(error, path)
                report.fault(NOTICES, f"it cannot be read: {error}", file=path)
        elif journal is not None:
            _examine_begun(read_file(disk, begun), path, journal, report)


def _examine_begun(begun: bytes, path: str, journal: Log, report: Report) -> None:
    """Reports a file that had begun and is gone: a fault unless the journal still has all batches behind its begin."""
    position = int(begun) if begun.isdigit() else 0
    if position + 1 < journal.first_position:
        text = f"it is gone, and had begun behind batch {position}; the journal begins with {journal.first_position}"
        report.fault(NOTICES, f"{text}: nobody is told of what it owed before", file=path)
    else:
        report.note(f"{path} is gone; the next start makes it anew from batch {position + 1}, which tells again")


def _examine_file(disk: Disk, path: str, shard: int, journal: Log | None, report: Report, *, is_retired: bool) -> None:
    # If there is a write-ahead log, it holds rows that are not in the file yet, and SQLite must make an index of it.
    # Without one, the file is opened as immutable.
    log = disk.exists(f"{path}-wal")
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    db = sqlite3.connect(f"file:{quoted}?mode=ro{'' if log else '&immutable=1'}", uri=True, isolation_level=None)
    try:
        made_by = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if made_by[0] == APPLICATION_ID and made_by[1] in OLDER_VERSIONS:
            report.note(f"{path} is of version {made_by[1]}, and is converted at the next start")
            report.not_checked(NOTICES, f"shard {shard}: its file is of version {made_by[1]}")
            return
        if made_by != [APPLICATION_ID, VERSION]:
            report.fault(NOTICES, f"it is no file of a known version: {made_by[0]:#x} {made_by[1]}", file=path)
            return
        for (problem,) in db.execute("PRAGMA integrity_check(10)"):
            if problem != "ok":
                report.fault(NOTICES, f"SQLite says: {problem}", file=path)
        of_shard, position, seq_max = db.execute("SELECT shard, position, seq FROM about").fetchone()
        if of_shard != shard:
            report.fault(NOTICES, f"it is of shard {of_shard}", file=path)
            return
        report.count(NOTICES, "files")
        for table in MARKS:
            for *row, checksum in db.execute(f"SELECT * FROM {table}"):
                if zlib.crc32(msgpack.packb(row)) != checksum:
                    report.fault(NOTICES, f"a row of {table} is not what was written", file=path)
        owed = _examine_owed(db, path, position, seq_max, report)
    finally:
        db.close()
    _examine_place(path, position, owed, journal, report, is_retired=is_retired)


def _examine_owed(db: sqlite3.Connection, path: str, position: int, seq_max: int, report: Report) -> int:
    """Checks that every owed notice is what was written; returns their number."""
    owed = 0
    columns = "seq, bucket_id, generation, user_id, position, at_ns, name, body"
    for *row, checksum in db.execute(f"SELECT {columns}, checksum FROM owed ORDER BY seq"):
        owed += 1
        seq, _, _, user_id, of_batch, _, name, body = row
        if zlib.crc32(msgpack.packb(row)) != checksum:
            report.fault(NOTICES, f"notice {seq} is not what was written", file=path)
            continue
        notice = json.loads(body)
        if notice["data"]["user_id"].encode() != user_id or not name.endswith(notice["type"].replace(".", "-")):
            report.fault(NOTICES, f"notice {seq} tells of something else than its name says", file=path)
        if of_batch > position or seq > seq_max:
            text = f"notice {seq} is of batch {of_batch}; the file says it goes up to batch {position}"
            report.fault(NOTICES, text, file=path, account=user_id)
    report.count(NOTICES, "owed", owed)
    return owed


def _examine_place(
    path: str, position: int, owed: int, journal: Log | None, report: Report, *, is_retired: bool
) -> None:
    """Checks the position at which a file ends against the begin and the end of its journal."""
    if journal is None:
        if owed:
            report.fault(NOTICES, f"its journal is gone, and it still has {counted(owed, 'notice')} to tell", file=path)
        else:
            report.note(f"{path}: its journal is gone, and it owes nothing")
    elif journal.damage is not None:
        report.not_checked(NOTICES, f"{path}: where it ends, as its journal is damaged")
    elif position + 1 < journal.first_position:
        text = f"it ends with batch {position}, the journal begins with {journal.first_position}"
        report.fault(NOTICES, f"{text}: nobody is told of what lies between", file=path)
    elif position > journal.head:
        text = f"it goes up to batch {position}, its journal only to {journal.head}: the journal has lost batches"
        report.fault(NOTICES, text, file=path)
    elif position < journal.head:
        missing = counted(journal.head - position, "batch", "batches")
        if is_retired:
            text = f"{missing} behind the journal of a shard that is gone, which nobody is told of"
            report.fault(NOTICES, f"{text}; `billing rebuild` reads them", file=path)
            return
        report.note(f"{path} is {missing} behind its journal, and is fed at the next start")
