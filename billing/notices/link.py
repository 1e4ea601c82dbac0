"""A worker's end of its notices: a follower's link (`follower.link`) to a notifier.

The link hands every durable batch to the notifier, reads again what the notifier has missed, restarts it when it ends,
and keeps the journal for it. The worker's own share is one message per batch, of bytes that exist already.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from billing.follower.link import FollowedShard, FollowerKind, FollowerLink, command_of
from billing.follower.store import ShardFile, file_of, refuse_ahead
from billing.notices.opening import abandon, ensure_file, skip
from billing.notices.settings import NoticeSettings
from billing.notices.store import KIND, ends_agree
from shards.system.host import REAL, Host

log = logging.getLogger("billing.notices")

COMMAND: Final = command_of("billing.notices.notifier")


def opened(
    shard: FollowedShard,
    settings: NoticeSettings,
    settled: int,
    *,
    command: Sequence[str] = COMMAND,
    host: Host = REAL,
) -> FollowerLink | None:
    """Starts the link, before anything is answered. Returns None where `notify.url` is empty: owed notices are
    discarded then, and a URL configured later gets notices of later events alone. `settled`: the batch up to which any
    host is known to have sent everything; −1: none is known.
    """
    directory, shard_id, journal = shard
    disk = host.disk
    if not settings.url:
        if abandon(directory, shard_id, disk):
            log.warning("notify.url is empty: what shard %d still had to tell is given up", shard_id)
        return None
    head = journal.head
    if not settings.accept_loss:
        refuse_ahead(file_of(directory, shard_id), KIND, head, ends_agree)
    if skip(directory, shard_id, settled, disk):
        log.info("shard %d: another host has told what happened up to batch %d", shard_id, settled)
    begin = head if settled < 0 else settled
    file = ShardFile(directory, shard_id, journal.first, head, disk)
    remark = ensure_file(file, host.randbits(62), host.clocks.wall_ns(), begin)
    if remark:
        log.warning("the %s of shard %d: %s", "notices", shard_id, remark)
    link = FollowerLink(FollowerKind("notices", command), shard, settings, host)
    link.start()
    return link


def settled_untold(settled: int, head: int) -> int:
    """Returns the batch up to which nothing is owed where no notices are sent; −1 where nobody needs to know.
    `settled`: the batch up to which any host was known to have sent everything when this one began, −1: none has ever
    sent anything. `head`: the journal's last batch.

    Events that happen while `notify.url` is empty make no notices, on whatever host a URL is configured again.
    """
    return head if settled >= 0 else -1
