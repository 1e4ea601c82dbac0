"""The outside world of a worker's application, except its doors: clocks, disk, followers and endpoints."""

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

# The last argument: the batch up to which all notices are settled.
NoticesOf = Callable[[FollowedShard, NoticeSettings, int], FollowerLink | None]


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
