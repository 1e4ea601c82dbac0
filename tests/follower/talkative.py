"""A projector that logs each question, at DEBUG and at INFO, as a process of its own."""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import Any

from billing.follower.process import run
from billing.history.projector import NICENESS, Projector
from shards.system.clock import MACHINE_CLOCKS
from shards.system.disk import RealDisk

log = logging.getLogger("billing.history")


class Talkative(Projector):
    """Logs what it is asked."""

    def on_ask(self, number: int, question: tuple[Any, ...]) -> None:
        log.info("asked at INFO")
        log.debug("asked at DEBUG")
        super().on_ask(number, question)


if __name__ == "__main__":
    run(int(sys.argv[-1]), NICENESS, partial(Talkative, RealDisk(), MACHINE_CLOCKS))
