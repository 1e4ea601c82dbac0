"""The SQLite file of one follower: how it is created, checked when opened, made durable and proved. History and notices
each add their own tables, and what a batch writes to them.

    about       one row: shard, position (the last batch in the file; -1: not set yet), and columns of the kind

**Durability.** A commit survives kill -9. It survives a loss of power, and lets the journal be trimmed, only after
`checkpoint` has returned True: the log was synced, its pages were copied into the file, the file was synced, and the
pages were read back from the medium (`proof`). SQLite restarts the log only with the next transaction after that, so
the log always holds whatever is not proved.

**One writer.** The follower's process of the shard is the only one. Each transaction begins with a check that the
position in the file is still the one this process knows, so an orphaned process of an earlier start cannot write beside
its successor. Other processes only read.

**Suspicion.** `opened` compares the log in the page cache with the log on the medium. Where they differ, or the caller
knows that the process before ended on a disk error or a damaged page, it makes a copy that is read from the medium,
lets SQLite apply the log to the copy, checks every page, and only then replaces the file by the copy. So it does where
the file alone is newer than with its log: then the medium lost the end of a log whose pages it holds in the file. The
rest of that log would bring older pages back, so it is left out, and a new file is made of the file alone. A copy that
fails the check is kept as `damaged-…` for inspection, and the kind makes a new file of what is sound in it.

**Failure.** A store that failed is never closed: closing makes SQLite copy its log into the file and remove it. The
process exits instead.
"""

from __future__ import annotations

import os.path
import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from typing import Final, NamedTuple

from billing.follower.proof import Unproved, copy_from_medium, differs, prove_checkpoint, read_log, salts_of
from shards.exits import Exit, ending_of, text_of
from shards.journal import Corrupt
from shards.system.disk import DirectoryRefused, Disk, RealDisk

BUSY_TIMEOUT_S = 10.0  # how long a transaction waits for the last one of an orphaned process
CACHE_KIB: Final = 32 * 1024
SIDES: Final = ("-wal", "-shm", "-journal")  # suffixes of the files that SQLite keeps beside a database


class StoreError(Exception):
    """The file cannot be used; the text says why. Nothing was changed. `code`: the exit code of a process that this
    ends.
    """

    code: Exit = Exit.BUG


class Overtaken(StoreError):
    """Another process has written to the file, or the file was replaced. It is enough to open the file again."""

    code = Exit.AGAIN


class Unopened(StoreError):
    """The operating system does not let this process open the file, or a file that SQLite keeps beside it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(text_of(error))
        self.code = ending_of(error).code


class Damaged(StoreError):
    """The file does not hold what was written to it. The next process opens a copy, and makes a new file of what is
    sound.
    """

    code = Exit.DAMAGED


class Ahead(StoreError):
    """The file holds batches that its journal does not have: the journal has lost them, or is an older copy."""

    code = Exit.DAMAGED


class Unconverted(StoreError):
    """The file is of an older version, and its shard's process has not converted it yet."""

    code = Exit.AGAIN


# Errors that a damaged file can cause; `code_of` tells whether damage was the cause. SQLite's own text may not decode.
UNREADABLE: Final = (sqlite3.DatabaseError, Damaged, UnicodeDecodeError)

Filling = Callable[[sqlite3.Connection], None]  # writes the first rows of a new file


class Kind(NamedTuple):
    """The format of one kind of follower's files."""

    noun: str  # the kind's name in messages
    application_id: int
    version: int
    schema: tuple[str, ...]
    older: tuple[int, ...] = ()  # older versions, which are converted when opened


def file_of(directory: str, shard: int) -> str:
    """The path of a shard's file."""
    return f"{directory}/shard-{shard}.sqlite"


def shard_files(directory: str, disk: Disk) -> dict[int, str]:
    """Returns {shard: path} of all followers' files in a directory."""
    paths = {}
    for name in disk.listdir(directory):
        number = name.removeprefix("shard-").removesuffix(".sqlite")
        if name == f"shard-{number}.sqlite" and number.isdecimal():
            paths[int(number)] = f"{directory}/{name}"
    return paths


