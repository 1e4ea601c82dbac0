"""What the real daemon answers is what the table of methods says: for every method, with every field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.api.methods import METHODS
from tests.api.conforms import faults
from tests.system.daemon import Daemon
from tests.system.rpc import Rpc

# A call of every method, in an order in which each finds what it is about.
SCENE: list[tuple[str, list[Any]]] = [
    ("hello", [{"errors": "map"}]),
    ("ping", []),
    ("server_info", []),
    ("methods", []),
    ("bucket_id", ["u"]),
    ("top_up", ["u", "5", {"message": "a start", "request_id": "t1"}]),
    ("top_up", ["u", "5", {"message": "a start", "request_id": "t1"}]),
    ("set_rate", ["u", "1", {"per": "hour", "resource": "vm-1"}]),
    ("change_rate", ["u", "0.5", {"per": "hour", "resource": "vm-2", "message": "resized"}]),
    ("debit", ["u", "1"]),
    ("set_credit_limit", ["u", "1", {"message": "a good customer"}]),
    ("hold", ["u", "1", {"request_id": "h", "ttl_ns": 3600 * 10**9, "message": "reserved"}]),
    ("set_thresholds", ["u", [{"amount": "1"}, {"runway_ns": 10**9}], {"message": "as asked for"}]),
    ("set_class", ["u", "default", {"message": "as agreed"}]),
    ("get_account", ["u"]),
    ("explain", ["u"]),
    ("capture", ["u", "r:h", "0.5", {"message": "taken"}]),
    ("hold", ["u", 5, {"request_id": "i"}]),
    ("release", ["u", "r:i", {"message": "not needed"}]),
    ("adjust", ["u", "-0.25", "a mistake"]),
    ("history", ["u"]),
    ("statement", ["u", 0, 2**63 - 1, {"by": "resource"}]),
    ("balance_at", ["u", 2**63 - 1]),
    ("dry_run", ["debit", ["u", "1"]]),
    ("accounts", [{"with": ["rates", "holds"]}]),
    ("entries", []),
    ("debit", ["u", "100", {"mode": "force"}]),
    ("pending_cutoffs", []),
    ("retry_cutoff", ["u"]),
    ("get_account", ["u"]),
    ("explain", ["u"]),
    ("top_up", ["u", "200"]),
    ("top_up", ["v", "1"]),
    ("close_account", ["v", {"message": "gone"}]),
    ("forecast", []),
    ("expirationd_stats", []),
    ("release_cutoffs", []),
    ("route", []),
    ("buckets_info", []),
    ("shards_info", []),
    ("check_owners", []),
    ("rebalance", [{"plan": True}]),
    ("rebalance", []),
    ("pin_bucket", [1]),
    ("explain_move", [1]),
    ("unpin_bucket", [1]),
    ("move_bucket", [1, 2]),
    ("move_bucket", [1, 1]),
    ("backup", ["begin"]),
    ("backup", ["renew"]),
    ("backup", ["end"]),
    ("audit", [{"actor": "", "act": "move_bucket"}]),
]


# What may come in this scene instead of a result: the rebalancer may be moving what is to be moved.
EXPECTED = {"move_bucket": ("MOVE_REFUSED",)}


@pytest.fixture(scope="module")
def daemon(module_dir: Path) -> Iterator[Daemon]:
    with Daemon(module_dir, shards__workers=2, shards__bucket_count=30) as started:
        yield started


async def test_every_method_answers_what_the_table_says(daemon: Daemon) -> None:
    assert {name for name, _ in SCENE} == set(METHODS)
    rpc = await Rpc.connect(daemon.rpc_port)
    mismatches = []
    for name, params in SCENE:
        error, result = await rpc.call(name, *params)
        if error is None:
            mismatches += [f"{name}: {fault}" for fault in faults(METHODS[name].reply, result)]
        elif error["name"] not in METHODS[name].errors or error["name"] not in EXPECTED.get(name, ()):
            mismatches.append(f"{name}: {error}")
    assert not mismatches, "\n".join(mismatches)


async def test_every_change_keeps_its_message(daemon: Daemon) -> None:
    rpc = await Rpc.connect(daemon.rpc_port)
    messages = {}
    for name, params in SCENE:
        if METHODS[name].kind == "command" and params[0] == "u":
            await rpc.call(name, "other", *params[1:])
            if isinstance(params[-1], dict) and "message" in params[-1]:
                messages[name] = params[-1]["message"]
    rows = await rpc.ask("history", "other")
    assert {row["operation"]: row["message"] for row in rows if row["message"]} == messages | {"adjust": "a mistake"}
    assert len(messages) == 8
