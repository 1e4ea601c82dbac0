"""What the application of a worker has of the world, beside the doors that it opens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

from billing.expirationd.delivery import EndpointOf
from billing.expirationd.endpoint import Endpoint
from billing.follower.link import FollowedShard, FollowerLink
from billing.history import link as history
from billing.history.link import HistoryLink, HistorySettings
from billing.notices import link as notices
from billing.notices.settings import NoticeSettings
from shards.system.clock import MACHINE_CLOCKS, Clocks
from shards.system.disk import Disk, RealDisk
from shards.system.serial_executor import ExecutorOf, SerialExecutor

NoticesOf = Callable[[FollowedShard, NoticeSettings, int], FollowerLink | None]  # up to which batch all is settled


class WorkerDependencies(NamedTuple):
    """The machine, the followers' processes and the endpoints; a simulation passes its own."""

    clocks: Clocks
    disk: Disk
    rng: random.Random
    history: Callable[[FollowedShard, HistorySettings], HistoryLink]
    endpoint: EndpointOf
    notices: NoticesOf = notices.opened
    executor: ExecutorOf = SerialExecutor


REAL: Final = WorkerDependencies(MACHINE_CLOCKS, RealDisk(), random.Random(), history.opened, Endpoint)
