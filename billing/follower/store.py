"""The SQLite file of one follower: made whole, opened with suspicion, made durable, proved. History and notices each
add their own tables and what a batch does to them.

    about       one row: shard, position (last batch that is in the file; -1: not settled yet), and what the kind adds

**What is durable.** A commit survives kill -9. It survives the loss of power, and lets the journal be trimmed, once
`checkpoint` has said so: the log was synced, its pages were copied into the file, the file was synced, and the pages
were read back from the medium (`proof`). The log is begun anew by the next transaction only, so what it holds is
always what is not proved.

**Who writes.** One process, the follower of the shard; its transactions open with a look at whether the position is
still the one this process knows, so an orphan of an earlier life cannot write beside its successor. Others only read.

**Suspicion.** `opened` compares the log in the page cache with the log on the medium. Where they differ, or the caller
knows that the process before ended on the disk or on a damaged page, it opens a copy that was read from the medium,
lets SQLite apply the log to it, looks at every page, and only then puts the copy in the place of the file. A copy that
does not hold is kept under `damaged-…` for people, and the kind makes a new file of what is good in it.

**Ends.** A store that failed is never closed: closing lets SQLite copy its log into the file and remove it. The
process exits instead.
"""

from __future__ import annotations

import os.path
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from billing.follower.proof import Unproved, copy_from_medium, differs, prove_checkpoint, read_log, salts_of
from shards.exits import Exit
from shards.journal import Corrupt
from shards.system.disk import DirectoryRefused, Disk

BUSY_TIMEOUT_S = 10.0  # how long a transaction waits for an orphan's last one
CACHE_KIB: Final = 32 * 1024
SIDES: Final = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a file, by the file's name


class StoreError(Exception):
    """The file cannot be used, and why; nothing was changed. `code`: the exit code of a process that this ends."""

    code = Exit.BUG


class Overtaken(StoreError):
    """Another process has written to the file, or the file is another one by now. Opening it again is all it takes."""

    code = Exit.AGAIN


class Damaged(StoreError):
    """What was read is not what was written. The next process opens a copy, and makes a new file of what is good."""

    code = Exit.DAMAGED


class Ahead(StoreError):
    """The file holds batches that its journal does not have: the journal has lost them, or is an older copy."""

    code = Exit.DAMAGED


# What a damaged file leads to, among other things (`code_of` tells): SQLite's own words may then be no text.
UNREADABLE: Final = (sqlite3.DatabaseError, Damaged, UnicodeDecodeError)

Filling = Callable[[sqlite3.Connection], None]  # writes what a new file holds at first


class Kind(NamedTuple):
    """What tells the files of one follower from those of another."""

    noun: str  # for messages
    application_id: int
    version: int
    schema: tuple[str, ...]
    older: tuple[int, ...] = ()  # versions that are converted


def file_of(directory: str, shard: int) -> str:
    """Where a shard's file stands."""
    return f"{directory}/shard-{shard}.sqlite"


def shard_files(directory: str, disk: Disk) -> dict[int, str]:
    """shard -> path of all files of followers in a directory."""
    paths = {}
    for name in disk.listdir(directory):
        number = name.removeprefix("shard-").removesuffix(".sqlite")
        if name == f"shard-{number}.sqlite" and number.isdecimal():
            paths[int(number)] = f"{directory}/{name}"
    return paths


class ShardFile(NamedTuple):
    """The file of one shard's follower, as it is opened: where it is, and what it is to follow from."""

    directory: str  # of all files of this kind
    shard: int
    first: int  # the shard's journal holds the batches from this one
    head: int  # to this one; it is empty where this is `first` - 1
    disk: Disk

    @property
    def path(self) -> str:
        """As `file_of` names it."""
        return file_of(self.directory, self.shard)


def code_of(error: BaseException) -> int:
    """The exit code that an error ends a follower's process with."""
    if isinstance(error, StoreError):
        return error.code
    if isinstance(error, DirectoryRefused):
        return Exit.BUG
    if isinstance(error, UnicodeDecodeError):
        return Exit.DAMAGED
    if isinstance(error, Unproved | OSError):
        return Exit.DISK
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_READONLY")) or name == "SQLITE_ERROR":
            return Exit.DAMAGED  # also where a table or column is gone, or the header forbids what every file allows
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")):
            return Exit.DISK
    return Exit.BUG


