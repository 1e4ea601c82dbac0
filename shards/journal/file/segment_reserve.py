"""Reserves room on the disk before it is needed: the next segment, and ballast to drop when nothing else is left.

A full disk must strike between segments, never in the middle of a commit. So each segment is a file whose blocks were
all reserved and synced before its first use, and the next one is prepared ahead under the name `spare`, with the file
of its manifest beside it. When a segment begins, only `prepare` and `dress` can fail because the disk is full, and both
leave the journal as it was. `install` makes the spare the active segment in two steps, each durable before the next:

    1  the spare gets its segment's name     (its content was synced before, so a named segment is always whole)
    2  the new manifest replaces the old     (from here on, the loss of that segment is noticed)

A crash between them leaves a segment without an acknowledged batch of its own; the next opening goes on from it.

The ballast is a file that only takes room. Opening drops it when it finds the disk full, so that a journal can be
opened, read and trimmed even then, and so does a snapshot that finds no room. It is made again after trimming, or by
the next opening that finds room.
"""

from __future__ import annotations

import threading

from shards.journal.file.record import BLOCK_BYTES, MANIFEST_BYTES, Manifest, pack_manifest
from shards.journal.file.recovery import MANIFEST, TEMPORARY
from shards.system.disk import Disk, is_full, write_all

SPARE = "spare"
BALLAST = "ballast"


class SegmentReserve:
    """The files of a journal's directory that hold no batch yet."""

    def __init__(self, disk: Disk, directory: str, segment_bytes: int, ballast_bytes: int) -> None:
        assert segment_bytes >= 2 * BLOCK_BYTES
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._ballast_bytes = ballast_bytes
        self._spare = -1  # handles, -1: none
        self._spare_bytes = 0
        self._manifest = -1
        self.is_wanting = False  # the last try to get the next segment found no room
        self._ballast = False
        self._ballast_wanted = True
        self._ballast_lock = threading.Lock()  # snapshots drop it from their own thread

    @property
    def spare_bytes(self) -> int:
        """Length of the spare; 0 where there is none."""
        return self._spare_bytes

    def sweep(self) -> None:
        """Removes files that an earlier life left unfinished; to be called once, before anything else.
        Raises OSError.
        """
        for name in self._disk.listdir(self._directory):
            if name == SPARE or name.endswith(TEMPORARY):
                self._disk.unlink(f"{self._directory}/{name}")
        self._ballast = self._disk.exists(f"{self._directory}/{BALLAST}")
        self._ballast_wanted = True

    def prepare(self, length: int = 0) -> None:
        """Makes sure that there is a spare of at least this length (0: the usual one), and room for the manifest that
        will name it. Raises OSError, which may be `is_full`.
        """
        length = max(length, self._segment_bytes)
        self.is_wanting = True  # unless this call succeeds
        if self._spare_bytes < length:
            if self._spare >= 0:
                self._close_spare()
                self._disk.unlink(f"{self._directory}/{SPARE}")
            self._spare = self._reserve(SPARE, length)
            self._spare_bytes = length
        if self._manifest < 0:
            self._manifest = self._reserve(MANIFEST + TEMPORARY, MANIFEST_BYTES)
        self.is_wanting = False

    def _reserve(self, name: str, length: int) -> int:
        """Creates a file of zeros with all its blocks reserved, and returns its handle. Raises OSError; where that is
        `is_full`, the file is removed again.
        """
        path = f"{self._directory}/{name}"
        handle = self._disk.create(path)
        try:
            self._disk.allocate(handle, length)
            self._disk.fsync(handle)
        except OSError as error:
            self._disk.close(handle)
            if is_full(error):
                self._disk.unlink(path)
            raise
        return handle

    def dress(self, content: bytes, manifest: Manifest) -> None:
        """Writes the content (first block and perhaps batches) into the spare, and the new manifest beside the old one.

        The journal's state stays as it was. Raises OSError; where that is `is_full`, on a file system that does not
        keep reserved room, the call may be repeated.
        """
        write_all(self._disk, self._spare, content, 0)
        self._disk.fdatasync(self._spare)
        self._write_manifest(manifest)

    def install(self, name: str) -> int:
        """Makes the dressed spare the active segment under this name, and returns its handle. Raises OSError, after
        which it is not known how far it came.
        """
        self._disk.rename(f"{self._directory}/{SPARE}", f"{self._directory}/{name}")
        self._disk.fsync_dir(self._directory)
        self._replace_manifest()
        handle, self._spare, self._spare_bytes = self._spare, -1, 0
        return handle

    def mark(self, manifest: Manifest) -> None:
        """Replaces the manifest alone. Raises OSError, after which either the old one or the new one stands."""
        if self._manifest < 0:
            self._manifest = self._reserve(MANIFEST + TEMPORARY, MANIFEST_BYTES)
        self._write_manifest(manifest)
        self._replace_manifest()

    def take_ballast(self) -> None:
        """Creates the ballast if there is none, unless its room was needed. Raises OSError, which may be
        `is_full`.
        """
        with self._ballast_lock:
            if not self._ballast and self._ballast_wanted and self._ballast_bytes:
                self._disk.close(self._reserve(BALLAST, self._ballast_bytes))
                self._ballast = True

    def drop_ballast(self) -> bool:
        """Removes the ballast; it is not made again before `want_ballast`. Returns whether there was one. Raises
        OSError.
        """
        with self._ballast_lock:
            self._ballast_wanted = False
            if not self._ballast:
                return False
            self._disk.unlink(f"{self._directory}/{BALLAST}")
            self._ballast = False
            self._disk.fsync_dir(self._directory)
            return True

    def want_ballast(self) -> None:
        """Lets `take_ballast` make the ballast again, now that there is room."""
        self._ballast_wanted = True

    def close(self) -> None:
        """Closes the handles; the next opening removes the files."""
        self._close_spare()
        self._close_manifest()

    def _close_spare(self) -> None:
        if self._spare >= 0:
            handle, self._spare, self._spare_bytes = self._spare, -1, 0
            self._disk.close(handle)

    def _close_manifest(self) -> None:
        if self._manifest >= 0:
            handle, self._manifest = self._manifest, -1
            self._disk.close(handle)

    def _write_manifest(self, manifest: Manifest) -> None:
        write_all(self._disk, self._manifest, pack_manifest(manifest), 0)
        self._disk.fdatasync(self._manifest)

    def _replace_manifest(self) -> None:
        path = f"{self._directory}/{MANIFEST}"
        self._disk.rename(path + TEMPORARY, path)
        self._disk.fsync_dir(self._directory)
        self._close_manifest()
