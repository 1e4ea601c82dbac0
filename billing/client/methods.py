"""One method for each procedure: made of the table of methods by `python -m tests.client.stubs`.

What an argument may be stands in `billing.client.arguments`. `call` takes any procedure by its name, with money as it
is on the wire.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Literal

from billing.client.arguments import Amount, ThresholdGiven, UserId, money, rehearsed, thresholds_of
from billing.client.results import (
    Account,
    AccountRow,
    AuditRow,
    BalanceAt,
    Bucket,
    Capture,
    Closing,
    Debit,
    Expiration,
    Explained,
    FeedRow,
    Forecast,
    HistoryRow,
    Hold,
    Moved,
    MoveExplained,
    Owners,
    PendingCutoff,
    Pinned,
    Rebalance,
    Released,
    ServerInfo,
    Shard,
    Standing,
    Statement,
)

# What begins with a user_id, for the user's owner.
ABOUT_ACCOUNT: Final = frozenset(
    {
        "top_up",
        "set_rate",
        "change_rate",
        "debit",
        "set_credit_limit",
        "get_account",
        "history",
        "balance_at",
        "statement",
        "hold",
        "capture",
        "release",
        "adjust",
        "set_thresholds",
        "set_class",
        "close_account",
        "explain",
        "retry_cutoff",
    }
)

# What changes nothing, and may be asked again.
ONLY_READS: Final = frozenset(
    {
        "get_account",
        "accounts",
        "history",
        "entries",
        "balance_at",
        "statement",
        "dry_run",
        "hello",
        "ping",
        "server_info",
        "methods",
        "bucket_id",
        "route",
        "buckets_info",
        "shards_info",
        "explain",
        "explain_move",
        "check_owners",
        "audit",
        "pending_cutoffs",
        "expirationd_stats",
        "forecast",
    }
)

# Which parameter of a change is money, and its name.
MONEY_AT: Final = {
    "top_up": (1, "amount"),
    "set_rate": (1, "rate"),
    "change_rate": (1, "delta"),
    "debit": (1, "amount"),
    "set_credit_limit": (1, "amount"),
    "hold": (1, "amount"),
    "capture": (2, "amount"),
    "adjust": (1, "amount"),
    "set_thresholds": (1, "thresholds"),
}


class Methods(ABC):
    """Every procedure, over `call`."""

    @abstractmethod
    async def call(self, method: str, *params: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """The result of any procedure; options that are None are not sent. Raises BillingError."""

    async def top_up(
        self,
        user_id: UserId,
        amount: Amount | None = None,
        *,
        nanos: int | None = None,
        expires_at_ns: int | None = None,
        kind: str | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Standing:
        """Adds money; creates the account if it is new."""
        return Standing(
            await self.call(
                "top_up",
                user_id,
                money("amount", amount, nanos),
                expires_at_ns=expires_at_ns,
                kind=kind,
                request_id=request_id,
                message=message,
            )
        )

    async def set_rate(
        self,
        user_id: UserId,
        rate: Amount | None = None,
        *,
        nanos: int | None = None,
        per: Literal["second", "minute", "hour"] | None = None,
        resource: str | None = None,
        rate_seq: int | None = None,
        min_runway_ns: int | None = None,
        ttl_ns: int | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Standing:
        """Sets the rate of one rate line; the account's rate is the sum of its lines."""
        return Standing(
            await self.call(
                "set_rate",
                user_id,
                money("rate", rate, nanos),
                per=per,
                resource=resource,
                rate_seq=rate_seq,
                min_runway_ns=min_runway_ns,
                ttl_ns=ttl_ns,
                request_id=request_id,
                message=message,
            )
        )

    async def change_rate(
        self,
        user_id: UserId,
        delta: Amount | None = None,
        *,
        nanos: int | None = None,
        per: Literal["second", "minute", "hour"] | None = None,
        resource: str | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Standing:
        """Adds to a rate line, or takes from it."""
        return Standing(
            await self.call(
                "change_rate",
                user_id,
                money("delta", delta, nanos),
                per=per,
                resource=resource,
                request_id=request_id,
                message=message,
            )
        )

    async def debit(
        self,
        user_id: UserId,
        amount: Amount | None = None,
        *,
        nanos: int | None = None,
        mode: Literal["strict", "partial", "force"] | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Debit:
        """A one-off charge."""
        return Debit(
            await self.call(
                "debit", user_id, money("amount", amount, nanos), mode=mode, request_id=request_id, message=message
            )
        )

    async def set_credit_limit(
        self,
        user_id: UserId,
        amount: Amount | None = None,
        *,
        nanos: int | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Standing:
        """How far below zero available money reaches."""
        return Standing(
            await self.call(
                "set_credit_limit", user_id, money("amount", amount, nanos), request_id=request_id, message=message
            )
        )

    async def get_account(self, user_id: UserId) -> Account:
        """Everything about the account now."""
        return Account(await self.call("get_account", user_id))

    async def accounts(
        self,
        *,
        after: UserId | None = None,
        limit: int | None = None,
        state: Literal["active", "exhausted"] | None = None,
        exhausts_within_ns: int | None = None,
        show: Sequence[Literal["rates", "holds"]] | None = None,
        class_name: str | None = None,
        overrunning: bool | None = None,
        shard_id: int | None = None,
    ) -> list[AccountRow]:
        """Accounts in order of user_id, a page, as they stand now."""
        renamed: dict[str, Any] = {"with": None if show is None else list(show), "class": class_name}
        return [
            AccountRow(row)
            for row in await self.call(
                "accounts",
                after=after,
                limit=limit,
                state=state,
                exhausts_within_ns=exhausts_within_ns,
                overrunning=overrunning,
                shard_id=shard_id,
                **renamed,
            )
        ]

    async def history(
        self, user_id: UserId, *, limit: int | None = None, before: int | None = None
    ) -> list[HistoryRow]:
        """The account's entries, newest first."""
        return [HistoryRow(row) for row in await self.call("history", user_id, limit=limit, before=before)]

    async def entries(self, *, after: str | None = None, limit: int | None = None) -> list[FeedRow]:
        """All entries behind a cursor, once each, those of an account in their order; the last row has the next
        cursor.
        """
        return [FeedRow(row) for row in await self.call("entries", after=after, limit=limit)]

    async def balance_at(self, user_id: UserId, at_ns: int) -> BalanceAt:
        """The account as it was at an instant, behind the entries of that instant."""
        return BalanceAt(await self.call("balance_at", user_id, at_ns))

    async def statement(
        self,
        user_id: UserId,
        from_ns: int,
        to_ns: int,
        *,
        by: Literal["resource"] | None = None,
        limit: int | None = None,
    ) -> Statement:
        """A period: balance at from_ns and at to_ns, what accrued, the entries from from_ns up to, not including,
        to_ns.
        """
        return Statement(await self.call("statement", user_id, from_ns, to_ns, by=by, limit=limit))

    async def dry_run(self, method: str, params: Sequence[Any]) -> Any:
        """What a procedure that changes an account would answer now; nothing changes."""
        return await self.call("dry_run", method, rehearsed(params, MONEY_AT.get(method)))

    async def hold(
        self,
        user_id: UserId,
        amount: Amount | None = None,
        *,
        nanos: int | None = None,
        ttl_ns: int | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Hold:
        """Reserves money."""
        return Hold(
            await self.call(
                "hold", user_id, money("amount", amount, nanos), ttl_ns=ttl_ns, request_id=request_id, message=message
            )
        )

    async def capture(
        self,
        user_id: UserId,
        hold_id: str,
        amount: Amount | None = None,
        *,
        nanos: int | None = None,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Capture:
        """Takes part or all of a hold and frees the rest."""
        return Capture(
            await self.call(
                "capture", user_id, hold_id, money("amount", amount, nanos), request_id=request_id, message=message
            )
        )

    async def release(
        self, user_id: UserId, hold_id: str, *, request_id: str | bytes | None = None, message: str | None = None
    ) -> Standing:
        """Gives a hold back."""
        return Standing(await self.call("release", user_id, hold_id, request_id=request_id, message=message))

    async def adjust(
        self,
        user_id: UserId,
        amount: Amount | None = None,
        *,
        nanos: int | None = None,
        reason: str,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Standing:
        """A correction, booked as such."""
        return Standing(
            await self.call(
                "adjust", user_id, money("amount", amount, nanos), reason, request_id=request_id, message=message
            )
        )

    async def set_thresholds(
        self,
        user_id: UserId,
        thresholds: Sequence[ThresholdGiven],
        *,
        request_id: str | bytes | None = None,
        message: str | None = None,
    ) -> Standing:
        """When to send low-balance notices."""
        return Standing(
            await self.call(
                "set_thresholds", user_id, thresholds_of(thresholds), request_id=request_id, message=message
            )
        )

    async def set_class(
        self, user_id: UserId, class_name: str, *, request_id: str | bytes | None = None, message: str | None = None
    ) -> Standing:
        """Puts the account in a cutoff class of the configuration; default is the one that [cutoff] says."""
        return Standing(await self.call("set_class", user_id, class_name, request_id=request_id, message=message))

    async def close_account(
        self, user_id: UserId, *, request_id: str | bytes | None = None, message: str | None = None
    ) -> Closing:
        """Closes an account at rate 0 without debt, hold or owed cutoff; pays out the rest as an entry."""
        return Closing(await self.call("close_account", user_id, request_id=request_id, message=message))

    async def ping(self) -> str:
        """Answers pong."""
        result: str = await self.call("ping")
        return result

    async def server_info(self) -> ServerInfo:
        """Version and limits."""
        return ServerInfo(await self.call("server_info"))

    async def methods(self) -> Any:
        """This table."""
        return await self.call("methods")

    async def bucket_id(self, user_id: UserId) -> int:
        """The bucket a user hashes to."""
        result: int = await self.call("bucket_id", user_id)
        return result

    async def route(self, *, version: int | None = None) -> Any:
        """Who owns each bucket, and where to call; only its version where that is the one given."""
        return await self.call("route", version=version)

    async def buckets_info(self) -> list[Bucket]:
        """Each bucket's owner, state and size."""
        return [Bucket(row) for row in await self.call("buckets_info")]

    async def shards_info(self) -> list[Shard]:
        """Each shard's process, buckets and load."""
        return [Shard(row) for row in await self.call("shards_info")]

    async def move_bucket(self, bucket_id: int, shard_id: int) -> Moved:
        """Moves a bucket to a shard; answers when the target serves."""
        return Moved(await self.call("move_bucket", bucket_id, shard_id))

    async def pin_bucket(self, bucket_id: int) -> Pinned:
        """Keeps the rebalancer off a bucket."""
        return Pinned(await self.call("pin_bucket", bucket_id))

    async def unpin_bucket(self, bucket_id: int) -> Pinned:
        """Lets the rebalancer move a bucket again."""
        return Pinned(await self.call("unpin_bucket", bucket_id))

    async def rebalance(self, *, plan: bool | None = None) -> Rebalance:
        """Moves buckets until the load is even; with plan = true only says which."""
        return Rebalance(await self.call("rebalance", plan=plan))

    async def explain(self, user_id: UserId) -> Explained:
        """Why an account stands where it stands."""
        return Explained(await self.call("explain", user_id))

    async def explain_move(self, bucket_id: int, *, shard_id: int | None = None) -> MoveExplained:
        """What a move of the bucket waits for, and whose that is."""
        return MoveExplained(await self.call("explain_move", bucket_id, shard_id=shard_id))

    async def check_owners(self) -> Owners:
        """Whether each bucket has exactly one owner, and adds up."""
        return Owners(await self.call("check_owners"))

    async def backup(self, step: Literal["begin", "renew", "end", "cancel"]) -> Any:
        """Holds files still and names the positions to copy them up to; see billing backup."""
        return await self.call("backup", step)

    async def audit(
        self, *, after: str | None = None, limit: int | None = None, actor: str | None = None, act: str | None = None
    ) -> list[AuditRow]:
        """What operators asked of this host, and refused sign-ins, behind a cursor; the last row has the next
        cursor.
        """
        return [AuditRow(row) for row in await self.call("audit", after=after, limit=limit, actor=actor, act=act)]

    async def pending_cutoffs(
        self, *, after: UserId | None = None, limit: int | None = None, shard_id: int | None = None
    ) -> list[PendingCutoff]:
        """What is owed to the cutoff URL; all rows of a user are on one page."""
        return [
            PendingCutoff(row)
            for row in await self.call("pending_cutoffs", after=after, limit=limit, shard_id=shard_id)
        ]

    async def expirationd_stats(self, *, shard_id: int | None = None) -> list[Expiration]:
        """What was checked and fired, per shard, and mismatches."""
        return [Expiration(row) for row in await self.call("expirationd_stats", shard_id=shard_id)]

    async def retry_cutoff(self, user_id: UserId) -> Account:
        """Tries an account's owed cutoff at once."""
        return Account(await self.call("retry_cutoff", user_id))

    async def release_cutoffs(self) -> Released:
        """Lets the cutoffs go that a start held back."""
        return Released(await self.call("release_cutoffs"))

    async def forecast(
        self, *, within_ns: int | None = None, step_ns: int | None = None, shard_id: int | None = None
    ) -> Forecast:
        """How many cutoffs are coming, by the second or minute."""
        return Forecast(await self.call("forecast", within_ns=within_ns, step_ns=step_ns, shard_id=shard_id))
