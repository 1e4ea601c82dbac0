"""What each call answers, as a class: made of the table of methods by `python -m tests.client.stubs`.

What all of them can do stands in `billing.client.result`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar, Literal

from billing.client.result import Result


class Cutoff(Result):
    """One exhaustion, and what became of its call."""

    event_id: str
    seq: int
    exhausted_at_ns: int
    status: str
    attempts: int
    last_error: str | None
    delivered_at_ns: int | None
    restored_at_ns: int | None


class Standing(Result):
    """How an account stands after a command."""

    _NESTED: ClassVar = {"cutoff": Cutoff}

    user_id: str
    bucket_id: int
    state: Literal["active", "exhausted"]
    balance_nanos: int
    credit_limit_nanos: int
    available_nanos: int
    rate_nanos_per_hour: int
    rate_nanos_per_second: int
    exhausts_at_ns: int | None
    runway_ns: int | None
    exhaustion_seq: int
    entry_id: int
    at_ns: int
    replayed: bool
    restored: bool
    cutoff: Cutoff
    balance: Decimal
    credit_limit: Decimal
    available: Decimal
    rate_per_hour: Decimal


class Debit(Result):
    """The reply to a debit."""

    _NESTED: ClassVar = {"cutoff": Cutoff}

    user_id: str
    bucket_id: int
    state: Literal["active", "exhausted"]
    balance_nanos: int
    credit_limit_nanos: int
    available_nanos: int
    rate_nanos_per_hour: int
    rate_nanos_per_second: int
    exhausts_at_ns: int | None
    runway_ns: int | None
    exhaustion_seq: int
    entry_id: int
    at_ns: int
    replayed: bool
    outcome: Literal["ok", "exhausted"]
    debited_nanos: int
    restored: bool
    cutoff: Cutoff
    balance: Decimal
    credit_limit: Decimal
    available: Decimal
    rate_per_hour: Decimal
    debited: Decimal


class Credit(Result):
    """Money that ends."""

    kind: str
    amount_nanos: int
    left_nanos: int
    expires_at_ns: int
    entry_id: int
    amount: Decimal
    left: Decimal


class OpenHold(Result):
    """Money that is reserved."""

    hold_id: str
    amount_nanos: int
    expires_at_ns: int | None
    amount: Decimal


class Threshold(Result):
    """When a low-balance notice is sent."""

    amount_nanos: int
    runway_ns: int
    amount: Decimal


class Account(Result):
    """Everything about an account."""

    _NESTED: ClassVar = {"credits": Credit, "cutoff": Cutoff, "holds": OpenHold, "thresholds": Threshold}

    user_id: str
    bucket_id: int
    state: Literal["active", "exhausted"]
    balance_nanos: int
    credit_limit_nanos: int
    available_nanos: int
    rate_nanos_per_hour: int
    rate_nanos_per_second: int
    exhausts_at_ns: int | None
    runway_ns: int | None
    exhaustion_seq: int
    entry_id: int
    at_ns: int
    replayed: bool
    rates: dict[str, int]
    credits: list[Credit]
    leases: dict[str, int]
    class_: str
    cutoff_at_ns: int | None
    cutoff: Cutoff | None
    overrun_nanos: int
    holds_nanos: int
    holds: list[OpenHold]
    thresholds: list[Threshold]
    balance: Decimal
    credit_limit: Decimal
    available: Decimal
    rate_per_hour: Decimal
    overrun: Decimal
    holds_total: Decimal


class AccountRow(Result):
    """An account in a list."""

    _NESTED: ClassVar = {"holds": OpenHold}

    user_id: str
    state: Literal["active", "exhausted"]
    balance_nanos: int
    available_nanos: int
    rate_nanos_per_hour: int
    exhausts_at_ns: int | None
    class_: str
    cutoff_at_ns: int | None
    rates: dict[str, int]
    holds: list[OpenHold]
    balance: Decimal
    available: Decimal
    rate_per_hour: Decimal


class HistoryRow(Result):
    """One entry of an account."""

    _NESTED: ClassVar = {"thresholds": Threshold}

    entry_id: int
    at_ns: int
    operation: str
    amount_nanos: int
    accrued_nanos: int
    balance_before_nanos: int
    balance_after_nanos: int
    message: str
    request_id: str | None
    resource: str | None
    line_rate_nanos_per_hour: int | None
    rate_nanos_per_hour: int | None
    value_nanos: int | None
    thresholds: list[Threshold] | None
    class_: str | None
    actor: str | None
    amount: Decimal
    accrued: Decimal
    balance_before: Decimal
    balance_after: Decimal
    line_rate_per_hour: Decimal | None
    rate_per_hour: Decimal | None
    value: Decimal | None


class FeedRow(Result):
    """One entry of the feed of all accounts."""

    _NESTED: ClassVar = {"thresholds": Threshold}

    cursor: str
    user_id: str
    entry_id: int
    at_ns: int
    operation: str
    amount_nanos: int
    accrued_nanos: int
    balance_before_nanos: int
    balance_after_nanos: int
    message: str
    request_id: str | None
    resource: str | None
    line_rate_nanos_per_hour: int | None
    rate_nanos_per_hour: int | None
    value_nanos: int | None
    thresholds: list[Threshold] | None
    class_: str | None
    actor: str | None
    amount: Decimal
    accrued: Decimal
    balance_before: Decimal
    balance_after: Decimal
    line_rate_per_hour: Decimal | None
    rate_per_hour: Decimal | None
    value: Decimal | None


class BalanceAt(Result):
    """An account as it was at an instant."""

    user_id: str
    at_ns: int
    up_to_now: bool
    state: Literal["active", "exhausted", "closed", "unopened"] | None
    balance_nanos: int
    credit_limit_nanos: int | None
    holds_nanos: int | None
    available_nanos: int | None
    rate_nanos_per_hour: int | None
    rate_nanos_per_second: int | None
    entry_id: int
    exact_balance: str
    whole_from_ns: int | None
    balance: Decimal
    credit_limit: Decimal | None
    holds_total: Decimal | None
    available: Decimal | None
    rate_per_hour: Decimal | None


class ExactSums(Result):
    """The sums of a statement to the internal unit."""

    opening: str
    credits: str
    debits: str
    expired: str
    accrued: str
    closing: str


class ResourceLine(Result):
    """What one rate line spent in the period of a statement."""

    resource: str | None
    accrued_nanos: int
    exact_accrued: str
    line_rate_nanos_per_hour: int
    accrued: Decimal
    line_rate_per_hour: Decimal


class Statement(Result):
    """A period of an account."""

    _NESTED: ClassVar = {"exact": ExactSums, "entries": HistoryRow, "resources": ResourceLine}

    user_id: str
    from_ns: int
    to_ns: int
    up_to_now: bool
    opening_nanos: int
    credits_nanos: int
    debits_nanos: int
    expired_nanos: int
    accrued_nanos: int
    closing_nanos: int
    exact: ExactSums
    entries_count: int
    first_entry_id: int | None
    last_entry_id: int | None
    entries: list[HistoryRow]
    whole_from_ns: int | None
    resources: list[ResourceLine] | None
    opening: Decimal
    credits: Decimal
    debits: Decimal
    expired: Decimal
    accrued: Decimal
    closing: Decimal


class Hold(Result):
    """The reply to a hold."""

    _NESTED: ClassVar = {"cutoff": Cutoff}

    user_id: str
    bucket_id: int
    state: Literal["active", "exhausted"]
    balance_nanos: int
    credit_limit_nanos: int
    available_nanos: int
    rate_nanos_per_hour: int
    rate_nanos_per_second: int
    exhausts_at_ns: int | None
    runway_ns: int | None
    exhaustion_seq: int
    entry_id: int
    at_ns: int
    replayed: bool
    hold_id: str
    restored: bool
    cutoff: Cutoff
    balance: Decimal
    credit_limit: Decimal
    available: Decimal
    rate_per_hour: Decimal


class Capture(Result):
    """The reply to a capture."""

    _NESTED: ClassVar = {"cutoff": Cutoff}

    user_id: str
    bucket_id: int
    state: Literal["active", "exhausted"]
    balance_nanos: int
    credit_limit_nanos: int
    available_nanos: int
    rate_nanos_per_hour: int
    rate_nanos_per_second: int
    exhausts_at_ns: int | None
    runway_ns: int | None
    exhaustion_seq: int
    entry_id: int
    at_ns: int
    replayed: bool
    captured_nanos: int
    restored: bool
    cutoff: Cutoff
    balance: Decimal
    credit_limit: Decimal
    available: Decimal
    rate_per_hour: Decimal
    captured: Decimal


class Closing(Result):
    """The reply to the closing of an account."""

    _NESTED: ClassVar = {"cutoff": Cutoff}

    user_id: str
    bucket_id: int
    state: Literal["active", "exhausted"]
    balance_nanos: int
    credit_limit_nanos: int
    available_nanos: int
    rate_nanos_per_hour: int
    rate_nanos_per_second: int
    exhausts_at_ns: int | None
    runway_ns: int | None
    exhaustion_seq: int
    entry_id: int
    at_ns: int
    replayed: bool
    paid_out_nanos: int
    forfeited_nanos: int
    restored: bool
    cutoff: Cutoff
    balance: Decimal
    credit_limit: Decimal
    available: Decimal
    rate_per_hour: Decimal
    paid_out: Decimal
    forfeited: Decimal


class ServerInfo(Result):
    """Version and limits."""

    version: str
    shard_id: int
    shards: int
    bucket_count: int
    now_ns: int
    journal_sync: str
    after_exhaustion: str
    request_ids_per_bucket: int
    limits: Any


class Bucket(Result):
    """A bucket."""

    bucket_id: int
    shard_id: int
    state: str
    generation: int
    accounts: int | None


class Shard(Result):
    """A shard, its process and its load."""

    shard_id: int
    worker_pid: int | None
    state: str
    reason: str
    weight: int
    buckets: int
    pinned: int
    sending: int
    receiving: int
    accounts: int | None
    armed: int | None
    pending_cutoffs: int | None
    journal_bytes: int | None
    passed_on: int | None
    garbage: int | None
    starts: int
    links_down: list[str]
    history_lacks: str
    alerts: list[str]


class Moved(Result):
    """A bucket that was moved."""

    bucket_id: int
    shard_id: int
    generation: int


class Pinned(Result):
    """Whether a bucket is pinned."""

    bucket_id: int
    pinned: bool


class Rebalance(Result):
    """The moves that make the load even."""

    moves: int
    steps: list[Any]


class Explained(Result):
    """Why an account stands where it stands."""

    _NESTED: ClassVar = {
        "credits": Credit,
        "cutoff": Cutoff,
        "holds": OpenHold,
        "thresholds": Threshold,
        "cutoffs": Cutoff,
    }

    user_id: str
    bucket_id: int
    state: Literal["active", "exhausted"]
    balance_nanos: int
    credit_limit_nanos: int
    available_nanos: int
    rate_nanos_per_hour: int
    rate_nanos_per_second: int
    exhausts_at_ns: int | None
    runway_ns: int | None
    exhaustion_seq: int
    entry_id: int
    at_ns: int
    replayed: bool
    rates: dict[str, int]
    credits: list[Credit]
    leases: dict[str, int]
    class_: str
    cutoff_at_ns: int | None
    cutoff: Cutoff | None
    overrun_nanos: int
    holds_nanos: int
    holds: list[OpenHold]
    thresholds: list[Threshold]
    shard_id: int
    generation: int
    timer: Any
    cutoffs: list[Cutoff]
    owes: Any
    outbox: Any
    why: str | None
    balance: Decimal
    credit_limit: Decimal
    available: Decimal
    rate_per_hour: Decimal
    overrun: Decimal
    holds_total: Decimal


class MoveExplained(Result):
    """What a move waits for."""

    bucket_id: int
    shard_id: int
    generation: int
    state: str
    to_shard_id: int | None
    waits_for: str | None
    whose: str | None
    last_error: str | None


class Owners(Result):
    """Whether every bucket has one owner."""

    buckets: int
    moving: int
    shards: int
    faults: list[Any]
    unanswered: list[str]
    unchecked: list[str]


class AuditRow(Result):
    """What an operator asked for, or a sign-in that was refused."""

    cursor: str
    at_ns: int
    actor: str
    act: str
    details: Any


class PendingCutoff(Result):
    """A call that is owed."""

    user_id: str
    event_id: str
    seq: int
    exhausted_at_ns: int
    attempts: int
    last_error: str | None
    held: bool


class Expiration(Result):
    """What a shard checked and fired."""

    shard_id: int
    checked_count: int
    expired_count: int
    mismatches: int
    rounds: int
    restarts: int
    lateness_p50_ns: int | None
    lateness_p99_ns: int | None
    working_time_ns: int


class Released(Result):
    """How many cutoffs were let go."""

    released: int


class ForecastStep(Result):
    """One step of a forecast."""

    at_ns: int
    cutoffs: int
    most_in_a_second: int


class Forecast(Result):
    """The cutoffs that are coming."""

    _NESTED: ClassVar = {"steps": ForecastStep}

    from_ns: int
    within_ns: int
    step_ns: int
    cutoffs: int
    next_at_ns: int | None
    next_user_id: str | None
    peak_at_ns: int | None
    peak_per_second: int
    endpoint_takes_per_second: Any
    steps: list[ForecastStep]
