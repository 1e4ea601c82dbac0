"""A worker process: one shard of the billing application, hosted by the shards room.

The daemon starts it as `billing worker DESCRIPTOR`, which is no command for people: it does not load the command line,
nor anything that only the main process needs, because a worker that died is waited for until it is loaded.
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
    """Hosts one shard until its end; returns the exit code. The descriptor is that of the control wire."""
    return run(control_descriptor, _build_logging, _load)


def main(arguments: list[str]) -> int:
    """`work`, with what nobody expected said on standard error. The last argument is the number of the descriptor, the
    one before says in a list of processes whose worker this is.
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
    """What is loaded on demand otherwise: on a host that stands by there is time for it before a takeover."""
    for name in LOADED_AHEAD:
        importlib.import_module(name)


def _build_logging(begin: Begin) -> Billing:
    config = Config.from_json(begin.configuration)
    recent = set_up(config.log, os.environ, {"BILLING_WORKER": str(begin.shard_id)})
    return Billing(config, begin, recent=recent.rows)