def unconverted_files(directory: str, kind: Kind, served: Collection[int], disk: Disk) -> list[ShardFile]:
    """Returns the files of older versions whose shards are gone, so that no process of theirs will convert them. Each
    stands for itself: its journal may have no more batches. Files that cannot be read are left to `billing rebuild`.

    `served`: the shards that are not gone.
    """
    files = []
    for shard, path in shard_files(directory, disk).items() if disk.exists(directory) else ():
        if shard in served:
            continue
        with suppress(StoreError, sqlite3.DatabaseError, UnicodeDecodeError):
            db = connect(path, kind, versions=(kind.version, *kind.older))
            try:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                (position,) = db.execute("SELECT position FROM about").fetchone()
            finally:
                db.close()
            if version != kind.version and type(position) is int and position >= 0:
                files.append(ShardFile(directory, shard, position + 1, position, disk))
    return files


class ShardFile(NamedTuple):
    """Where the file of one shard's follower is, and which batches the shard's journal holds."""

    directory: str  # holds all files of this kind
    shard: int
    first: int  # the first batch that the shard's journal holds
    head: int  # the last one; `first` - 1 if the journal is empty
    disk: Disk

    @property
    def path(self) -> str:
        """The path that `file_of` gives."""
        return file_of(self.directory, self.shard)


def code_of(error: BaseException) -> int:
    """The exit code of a follower's process that this error ends."""
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
            return Exit.DAMAGED  # also if a table or column is missing, or the header forbids writing
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")):
            return Exit.DISK
    return Exit.BUG


def reason_of(error: BaseException) -> str:
    """The text of an error for an operator."""
    if isinstance(error, StoreError | Unproved | DirectoryRefused):
        return str(error)
    return f"{type(error).__name__}: {error}"


def connect(path: str, kind: Kind, *, write: bool = False, versions: Sequence[int] = ()) -> sqlite3.Connection:
    """Opens a connection to a file that exists, read-only or (`write`) for writing, too. Raises sqlite3.Error,
    StoreError; Unopened with the system's words, where SQLite only says that it cannot open it.

    `versions`: the versions of the format that are accepted; by default the present one alone.
    """
    try:
        db = sqlite3.connect(
            f"file:{_quoted(path)}?mode={'rw' if write else 'ro'}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_S,
        )
    except sqlite3.OperationalError as error:
        check_opens(error, (path,), write=write)
        raise
    try:
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application_id != kind.application_id:
            raise Damaged(f"{path} is no file of {kind.noun}: its application id is {application_id:#x}")
        if version not in (versions or (kind.version,)):
            if version in kind.older:
                raise Unconverted(f"{path} is of version {version}, and not converted to {kind.version} yet")
            raise StoreError(f"{path} is of version {version}, and this version reads {kind.version}")
    except sqlite3.OperationalError as error:
        db.close()
        check_opens(error, (path, *(path + side for side in SIDES)), write=write)
        raise
    except BaseException:
        db.close()
        raise
    return db


def _quoted(path: str) -> str:
    """A path as SQLite's URIs have it."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def check_opens(error: sqlite3.OperationalError, paths: Sequence[str], *, write: bool) -> None:
    """Raises Unopened if one of these files is there and cannot be opened, which `error` may be about. Does not open
    files that are only busy: closing one would end all locks that this process has on it (fcntl(2)).
    """
    if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return
    disk = RealDisk()
    for path in paths:
        try:
            disk.close(disk.open(path, write=write))
        except FileNotFoundError:
            continue
        except OSError as reason:
            raise Unopened(reason) from reason


def refuse_ahead(path: str, kind: Kind, head: int, ends_agree: Callable[[sqlite3.Connection], bool]) -> None:
    """Raises shards.journal.Corrupt if a file holds batches behind `head`, the last one of its journal: the journal has
    lost them. Called before the shard serves. A file that cannot be read, or whose own records of its end differ
    (`ends_agree`), proves nothing about the journal: it is damaged, and the follower deals with it.
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
    """Creates a file. It gets its name only once it is complete, synced and proved. `fill` writes the first rows, in
    the transaction that creates the tables. Logs beside the name, left from a file that was moved away, are removed
    first: SQLite would apply them to this file.
    """
    new_path = f"{path}.new"
    _remove(disk, new_path, *(new_path + side for side in SIDES))
    disk.close(disk.create(new_path))  # with this project's file mode, before SQLite creates it with another
    db = sqlite3.connect(new_path, isolation_level=None)
    try:
        db.execute(f"PRAGMA application_id = {kind.application_id}")
        db.execute(f"PRAGMA user_version = {kind.version}")
        db.execute("PRAGMA journal_mode = WAL")  # is stored in the file
        db.execute("BEGIN")
        for statement in kind.schema:
            db.execute(statement)
        fill(db)
        db.execute("COMMIT")
    finally:
        db.close()
    _put_in_place_alone(new_path, path, disk)


