"""A real disk that nobody waits for: for tests that ask what was written, and lose no power.

A process that is killed loses nothing of it either, for the system has it. What is durable is asked of
`tests.simulation.disk`.
"""

from __future__ import annotations

from shards.system.disk import RealDisk


class UnsyncedDisk(RealDisk):
    """Files as they are, without a sync."""

    def fdatasync(self, handle: int) -> None:
        """Does nothing."""

    def fsync(self, handle: int) -> None:
        """Does nothing."""

    def fsync_dir(self, path: str) -> None:
        """Does nothing."""
