"""A worker process: one shard of the billing application, hosted by the shards room.

The daemon starts it as `billing worker DESCRIPTOR`, which is no command for people. It loads neither the command line
nor modules that only the main process needs, because users of a shard whose worker died wait while its successor loads.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Final

from billing.config.schema import Config
from billing.service.logs import set_up
from billing.worker.application import Billing
from shards.control import Begin
from shards.exits import Exit, ending_of, text_of
from shards.journal.backends import KINDS
from shards.worker.process import run

LOADED_AHEAD: Final = (
    *("billing.history.entries", "billing.history.link", "billing.history.period_reader", "billing.notices.link"),
    *(kind.module for kind in KINDS.values() if kind.is_shared),
)


def work(control_descriptor: int) -> int:
    """Hosts one shard until the process is to end; returns the exit code. The descriptor is the control wire's."""
    return run(control_descriptor, _build_logging, _load)


def main(arguments: list[str]) -> int:
    """Calls `work`, and reports an unexpected error on standard error. The last argument is the number of the
    descriptor. The argument before it only shows, in a list of processes, which shard's worker this is.
    """
    try:
        return work(int(arguments[-1]))
    except Exception as error:
        code = ending_of(error).code
        if code == Exit.BUG:
            traceback.print_exc()
        else:
            print(f"billing: {text_of(error)}", file=sys.stderr)
        return code


def _load() -> None:
    """Loads modules that are otherwise loaded on demand: a host that stands by has time for this before a takeover."""
    for name in LOADED_AHEAD:
        importlib.import_module(name)


def _build_logging(begin: Begin) -> Billing:
    config = Config.from_json(begin.configuration)
    recent = set_up(config.log, os.environ, {"BILLING_WORKER": str(begin.shard_id)})
    return Billing(config, begin, recent=recent.rows)