def reason_of(error: BaseException) -> str:
    """An error as an operator reads it."""
    if isinstance(error, StoreError | Unproved | DirectoryRefused):
        return str(error)
    return f"{type(error).__name__}: {error}"


def connect(path: str, kind: Kind, *, write: bool = False, versions: Sequence[int] = ()) -> sqlite3.Connection:
    """A connection to a file that exists, for reading or for both. Raises sqlite3.Error, StoreError.

    `versions`: of the format, that are taken; by default the present one alone.
    """
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    db = sqlite3.connect(
        f"file:{quoted}?mode={'rw' if write else 'ro'}", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S
    )
    try:
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application_id != kind.application_id:
            raise Damaged(f"{path} is no file of {kind.noun}: its application id is {application_id:#x}")
        if version not in (versions or (kind.version,)):
            raise StoreError(f"{path} is of version {version}, and this version reads {kind.version}")
    except BaseException:
        db.close()
        raise
    return db


def refuse_ahead(path: str, kind: Kind, head: int, ends_agree: Callable[[sqlite3.Connection], bool]) -> None:
    """Raises shards.journal.Corrupt where a file holds batches that its journal, which ends with `head`, does not have:
    the journal has lost them. To be called before the shard serves. What cannot be read, or does not agree with itself
    on where it ends, is the follower's business: the file is damaged, and nothing is proved.
    """
    is_ahead, position = False, -1
    with suppress(StoreError, sqlite3.Error, UnicodeDecodeError):
        db = connect(path, kind, versions=(kind.version, *kind.older))
        try:
            (position,) = db.execute("SELECT position FROM about").fetchone()
            is_present = db.execute("PRAGMA user_version").fetchone() == (kind.version,)
            is_ahead = type(position) is int and position > head and (not is_present or ends_agree(db))
        finally:
            db.close()
    if is_ahead:
        raise Corrupt(
            f"the {kind.noun} goes up to batch {position}, the journal only up to batch {head}: the journal has lost "
            "what lies between, or is an older copy; `billing rebuild --accept-loss` gives it up",
            file=path,
            position=head,
        )


def make(path: str, kind: Kind, disk: Disk, fill: Filling) -> None:
    """A new file under its name, only once it is whole, synced and proved. `fill` writes what it holds at first, in one
    transaction. What stands beside the name from a file that was moved away is removed: it would corrupt this one.
    """
    new_path = f"{path}.new"
    _remove(disk, new_path, *(new_path + side for side in SIDES))
    disk.close(disk.create(new_path))  # with this project's mode, before SQLite makes it with another
    db = sqlite3.connect(new_path, isolation_level=None)
    try:
        db.execute(f"PRAGMA application_id = {kind.application_id}")
        db.execute(f"PRAGMA user_version = {kind.version}")
        db.execute("PRAGMA journal_mode = WAL")  # the file's for good
        db.execute("BEGIN")
        for statement in kind.schema:
            db.execute(statement)
        fill(db)
        db.execute("COMMIT")
    finally:
        db.close()
    _put_in_place_alone(new_path, path, disk)


def put_in_place(aside: str, path: str, disk: Disk) -> None:
    """Gives a whole database file its name, durably, once it is synced and proved. Raises Unproved, OSError."""
    handle = disk.open(aside, write=True)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
    if differs(disk, aside):
        raise Unproved(f"{aside} was written and synced, but the medium does not hold it")
    # A log of the file that this one replaces holds nothing that this one does not.
    disk.rename(aside, path)
    _remove(disk, *(path + side for side in SIDES))
    disk.fsync_dir(os.path.dirname(path))


