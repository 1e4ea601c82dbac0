"""What opening does with the files of an earlier life: keeps evidence, and removes what a newer segment has replaced.

The state is right without any of these steps. Each may be lost in a crash or done twice without harm.
"""

from __future__ import annotations

from shards.journal.file.record import used_end
from shards.journal.file.recovery import Recovery
from shards.journal.file.replay import Segment
from shards.system.disk import Disk, read_file, write_file


def keep_torn(disk: Disk, directory: str, name: str, now_ns: int) -> None:
    """Copies a torn segment, for people; once per segment, however often opening is tried. Raises OSError."""
    if not any(other.startswith(f"{name}.torn-") for other in disk.listdir(directory)):
        data = read_file(disk, f"{directory}/{name}")
        write_file(disk, f"{directory}/{name}.torn-{now_ns}", data[: used_end(data, 0)])


def set_aside(disk: Disk, directory: str, damaged: list[str]) -> list[str]:
    """Renames damaged snapshots, so that none is read again and people can look at them. Returns warnings. Raises
    OSError.
    """
    for name in damaged:
        disk.rename(f"{directory}/{name}", f"{directory}/{name}.damaged")
    return [f"passed over a damaged snapshot, kept as {directory}/{name}.damaged" for name in damaged]


def drop_unfinished(disk: Disk, directory: str, recovery: Recovery) -> None:
    """Removes segments of openings that did not finish, so that repeated attempts take no room. Raises OSError.

    A newer segment has replaced each of them, and its name must be durable first. The segment that the manifest names
    stays for now.
    """
    unfinished = [segment for segment in recovery.replaced if segment.header.segment_id != recovery.named_segment_id]
    if unfinished:
        disk.fsync_dir(directory)
    for segment in unfinished:
        disk.unlink(f"{directory}/{segment.name}")


def drop_replaced(disk: Disk, directory: str, segments: list[Segment], recovery: Recovery) -> None:
    """Removes segments of which the newest one has taken over every batch, and cuts those that it has taken over off
    the segment before it. Raises OSError.

    `segments`, the new one last, is updated. Cutting also frees the blocks reserved for the older segment.
    """
    for segment in recovery.replaced:
        if segment.header.segment_id == recovery.named_segment_id:
            disk.unlink(f"{directory}/{segment.name}")
    first_position = segments[-1].header.first_position
    while len(segments) > 1 and segments[-2].header.first_position >= first_position:
        disk.unlink(f"{directory}/{segments[-2].name}")
        del segments[-2]
    if len(segments) > 1 and segments[-2].name == recovery.segments[-1].name:
        handle = disk.open(f"{directory}/{segments[-2].name}", write=True)
        try:
            disk.truncate(handle, recovery.log.live_end)
        finally:
            disk.close(handle)
        segments[-2] = segments[-2]._replace(size=recovery.log.live_end)
