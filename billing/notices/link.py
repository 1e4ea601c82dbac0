"""A worker's end of its notices: a follower's link (`follower.link`) to a notifier.

The link hands every durable batch to the notifier, reads again what that has missed, starts it again where it ends, and
keeps the journal for it. The worker's own share is one message a batch, of bytes that exist already.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from billing.expirationd.delivery import DeliverySettings
from billing.follower.link import FollowerLink, command_of
from billing.follower.store import ShardFile, file_of, refuse_ahead
from billing.notices.opening import abandon, found, skip
from billing.notices.store import KIND, ends_agree
from shards.journal import Journal
from shards.system.clock import Clocks
from shards.system.host import REAL, Host

log = logging.getLogger("billing.notices")

COMMAND: Final = command_of("billing.notices.notifier")


def opened(
    directory: str,
    shard_id: int,
    journal: Journal,
    url: str,
    settings: DeliverySettings,
    accept_loss: bool,
    settled: int,
    clocks: Clocks,
    apart: bool = False,
    *,
    command: Sequence[str] = COMMAND,
    host: Host = REAL,
) -> FollowerLink | None:
    """The link, started, before anything is answered; None where there is nobody to tell. Then what was still owed is
    given up: a URL named later is told of events from then on. `accept_loss`: a file that is ahead of the
    journal is cut back instead of refused. `settled`: the batch up to which any host is known to have told everything;
    −1: none is. `apart`: the files of other shards may be other hosts', so each shard tells what its own journal holds.
    """
    disk = host.disk
    if not url:
        if abandon(directory, shard_id, disk):
            log.warning("notify.url is empty: what shard %d still had to tell is given up", shard_id)
        return None
    head = journal.head
    if not accept_loss:
        refuse_ahead(file_of(directory, shard_id), KIND, head, ends_agree)
    if skip(directory, shard_id, settled, disk):
        log.info("shard %d: another host has told what happened up to batch %d", shard_id, settled)
    begin = head if settled < 0 else settled
    file = ShardFile(directory, shard_id, journal.first, head, disk)
    remark = found(file, host.randbits(62), clocks.wall_ns(), begin)
    if remark:
        log.warning("the %s of shard %d: %s", "notices", shard_id, remark)
    options = (accept_loss, url, list(settings.secrets), settings.timeout_s, settings.connect_timeout_s, apart)
    link = FollowerLink("notices", command, directory, shard_id, journal, clocks, options=options, host=host)
    link.start()
    return link


def settled_untold(settled: int, head: int) -> int:
    """The batch up to which nothing is owed where nobody is told, −1 where that is of no interest. `settled`: up to
    which any host is known to have told everything when this one began, −1: none has ever told anything. `head`: the
    journal's last batch.

    What happens while `notify.url` is empty is nobody's to hear of, on whatever host it is named again.
    """
    return head if settled >= 0 else -1
