"""The files of a backup: how they are made from a serving data directory, and how they are restored to one.

    DIRECTORY/map, shard-1, …     journals as files, cut at one instant; of another kind of log, the batches that its
                                  reader gives. Also those of drained shards, which the map does not count any more
    DIRECTORY/history             the statements, up to the batch that each shard's journal ends with
    DIRECTORY/notices             the notices that were owed then, up to the batch that each shard's journal ends with
    DIRECTORY/audit               the operators' record of this host, where there is one
    DIRECTORY/backup.json         the instant, the positions, how many notices are owed, and length and digest of every
                                  file

`backup.json` is written last: a directory without it is no backup. A restored directory has one more file, `restored`:
while it exists, every start holds overdue cutoffs back until `release_cutoffs`, since top-ups may have come after the
instant of the backup, and it would be wrong to switch those users' machines off. Another, `rewound`, stays, and says
when that was, so that no `seq` of a cutoff is given out twice: see `shards.restored`.

The restored daemon sends the notices in `notices` as after a restart, under the ids that they had. The daemon that went
on after the backup may have sent them, too: delivery is at least once. A restore into the log of a cluster also writes
into the map up to which batch everything was sent, for hosts that have no file.

Either way everything is made in a directory of another name first, and gets its own name once it is complete, proved
and durable. If the attempt is refused, the directory under that name is removed. One that remains is being made, was
interrupted, or is a copy that failed its proof.

A restore uses an empty data directory that is there already, and does not replace it: it may be a mount point, or what
a symbolic link points to (systemd's `StateDirectory=` of a dynamic user), and it has an owner. So the files are made in
a directory inside of it, and then renamed one by one: `restored` first, so that no cutoff leaves whatever happens, and
the map last, since no daemon starts on shards without their map. What root restores there is given to the owner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from billing import __version__
from billing.audit.trail import DIRECTORY as AUDIT
from billing.audit.trail import Record, Trail, copy_trails
from billing.doctor.examine import shards_in
from billing.follower.store import shard_files
from billing.history.copying import copy_history, copy_up_to
from billing.notices.copying import BackupCut, CutShard, copy_notices
from shards.journal import backends
from shards.journal.file.copying import copy_until
from shards.journal.file.reader import FileReader
from shards.journal.file.writing import write_journal
from shards.journal.jetstream.backend import JetStreamBackend
from shards.restored import RESTORED, RESTORING, TAKEN_AT, UNFINISHED, Restored, write_rewound
from shards.supervisor.registry import records_of_restore
from shards.system.disk import (
    LOST_AND_FOUND,
    Disk,
    close_to_others,
    discard_tree,
    give_to_owner,
    private_directory,
    read_file,
    write_all,
    write_file,
)
from shards.system.host import REAL

FORMAT = 1
LIST = "backup.json"
NOTICES = "notices"
FOLLOWERS = ("history/", f"{NOTICES}/")
INT64_MAX = (1 << 63) - 1


class NoBackup(Exception):
    """The directory is no complete backup, or the target cannot be used; nothing was changed there."""


def copy(disk: Disk, cut: dict[str, Any], target: str, renew: Callable[[], None]) -> tuple[str, list[str]]:
    """Copies the files of a `backup("begin")` reply to a directory beside `target`. Returns its path, and remarks for
    the operator; `finish` renames it. `renew` is called between files. Raises NoBackup, the journal's errors,
    StoreError, Unproved, sqlite3.Error, OSError.
    """
    work = check_free(disk, target)
    with _begun(disk, work):
        return work, _copy(disk, cut, work, renew)


def _copy(disk: Disk, cut: dict[str, Any], work: str, renew: Callable[[], None]) -> list[str]:
    source, is_files = cut["data_dir"], cut["log"]["kind"] == "file"
    reader_of = backends.open(cut["log"], REAL).reader
    positions = {0: cut["map_position"]} | {row["shard_id"]: row["position"] for row in cut["shards"]}
    gone = _gone(disk, cut)
    files: dict[str, dict[str, object]] = {}

    def listed(name: str) -> None:
        files[name] = _digest(disk, f"{work}/{name}")
        renew()

    for name in _copy_histories(disk, cut, gone, work, renew):
        listed(name)
    shards = [
        *(CutShard(row["shard_id"], row["position"], row["here"], row["settled"]) for row in cut["shards"]),
        *(CutShard(shard, position, True, -1) for shard, position in gone.items() if is_files),
    ]
    notices_cut = BackupCut(cut["at_ns"], shards, reader_of, cut["hosts_share"])
    copies = copy_notices(
        disk, f"{source}/{NOTICES}", f"{work}/{NOTICES}", notices_cut, lambda: REAL.randbits(62), renew
    )
    for copied in copies:
        for name in copied.names:
            listed(f"{NOTICES}/{name}")
    if disk.exists(f"{source}/{AUDIT}"):
        private_directory(disk, f"{work}/{AUDIT}")
        for name in copy_trails(disk, f"{source}/{AUDIT}", f"{work}/{AUDIT}"):
            listed(f"{AUDIT}/{name}")
        disk.fsync_dir(f"{work}/{AUDIT}")
    for shard, position in (positions | gone if is_files else positions).items():
        directory = _journal_name(shard)
        private_directory(disk, f"{work}/{directory}")
        if is_files:
            names = copy_until(disk, f"{source}/{directory}", f"{work}/{directory}", shard, position)
        else:
            with closing(reader_of(shard)) as reader:
                where = f"{work}/{directory}"
                names = write_journal(disk, where, shard, reader, position, cut["at_ns"], lambda: REAL.randbits(64))
        for name in names:
            listed(f"{directory}/{name}")
    about = {
        "format": FORMAT,
        "version": __version__,
        "taken_at_ns": cut["at_ns"],
        "bucket_count": cut["bucket_count"],
        "positions": {_journal_name(shard): position for shard, position in positions.items()},
        NOTICES: {_journal_name(copied.shard): {"owed": copied.owed, "settled": copied.settled} for copied in copies},
        "files": files,
    }
    write_file(disk, f"{work}/{LIST}", json.dumps(about, indent=1).encode())
    return [f"the notices of shard {copied.shard}: {remark}" for copied in copies for remark in copied.remarks]


def _gone(disk: Disk, cut: dict[str, Any]) -> dict[int, int]:
    """Returns the drained shards of which this host still has files, each with the last batch of its journal;
    `INT64_MAX` where the log has none. Histories of users who have left them begin there.
    """
    source, log = cut["data_dir"], backends.open(cut["log"], REAL)
    shard_ids = set(shard_files(f"{source}/history", disk)) if disk.exists(f"{source}/history") else set()
    if cut["log"]["kind"] == "file":
        shard_ids |= {shard for shard in shards_in(disk.listdir(source)) if log.holds(shard)}
    gone = {}
    for shard in sorted(shard_ids - {row["shard_id"] for row in cut["shards"]}):
        gone[shard] = INT64_MAX
        if cut["log"]["kind"] == "file" and log.holds(shard):
            with closing(log.reader(shard)) as reader:
                gone[shard] = reader.head
    return gone


def _copy_histories(
    disk: Disk, cut: dict[str, Any], gone: dict[int, int], work: str, renew: Callable[[], None]
) -> Iterator[str]:
    """Copies the histories. Yields the names of the files made."""
    source = cut["data_dir"]
    private_directory(disk, f"{work}/history")
    reader_of, is_files = backends.open(cut["log"], REAL).reader, cut["log"]["kind"] == "file"
    for row in cut["shards"]:
        ends = row["shard_id"], row["position"]
        with closing(reader_of(row["shard_id"])) as reader:
            if copy_up_to(disk, f"{source}/history", f"{work}/history", reader, ends, not is_files, renew):
                yield f"history/shard-{row['shard_id']}.sqlite"
    for shard, position in gone.items():
        name = f"history/shard-{shard}.sqlite"
        if copy_history(disk, f"{source}/{name}", f"{work}/{name}", shard, position):
            yield name
    disk.fsync_dir(f"{work}/history")


@contextmanager
def _begun(disk: Disk, work: str) -> Iterator[None]:
    """Creates the directory in which a target is made, and removes it after an exception."""
    try:
        private_directory(disk, work)
        yield
    except BaseException:
        discard_tree(work)
        raise


def check_free(disk: Disk, target: str) -> str:
    """Returns the directory in which a copy for `target` is made. Raises NoBackup where that, or `target`,
    exists.
    """
    if disk.exists(target):
        raise NoBackup(f"{target} is there already: a backup is made in a directory of its own")
    work = target + UNFINISHED
    _check_unused(disk, work)
    return work


def finish(disk: Disk, work: str, target: str) -> None:
    """Renames a copy that passed its proof to its final name, durably. Raises OSError."""
    disk.rename(work, target)
    disk.fsync_dir(_parent(target))


def restore(disk: Disk, source: str, target: str, log: dict[str, Any], record: Record) -> dict[str, Any]:
    """Makes the data directory `target`, which must be empty or not exist, from a backup. Returns the contents of
    `backup.json`. If `log` is of another kind than files, the journals go there, and its streams must be empty, too.
    `record` is added to the operators' record that came with the backup; its instant counts as that of the restore.

    Raises NoBackup, the journal's errors, OSError.
    """
    about = read_list(disk, source)
    target = target.rstrip("/")
    is_there = disk.exists(target)
    work = f"{target}/{RESTORING}" if is_there else target + UNFINISHED
    _check_unused(disk, work)
    if is_there and set(disk.listdir(target)) - {LOST_AND_FOUND}:
        raise NoBackup(f"{target} is not empty: a backup is restored to an empty data directory only")
    with _begun(disk, work):
        _restore(disk, source, work, about, is_whole=log["kind"] == "file")
        write_rewound(disk, work, record["at_ns"])
        trail = Trail(disk, f"{work}/{AUDIT}", "restore")
        trail.append(record)
        trail.close()
        if log["kind"] != "file":
            _fill(disk, source, work, about, log, record["at_ns"])  # last: it cannot be taken back
    if is_there:
        _move_up(disk, work, target)
    else:
        finish(disk, work, target)
    return about


def _move_up(disk: Disk, work: str, target: str) -> None:
    """Renames everything in `work` into `target`, the directory in which it is, and leaves it to the owner of that.
    Raises OSError.
    """
    names = disk.listdir(work)
    for name in sorted(names, key=lambda name: (name == _journal_name(0), name != RESTORED, name)):
        disk.rename(f"{work}/{name}", f"{target}/{name}")
        disk.fsync_dir(target)
    discard_tree(work)
    disk.fsync_dir(target)
    close_to_others(target)
    give_to_owner(target)


def _restore(disk: Disk, source: str, work: str, about: dict[str, Any], *, is_whole: bool) -> None:
    """Copies the files of a backup and proves each by its digest; with `is_whole` journals and map, too."""
    restored_names = [name for name in about["files"] if is_whole or name.startswith((*FOLLOWERS, f"{AUDIT}/"))]
    for directory in sorted({name.rpartition("/")[0] for name in restored_names} | {"history"}):
        private_directory(disk, f"{work}/{directory}")
    for name, digest in about["files"].items():
        try:
            data = read_file(disk, f"{source}/{name}")
        except FileNotFoundError:
            raise NoBackup(f"{source}/{name} is missing, which {LIST} names") from None
        if _digest_of(data) != digest:
            raise NoBackup(f"{source}/{name} is not what was backed up: its length or digest is another")
        if name not in restored_names:
            continue
        handle = disk.create(f"{work}/{name}")
        try:
            write_all(disk, handle, data, 0)
            disk.fsync(handle)
        finally:
            disk.close(handle)
        disk.fsync_dir(f"{work}/{name.rpartition('/')[0]}")
    write_file(disk, f"{work}/{RESTORED}", json.dumps({TAKEN_AT: about["taken_at_ns"]}).encode())


def _fill(disk: Disk, source: str, work: str, about: dict[str, Any], log: dict[str, Any], wall_ns: int) -> None:
    """Writes the journals into the log's streams."""
    backend = backends.open(log | {"directory": work}, REAL)
    assert isinstance(backend, JetStreamBackend)
    private_directory(disk, f"{work}/run")

    def reader_of(shard: int) -> FileReader:
        return FileReader(disk, f"{source}/{_journal_name(shard)}", shard)

    settled = {
        int(shard.removeprefix("shard-")): row["settled"]
        for shard, row in about.get(NOTICES, {}).items()
        if row["settled"] >= 0
    }
    taken_at_ns = about["taken_at_ns"]
    restored = Restored(taken_at_ns, restored_at_ns=wall_ns)
    decided = records_of_restore(settled, restored, _payloads_of(reader_of(0)))
    backend.fill(len(about["positions"]) - 1, reader_of, taken_at_ns, decided)


