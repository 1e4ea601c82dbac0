"""The state of one account in detail, as `billing explain` shows it, made by the worker that owns the account.

It is the reply of `get_account`, and in addition: the shard of the bucket and its generation, the account's place in
the timing wheel, every stored cutoff with its attempts, the call owed now, its state in the outbox, and a sentence that
says why this user's call waits. It changes nothing, but applies the events that time has made due.
"""

from __future__ import annotations

from typing import Any, Protocol

from billing.expirationd.delivery import Delivery
from billing.ledger.book import Book
from billing.ledger.cutoffs import Owed
from billing.ledger.errors import Refused
from billing.ledger.extra import NEVER_NS, Extra
from billing.ledger.views import cutoff_row
from billing.worker.machine import BillingMachine
from shards.shard import Shard


class Worker(Protocol):
    """The part of the worker that `explain` uses."""

    shard: Shard

    def fresh_now_ns(self) -> int:
        """The billing instant, read anew."""


def explain(
    machine: BillingMachine, bucket_id: int, user_id: bytes, worker: Worker, delivery: Delivery
) -> dict[str, Any] | Refused:
    """The details as a map, or a refusal if the account, or its bucket, is not here any more."""
    now_ns = worker.fresh_now_ns()
    generation = worker.shard.held.get(bucket_id)
    if generation is None:
        return Refused("BUCKET_MOVING", "its bucket is leaving this shard")
    try:
        account = machine.ledger.view(bucket_id, user_id, now_ns)
    except Refused as refusal:
        return refusal
    book = machine.ledger.books[bucket_id]
    extra = book.extras.get(book.slots[user_id])
    owed = machine.ledger.owed(bucket_id, user_id)
    standing = delivery.outbox.standing(bucket_id, user_id)
    return {
        **account,
        "shard_id": worker.shard.shard_id,
        "generation": generation,
        "timer": _timer(machine, book, book.slots[user_id]),
        "cutoffs": [] if extra is None else [cutoff_row(user_id, cutoff) for cutoff in extra.cutoffs],
        "owes": None
        if owed is None
        else {"call": owed.kind, "event_id": owed.event_id, "seq": owed.seq, "attempts": owed.attempts},
        "outbox": None
        if standing is None
        else {
            "state": standing[0],
            "failures": standing[1],
            "next_attempt_in_ns": max(0, standing[2] - now_ns) if standing[2] else 0,
        },
        "why": _why(extra, owed, delivery, bucket_id, user_id),
    }


def _why(extra: Extra | None, owed: Owed | None, delivery: Delivery, bucket_id: int, user_id: bytes) -> str | None:
    """Why the call that is owed is not over yet; None if none is owed."""
    if owed is not None and not delivery.calls(owed.kind, owed.class_name.decode()):
        return "The configuration names no restore URL for this user any more, so the restore is not made."
    return delivery.why(bucket_id, user_id, _last_error(extra, owed))


def _last_error(extra: Extra | None, owed: Owed | None) -> str:
    """The error of the last attempt of the call that is owed; "" if there was none."""
    if extra is None or owed is None:
        return ""
    error = extra.restore_error if owed.kind == "restore" else extra.cutoffs[0].last_error
    return error.decode("utf-8", "replace")


def _timer(machine: BillingMachine, book: Book, slot: int) -> dict[str, Any]:
    """The place of the account's filing in the wheel, which never lies behind its coming instant."""
    filed_ns = book.armed_ns[slot]
    if not book.awake or filed_ns == 0:
        return {"state": "still"}
    if filed_ns == NEVER_NS:
        return {"state": "not armed"}
    level, begin_ns, width_ns = machine.place_of(filed_ns)
    if level < 0:
        return {"state": "armed in the exact heap", "filed_at_ns": filed_ns}
    return {"state": "armed in a slot", "level": level, "slot_at_ns": begin_ns, "slot_width_ns": width_ns}