def _put_in_place_alone(aside: str, path: str, disk: Disk) -> None:
    """As `put_in_place`, where what stands beside the name is of another file: were it there for a moment under the new
    one, a loss of power would leave SQLite to write that file's pages into this one. So it goes first.
    """
    _remove(disk, *(path + side for side in SIDES))
    disk.fsync_dir(os.path.dirname(path))
    put_in_place(aside, path, disk)


def opened(
    path: str, kind: Kind, disk: Disk, suspect: bool, rows_are_sound: Callable[[sqlite3.Connection], bool]
) -> str:
    """Looks at a file before it is used: "" where it may be; else what a new one is to be made of: the file itself
    where it is of an older version, a copy of it where it is damaged, which stays as evidence. See the module. Raises
    StoreError, Unproved, sqlite3.Error, OSError.
    """
    log, copy = f"{path}-wal", f"{path}.new"
    suspect = suspect or (disk.exists(log) and differs(disk, log))
    try:
        db = connect(path, kind, versions=(kind.version, *kind.older))
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
        finally:
            db.close()
    except UNREADABLE as error:
        if code_of(error) != Exit.DAMAGED:
            raise
        version, suspect = kind.version, True
    if suspect:
        _remove(disk, *(copy + side for side in SIDES))
        copy_from_medium(disk, path, copy)
        if disk.exists(log):
            copy_from_medium(disk, log, f"{copy}-wal")
        if not is_sound(copy, kind, rows_are_sound):
            return _keep(copy, path, disk)
        put_in_place(copy, path, disk)
    return "" if version == kind.version else path


