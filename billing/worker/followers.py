"""The followers of a served shard's journal: its history, and its notices if `notify.url` is set.

The worker opens them before it answers any request, hands each durable batch to them, and ends them after the last
batch. The journal is trimmed only below the position up to which all followers have written everything.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from billing.config.schema import Config
from billing.expirationd.delivery import DeliverySettings
from billing.follower.link import FollowedShard, FollowerLink
from billing.history.cursor import identity_of_log
from billing.history.link import HistorySettings
from billing.notices.link import settled_untold
from billing.notices.settings import NoticeSettings
from billing.worker.dependencies import WorkerDependencies
from shards.control import Begin
from shards.worker.hosting import ServedShard

# If hosts share the log, the history starts so much later: its process would take a core from the first answers.
FOLLOWERS_AFTER_S: Final = 0.3


class Followers:
    """The followers of one shard."""

    def __init__(
        self,
        worker: ServedShard,
        begin: Begin,
        config: Config,
        calls: DeliverySettings,
        dependencies: WorkerDependencies,
    ) -> None:
        """Opens the followers. `calls`: notices use the same secrets and timeouts as these calls."""
        self._worker = worker
        self._settled = begin.settled
        accepts_loss = config.journal.sync != "always"  # then a loss of power may take the journal's last batches
        shard = FollowedShard(f"{begin.directory}/history", worker.shard_id, worker.journal)
        identity = identity_of_log(begin.log) if begin.log else b""
        shards = tuple(sorted(worker.map.weights))
        served = shards if shards[:1] == (worker.shard_id,) and not begin.log else ()
        history_settings = HistorySettings(accepts_loss, config.history.keep_days, identity, served)
        self.history = dependencies.history(shard, history_settings)
        self.history.start(FOLLOWERS_AFTER_S if begin.log else 0.0)
        self._settings = NoticeSettings(
            config.notify.url,
            calls.secrets,
            calls.timeout_s,
            calls.connect_timeout_s,
            accepts_loss,
            is_apart=begin.links is not None,  # a bucket may come from a shard whose files another host has
            served=served,
        )
        of_notices = shard._replace(directory=f"{begin.directory}/notices")
        self._notices = notices = dependencies.notices(of_notices, self._settings, begin.settled)
        self._links: list[FollowerLink] = [self.history] if notices is None else [self.history, notices]
        self.hand = self.history.hand if notices is None else self._hand_all  # takes (position, payload) of a batch

    def _hand_all(self, position: int, payload: bytes) -> None:
        for link in self._links:
            link.hand(position, payload)

    def configure(self, calls: DeliverySettings) -> None:
        """Applies the log level of this process to all, and new secrets and timeouts to notices; notices in flight end
        with the old ones.
        """
        for link in self._links:
            link.tell_log_level()
        if self._notices is not None:
            settings = self._settings._replace(
                secrets=calls.secrets, timeout_s=calls.timeout_s, connect_timeout_s=calls.connect_timeout_s
            )
            self._notices.take_options(settings)

    def trim_floor(self) -> int:
        """The journal's position up to which all followers have written everything."""
        return min(link.trim_floor() for link in self._links)

    def obstacle(self) -> str:
        """What a follower still needs of the shard; "" if nothing."""
        return next((obstacle for link in self._links if (obstacle := link.obstacle())), "")

    def figures(self) -> dict[str, Any]:
        """Counters for the operator. `settled`: the batch up to which no notice is owed, -1 if that is unknown or not
        needed.
        """
        figures: dict[str, Any] = {}
        for link in self._links:
            figures |= link.figures()
        figures["trouble"] = "; ".join(silent for link in self._links if (silent := link.silence()))
        if self._notices is not None:
            figures["settled"] = figures.get("notices_settled", -1)
        else:
            figures["settled"] = settled_untold(self._settled, self._worker.journal.head)
        if "notices_owed" in figures:
            at_ns = figures["notices_oldest_at_ns"] if figures["notices_owed"] else 0
            figures["notices_oldest_ns"] = max(0, self._worker.fresh_now_ns() - at_ns) if at_ns else -1
        return figures

    async def close(self) -> None:
        """Ends the followers, after they have written what was committed."""
        await asyncio.gather(*(link.close() for link in self._links))