def put_in_place(aside: str, path: str, disk: Disk) -> None:
    """Renames a complete database file to `path`, durably, once it is synced and proved. Raises Unproved,
    OSError.
    """
    handle = disk.open(aside, write=True)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
    if differs(disk, aside):
        raise Unproved(f"{aside} was written and synced, but the medium does not hold it")
    # The log of the replaced file can go: this file holds everything that is in it.
    disk.rename(aside, path)
    _remove(disk, *(path + side for side in SIDES))
    disk.fsync_dir(os.path.dirname(path))


def _put_in_place_alone(aside: str, path: str, disk: Disk) -> None:
    """Does what `put_in_place` does, where the logs beside `path` belong to a different file: they are removed first.
    If power failed between rename and removal, SQLite would otherwise write that file's pages into this one.
    """
    _remove(disk, *(path + side for side in SIDES))
    disk.fsync_dir(os.path.dirname(path))
    put_in_place(aside, path, disk)


def opened(
    path: str, kind: Kind, disk: Disk, suspect: bool, rows_are_sound: Callable[[sqlite3.Connection], bool]
) -> str:
    """Checks a file before it is used. Returns "" if it may be used; else the path that a new file is to be made from:
    the file itself if it is of an older version, or, if it is damaged, a copy of it that is kept as evidence. See the
    module. Raises StoreError, Unproved, sqlite3.Error, OSError.
    """
    log, copy = f"{path}-wal", f"{path}.new"
    suspect = suspect or (disk.exists(log) and (differs(disk, log) or _has_lost_its_end(path, kind)))
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
            if _has_lost_its_end(copy, kind):
                return _keep(copy, path, disk)
        if not is_sound(copy, kind, rows_are_sound):
            return _keep(copy, path, disk)
        put_in_place(copy, path, disk)
    return "" if version == kind.version else path


def _has_lost_its_end(path: str, kind: Kind) -> bool:
    """Whether a file alone is newer than with its log. Then the medium took pages into the file and not the end of the
    log that they came from, although that was synced before, and what is left of the log brings older pages back. Each
    commit writes the position, so the end of the log is there where the newest position is. A log with which the file
    is damaged has lost its end, too; one that cannot be read now, as on a full disk, has not. Raises StoreError,
    sqlite3.Error.
    """
    position = in_file = -1
    try:
        with closing(connect(path, kind, versions=(kind.version, *kind.older))) as db:
            (position,) = db.execute("SELECT position FROM about").fetchone()
    except UNREADABLE as error:
        if code_of(error) != Exit.DAMAGED:
            raise
    with (
        suppress(sqlite3.DatabaseError, UnicodeDecodeError),
        closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro&immutable=1", uri=True)) as db,
    ):
        (in_file,) = db.execute("SELECT position FROM about").fetchone()
    return type(in_file) is int and type(position) is int and in_file > position


def is_sound(path: str, kind: Kind, rows_are_sound: Callable[[sqlite3.Connection], bool]) -> bool:
    """Lets SQLite apply the log to a file, and returns whether SQLite finds its pages sound and the kind its rows. The
    log is removed by that.
    """
    try:
        db = connect(path, kind, write=True, versions=(kind.version, *kind.older))
        try:
            db.execute("UPDATE about SET shard = shard")  # fails if a damaged header forbids writing
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
        return False  # nobody else uses the copy, so any other SQLite error comes from its bytes


