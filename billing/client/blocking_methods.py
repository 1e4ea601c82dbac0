"""The methods of `billing.client.methods`, each of which waits for its answer.

Made of the table of methods by `python -m tests.client.stubs`.
"""

from __future__ import annotations

from abc import ABC

from billing.client.blocking import Blocking, blocking
from billing.client.methods import Methods


class BlockingMethods(Blocking, ABC):
    """Every procedure; each returns when its answer is there."""

    top_up = blocking(Methods.top_up)
    set_rate = blocking(Methods.set_rate)
    change_rate = blocking(Methods.change_rate)
    debit = blocking(Methods.debit)
    set_credit_limit = blocking(Methods.set_credit_limit)
    get_account = blocking(Methods.get_account)
    accounts = blocking(Methods.accounts)
    history = blocking(Methods.history)
    entries = blocking(Methods.entries)
    balance_at = blocking(Methods.balance_at)
    statement = blocking(Methods.statement)
    dry_run = blocking(Methods.dry_run)
    hold = blocking(Methods.hold)
    capture = blocking(Methods.capture)
    release = blocking(Methods.release)
    adjust = blocking(Methods.adjust)
    set_thresholds = blocking(Methods.set_thresholds)
    set_class = blocking(Methods.set_class)
    close_account = blocking(Methods.close_account)
    ping = blocking(Methods.ping)
    server_info = blocking(Methods.server_info)
    methods = blocking(Methods.methods)
    bucket_id = blocking(Methods.bucket_id)
    route = blocking(Methods.route)
    buckets_info = blocking(Methods.buckets_info)
    shards_info = blocking(Methods.shards_info)
    move_bucket = blocking(Methods.move_bucket)
    pin_bucket = blocking(Methods.pin_bucket)
    unpin_bucket = blocking(Methods.unpin_bucket)
    rebalance = blocking(Methods.rebalance)
    explain = blocking(Methods.explain)
    explain_move = blocking(Methods.explain_move)
    check_owners = blocking(Methods.check_owners)
    backup = blocking(Methods.backup)
    audit = blocking(Methods.audit)
    pending_cutoffs = blocking(Methods.pending_cutoffs)
    expirationd_stats = blocking(Methods.expirationd_stats)
    retry_cutoff = blocking(Methods.retry_cutoff)
    release_cutoffs = blocking(Methods.release_cutoffs)
    forecast = blocking(Methods.forecast)