def _payloads_of(reader: FileReader) -> list[bytes]:
    """What a map's log holds, oldest first."""
    retained = reader.snapshots()
    position = retained[-1].position if retained else 0
    state = [b"".join(reader.chunks(position))] if retained else []
    return [*state, *(payload for _, payload in reader.replay(position + 1))]


def _journal_name(shard: int) -> str:
    return f"shard-{shard}" if shard else "map"


def read_list(disk: Disk, source: str) -> dict[str, Any]:
    """Returns the contents of `backup.json`. Raises NoBackup."""
    try:
        about = json.loads(read_file(disk, f"{source}/{LIST}"))
        if about["format"] != FORMAT:
            raise NoBackup(f"{source} has format {about['format']}, this version reads {FORMAT}")
        names = list(about["files"])
        if any(name.startswith("/") or ".." in name.split("/") or "/" not in name for name in names):
            raise NoBackup(f"{source}/{LIST} names a file outside of it")
    except FileNotFoundError:
        raise NoBackup(f"{source} holds no {LIST}: it is no backup, or one that was not finished") from None
    except (ValueError, KeyError, TypeError) as error:
        raise NoBackup(f"{source}/{LIST} cannot be read: {error}") from None
    result: dict[str, Any] = about
    return result


def _digest(disk: Disk, path: str) -> dict[str, object]:
    return _digest_of(read_file(disk, path))


def _digest_of(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "blake2b_256": hashlib.blake2b(data, digest_size=32).hexdigest()}


def _check_unused(disk: Disk, work: str) -> None:
    if disk.exists(work):
        what = "an attempt runs, or was cut off, or its copy was not good"
        raise NoBackup(f"{work} is there already: {what}; look at it, and remove it")


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or ("/" if path.startswith("/") else ".")
