"""The exceptions of calls: one class for each stable error name, so that callers tell errors apart by type.

A caller writes `except InsufficientFunds` and never parses a message. Every exception has what the daemon sent: `code`,
`name`, `message`, `retry` (the same call may succeed later), `applied` ("no": nothing was changed; "unknown": it may
have been) and `details`, the named facts such as `shortfall_nanos`. An error name that this version does not know is
raised as `BillingError` itself. A test compares the classes with the table in `billing.ledger.errors`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from billing.ledger.errors import KINDS

_FIXED = ("code", "name", "message", "retry", "applied")


class BillingError(Exception):
    """The daemon refused the call, or did not answer."""

    NAME: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        name: str = "",
        code: int = 0,
        retry: bool = False,
        applied: str = "no",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Without `name`, the error has the name, the code and the retry of its class."""
        kind = KINDS.get(self.NAME) if not name else None
        self.name = name or self.NAME
        self.code = kind.code if kind else code
        self.retry = kind.retry if kind else retry
        self.message = message
        self.applied = applied
        self.details: dict[str, Any] = dict(details or {})
        super().__init__(f"{self.name}: {message}" if self.name else message)


def error_of(error: object) -> BillingError:
    """Returns the exception for an error as it came over the wire: a map, or a string `"NAME: message"`."""
    if isinstance(error, dict):
        name = str(error.get("name", ""))
        return CLASSES.get(name, BillingError)(
            str(error.get("message", "")),
            name=name,
            code=int(error.get("code", 0)),
            retry=error.get("retry") is True,
            applied=str(error.get("applied", "unknown")),
            details={key: value for key, value in error.items() if key not in _FIXED},
        )
    name, separator, message = str(error).partition(": ")
    if separator and name in CLASSES:
        return CLASSES[name](message)
    return BillingError(str(error))


class ProtocolError(BillingError):
    """The bytes sent were no MessagePack-RPC; the connection was closed."""

    NAME = "PROTOCOL_ERROR"


class FrameTooLarge(BillingError):
    """A request, or a part of one, was larger than the server takes; the connection was closed."""

    NAME = "FRAME_TOO_LARGE"


class UnknownMethod(BillingError):
    """The server has no such method."""

    NAME = "UNKNOWN_METHOD"


class InvalidParams(BillingError):
    """Wrong number of parameters, an unknown option, or a value of the wrong type or range."""

    NAME = "INVALID_PARAMS"


class InvalidUserId(BillingError):
    """A user id is UTF-8 text of 1-128 bytes or a non-negative integer."""

    NAME = "INVALID_USER_ID"


class InvalidAmount(BillingError):
    """An amount is an integer of nanos or a decimal string of coins, above zero."""

    NAME = "INVALID_AMOUNT"


class InvalidRate(BillingError):
    """A rate is an amount of zero or more; a change must not lead below zero."""

    NAME = "INVALID_RATE"


class UnknownAccount(BillingError):
    """Nobody has topped this user up yet."""

    NAME = "UNKNOWN_ACCOUNT"


class InsufficientFunds(BillingError):
    """The amount is more than what is available; `details` has `shortfall_nanos`."""

    NAME = "INSUFFICIENT_FUNDS"


class InsufficientRunway(BillingError):
    """The money would last for less than `min_runway_ns`."""

    NAME = "INSUFFICIENT_RUNWAY"


class StaleRate(BillingError):
    """`rate_seq` is not newer than that of the rate line."""

    NAME = "STALE_RATE"


class RequestIdConflict(BillingError):
    """This `request_id` was used with other parameters."""

    NAME = "REQUEST_ID_CONFLICT"


class UnknownHold(BillingError):
    """There is no such open hold."""

    NAME = "UNKNOWN_HOLD"


class LimitExceeded(BillingError):
    """The result would leave the range of amounts, or there are too many rate lines."""

    NAME = "LIMIT_EXCEEDED"


class AccountNotClosable(BillingError):
    """The account cannot be closed while it has a rate, a debt, a hold or an owed cutoff."""

    NAME = "ACCOUNT_NOT_CLOSABLE"


class UnknownCutoff(BillingError):
    """The account has no cutoff that is owed to the cutoff URL."""

    NAME = "UNKNOWN_CUTOFF"


class UnknownCursor(BillingError):
    """The feed of entries cannot go on behind this cursor: another daemon gave it, or entries were taken back."""

    NAME = "UNKNOWN_CURSOR"


class Unauthenticated(BillingError):
    """The client has to sign in, or its token is not known."""

    NAME = "UNAUTHENTICATED"


class Forbidden(BillingError):
    """The token's roles do not include the one that this method needs."""

    NAME = "FORBIDDEN"


class Unavailable(BillingError):
    """The daemon, or the owner of the account's bucket, cannot be reached, or the connection was lost, or no answer
    came in time. `applied` says whether the call may have had its effect: "no" or "unknown"."""

    NAME = "UNAVAILABLE"


class BucketMoving(BillingError):
    """The account's bucket is changing its owner."""

    NAME = "BUCKET_MOVING"


class WrongBucket(BillingError):
    """The asked shard does not serve the account's bucket."""

    NAME = "WRONG_BUCKET"


class TooManyConnections(BillingError):
    """The worker has as many connections as it accepts, in all or from the origin of this one."""

    NAME = "TOO_MANY_CONNECTIONS"


class Busy(BillingError):
    """The worker has too many requests in flight, or this connection makes more per second than it may. Nothing was
    changed.
    """

    NAME = "BUSY"


class UnknownBucket(BillingError):
    """There is no such bucket."""

    NAME = "UNKNOWN_BUCKET"


class UnknownShard(BillingError):
    """There is no such shard."""

    NAME = "UNKNOWN_SHARD"


class BucketPinned(BillingError):
    """The bucket is pinned to its shard."""

    NAME = "BUCKET_PINNED"


class MoveRefused(BillingError):
    """The bucket is on the target shard already, the target shard is down, or another move is running."""

    NAME = "MOVE_REFUSED"


class BackupRefused(BillingError):
    """A backup cannot begin, or the running backup is void; the message says why."""

    NAME = "BACKUP_REFUSED"


class InternalError(BillingError):
    """A bug in the daemon."""

    NAME = "INTERNAL"


CLASSES: dict[str, type[BillingError]] = {
    kind.NAME: kind
    for kind in (
        ProtocolError,
        FrameTooLarge,
        UnknownMethod,
        InvalidParams,
        InvalidUserId,
        InvalidAmount,
        InvalidRate,
        UnknownAccount,
        InsufficientFunds,
        InsufficientRunway,
        StaleRate,
        RequestIdConflict,
        UnknownHold,
        LimitExceeded,
        AccountNotClosable,
        UnknownCursor,
        UnknownCutoff,
        Unauthenticated,
        Forbidden,
        Unavailable,
        BucketMoving,
        WrongBucket,
        TooManyConnections,
        Busy,
        UnknownBucket,
        UnknownShard,
        BucketPinned,
        MoveRefused,
        BackupRefused,
        InternalError,
    )
}
