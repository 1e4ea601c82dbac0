"""What opening does with the files of the life before: evidence is kept, what a newer segment replaced goes.

Nothing here is needed for the state to be right. Each step may be lost in a crash or done twice without harm.
"""

from __future__ import annotations

from shards.journal.file.record import used_end
from shards.journal.file.recovery import Recovery
from shards.journal.file.replay import Segment
from shards.system.disk import Disk, read_file, write_file


def keep_torn(disk: Disk, directory: str, name: str, now_ns: int) -> None:
    """A copy of a torn segment, for people. Once per segment, however often opening it is tried. OSError."""
    if not any(other.startswith(f"{name}.torn-") for other in disk.listdir(directory)):
        data = read_file(disk, f"{directory}/{name}")
        write_file(disk, f"{directory}/{name}.torn-{now_ns}", data[: used_end(data, 0)])


def set_aside(disk: Disk, directory: str, damaged: list[str]) -> list[str]:
    """Take damaged snapshots out of the row, keeping them for people. Returns warnings. OSError."""
    for name in damaged:
        disk.rename(f"{directory}/{name}", f"{directory}/{name}.damaged")
    return [f"passed over a damaged snapshot, kept as {directory}/{name}.damaged" for name in damaged]


def drop_unfinished(disk: Disk, directory: str, recovery: Recovery) -> None:
    """Remove segments of openings that did not come to their end, so that trying over and over takes no room. OSError.

    Each is replaced by a newer one, whose name must be durable first. The one that the manifest names stays for now.
    """
    unfinished = [segment for segment in recovery.replaced if segment.header.segment_id != recovery.named_segment_id]
    if unfinished:
        disk.fsync_dir(directory)
    for segment in unfinished:
        disk.unlink(f"{directory}/{segment.name}")


def drop_replaced(disk: Disk, directory: str, segments: list[Segment], recovery: Recovery) -> None:
    """Remove segments of which the newest one took over everything; cut what it took over off the one before. OSError.

    `segments`, the new one last, is brought up to date. The rest of the blocks reserved for the older one go too.
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
