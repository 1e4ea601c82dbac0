"""A worker's end of its notices: the link of the history (`history.link`), to a process of another kind.

The link hands every durable batch to the notifier, reads again what that has missed, starts it again where it ends, and
keeps the journal for it. The worker's own share is one message a batch, of bytes that exist already.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

from billing.expirationd.delivery import DeliverySettings
from billing.history.link import HistoryLink
from billing.notices.store import abandon, found
from shards.journal import Journal
from shards.system.disk import RealDisk

log = logging.getLogger("billing.notices")

COMMAND: Final = (sys.executable, *(["-I"] if sys.flags.isolated else []), "-m", "billing.notices.notifier")


def opened(directory: str, shard_id: int, journal: Journal, url: str, settings: DeliverySettings) -> HistoryLink | None:
    """The link, started, before anything is answered; None where there is nobody to tell. Then what was still owed is
    given up: whoever is named later is told of what happens from then on.
    """
    disk = RealDisk()
    if not url:
        if abandon(directory, shard_id, disk):
            log.warning("notify.url is empty: what shard %d still had to tell is given up", shard_id)
        return None
    found(directory, shard_id, journal.head, disk)
    opening = (url, list(settings.secrets), settings.timeout_s, settings.connect_timeout_s)
    link = HistoryLink(directory, shard_id, journal, command=COMMAND, noun="notices", opening=opening)
    link.start()
    return link