def is_sound(path: str, kind: Kind, rows_are_sound: Callable[[sqlite3.Connection], bool]) -> bool:
    """Whether SQLite finds no fault in a file's pages, and the kind none in its rows, after SQLite has applied the log
    beside it. The log is gone then.
    """
    try:
        db = connect(path, kind, write=True, versions=(kind.version, *kind.older))
        try:
            db.execute("UPDATE about SET shard = shard")  # fails where a damaged header lets nobody write
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            is_present = db.execute("PRAGMA user_version").fetchone() == (kind.version,)
            if is_present and not set(kind.schema) <= {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master")}:
                return False
            return bool(db.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",)) and rows_are_sound(db)
        finally:
            db.close()
    except UNREADABLE as error:
        if code_of(error) == Exit.DISK:
            raise
        return False  # whatever else SQLite has against a copy that nobody else uses is in its bytes


def _keep(copy: str, path: str, disk: Disk) -> str:
    """Gives the copy of a damaged file the name under which it is kept; that name."""
    kept_path = _unused(path, "damaged", disk)
    disk.rename(copy, kept_path)
    _remove(disk, *(copy + side for side in SIDES))
    disk.fsync_dir(os.path.dirname(path))
    return kept_path


def make_of(
    path: str, source: str, kind: Kind, disk: Disk, salvage: Callable[[sqlite3.Connection], str], fill_new: Filling
) -> str:
    """Makes a file of what is good in `source`, or a new one (`fill_new`) where nothing can be read of that; what came
    of it, for the operator.
    """
    outcomes: list[str] = []
    try:
        make(path, kind, disk, lambda db: outcomes.append(salvage(db)))
    except UNREADABLE as error:
        if code_of(error) != Exit.DAMAGED:
            raise
        make(path, kind, disk, fill_new)
        outcomes = [f"the journal alone, since nothing of it can be read ({reason_of(error)})"]
    return f"it was damaged, and is made anew of {outcomes[0]}; {source} is kept" if source != path else ""


def keep_copy(db: sqlite3.Connection, path: str, why: str, disk: Disk) -> str:
    """Keeps a copy of a file that is about to lose something; its name."""
    kept_path = _unused(path, why, disk)
    copy_to(db, f"{path}.new", disk)
    put_in_place(f"{path}.new", kept_path, disk)
    return kept_path


def copy_to(db: sqlite3.Connection, target: str, disk: Disk) -> None:
    """Writes what a connection sees to a new file. Neither synced nor proved."""
    _remove(disk, *(target + side for side in ("", *SIDES)))
    disk.close(disk.create(target))
    copy = sqlite3.connect(target)
    try:
        db.backup(copy)
    finally:
        copy.close()


def _unused(path: str, why: str, disk: Disk) -> str:
    directory, name = os.path.split(path)
    number = 1
    while disk.exists(f"{directory}/{why}-{number}-{name}"):
        number += 1
    return f"{directory}/{why}-{number}-{name}"


class FollowerStore:
    """The writing side. Any exception ends it, and its process with it: what is committed and proved stands, what is
    not comes again from the journal.
    """

    def __init__(self, path: str, kind: Kind, shard: int, disk: Disk) -> None:
        """Opens a file that is there, and proves what its log holds. Raises StoreError, Unproved, sqlite3.Error,
        OSError.
        """
        self.path = path
        self.kind = kind
        self.shard = shard
        self._disk = disk
        self.durable = 0  # the journal is needed from the batch after this one
        self.position = -1
        self._identity = disk.identity(path)
        self._proved: tuple[bytes, int] = b"", 0  # the log's salts, and how many frames of it are proved
        self.db = db = connect(path, kind, write=True)
        for pragma in ("synchronous = NORMAL", "wal_autocheckpoint = 0", f"cache_size = -{CACHE_KIB}"):
            db.execute(f"PRAGMA {pragma}")
        (stored_shard,) = db.execute("SELECT shard FROM about").fetchone()
        if stored_shard != shard:
            raise StoreError(f"{path} is the {kind.noun} of shard {stored_shard}")
        self.read_where()
        self.checkpoint()

    def read_where(self) -> None:
        """Where the file ends; what is remembered of it is read anew."""
        (self.position,) = self.db.execute("SELECT position FROM about").fetchone()

    def begin(self) -> None:
        """Opens a transaction. Raises Overtaken."""
        self.db.execute("BEGIN IMMEDIATE")
        if self._disk.exists(self.path):
            self._check_identity()
        (position,) = self.db.execute("SELECT position FROM about").fetchone()
        if position != self.position:
            raise Overtaken(f"{self.path} is at batch {position}, not {self.position}: another process writes to it")

    def commit(self, position: int) -> None:
        """Ends a transaction that brings the file up to a batch."""
        self.write_where(position)
        self.db.execute("COMMIT")
        self.position = position

    def write_where(self, position: int) -> None:
        """Writes that the file ends with this batch, in the open transaction."""
        self.db.execute("UPDATE about SET position = ?", (position,))

    def checkpoint(self) -> bool:
        """Makes what is committed durable and proves it; False where a reader stands in the way: then later. Raises
        Unproved, Overtaken (the file was removed, or another one put in its place), sqlite3.Error, OSError.
        """
        assert not self.db.in_transaction
        self._check_name()
        log_path = f"{self.path}-wal"
        salts = salts_of(self._disk, log_path)
        busy, frames, moved = self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy or frames != moved:
            return False
        if frames > 0 and self._proved != (salts, frames):
            log = read_log(self._disk, log_path, frames)
            prove_checkpoint(self._disk, self.path, log)
            self._proved = log.salts, frames
        self.durable = max(self.position, 0)
        return True

    def _check_name(self) -> None:
        """Somebody may have removed the file under its writer, who has all of it still: then it is written anew."""
        disk = self._disk
        if not disk.exists(self.path):
            new_path = f"{self.path}.new"
            copy_to(self.db, new_path, disk)
            _put_in_place_alone(new_path, self.path, disk)
            raise Overtaken(f"{self.path} was removed while it was in use, and was written anew")
        self._check_identity()

    def _check_identity(self) -> None:
        if self._disk.identity(self.path) != self._identity:
            raise Overtaken(f"{self.path} was replaced while it was in use")

    def close(self) -> None:
        """Makes everything durable, and closes. Not to be called after an error."""
        self.checkpoint()
        self.db.close()


def lost_batches(position: int, first: int) -> int:
    """How many batches are neither in a file that ends at `position` nor in a journal that begins with `first`."""
    return max(0, first - 1 - position) if position >= 0 else 0


def _remove(disk: Disk, *paths: str) -> None:
    for path in paths:
        if disk.exists(path):
            disk.unlink(path)