def _keep(copy: str, path: str, disk: Disk) -> str:
    """Renames the copy of a damaged file to the name under which it is kept, and returns that name."""
    kept_path = _unused(path, "damaged", disk)
    disk.rename(copy, kept_path)
    _remove(disk, *(copy + side for side in SIDES))
    disk.fsync_dir(os.path.dirname(path))
    return kept_path


def make_of(
    path: str, source: str, kind: Kind, disk: Disk, salvage: Callable[[sqlite3.Connection], str], fill_new: Filling
) -> str:
    """Makes a file of what is sound in `source`, or, where nothing of it can be read, a new one (`fill_new`). Returns
    what came of it, as text for the operator.
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
    """Keeps a copy of a file that is about to lose rows. Returns the copy's path."""
    kept_path = _unused(path, why, disk)
    copy_to(db, f"{path}.new", disk)
    put_in_place(f"{path}.new", kept_path, disk)
    return kept_path


def copy_to(db: sqlite3.Connection, target: str, disk: Disk) -> None:
    """Writes the database of a connection to a new file. The file is neither synced nor proved."""
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
    """The writer of the file. Any exception ends it and its process: what is committed and proved stays, anything else
    is read from the journal again.
    """

    def __init__(self, path: str, kind: Kind, shard: int, disk: Disk) -> None:
        """Opens an existing file, and proves what its log holds. Raises StoreError, Unproved, sqlite3.Error,
        OSError.
        """
        self.path = path
        self.kind = kind
        self.shard = shard
        self._disk = disk
        self.durable = 0  # the last proved batch: the journal is needed from the next one on
        self.position = -1
        self._identity = disk.identity(path)
        self._proved: tuple[bytes, int] = b"", 0  # the log's salts, and how many of its frames are proved
        self.db = db = connect(path, kind, write=True)
        for pragma in ("synchronous = NORMAL", "wal_autocheckpoint = 0", f"cache_size = -{CACHE_KIB}"):
            db.execute(f"PRAGMA {pragma}")
        (stored_shard,) = db.execute("SELECT shard FROM about").fetchone()
        if stored_shard != shard:
            raise StoreError(f"{path} is the {kind.noun} of shard {stored_shard}")
        self.read_where()
        self.checkpoint()

    def read_where(self) -> None:
        """Reads from the file where it ends, and replaces everything that is cached of the file."""
        (self.position,) = self.db.execute("SELECT position FROM about").fetchone()

    def begin(self) -> None:
        """Begins a transaction. Raises Overtaken."""
        self.db.execute("BEGIN IMMEDIATE")
        if self._disk.exists(self.path):
            self._check_identity()
        (position,) = self.db.execute("SELECT position FROM about").fetchone()
        if position != self.position:
            raise Overtaken(f"{self.path} is at batch {position}, not {self.position}: another process writes to it")

    def commit(self, position: int) -> None:
        """Commits the transaction that brings the file up to the batch at `position`."""
        self.write_where(position)
        self.db.execute("COMMIT")
        self.position = position

    def write_where(self, position: int) -> None:
        """Writes `position` as the last batch in the file, in the open transaction."""
        self.db.execute("UPDATE about SET position = ?", (position,))

    def checkpoint(self) -> bool:
        """Makes what is committed durable and proves it. Returns False if a reader stands in the way: to be tried
        again. Raises Unproved, Overtaken (the file was removed or replaced), sqlite3.Error, OSError.
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
        """Raises Overtaken if the file was removed or replaced while in use. A removed file is first written again,
        from this process's connection, which still has all of it.
        """
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
        """Makes everything durable, and closes the file. Must not be called after an error."""
        self.checkpoint()
        self.db.close()


def lost_batches(position: int, first: int) -> int:
    """The number of batches that are neither in a file that ends at `position` nor in a journal that begins with
    `first`.
    """
    return max(0, first - 1 - position) if position >= 0 else 0


def _remove(disk: Disk, *paths: str) -> None:
    for path in paths:
        if disk.exists(path):
            disk.unlink(path)
