"""The client, under the name by which other projects import it: `from billing.client import Client, InsufficientFunds`.

It loads nothing of the daemon but the table of errors, the check of signatures and the hash of buckets.

    client           `Client`, and what it guarantees; synchronous: `SyncClient`, for programs without an event loop
    methods          a method for each procedure; blocking_methods: the same, which block; blocking: makes them block
    arguments        the arguments of calls; result, results: their results
    errors           the exceptions of calls
    batch, fan_out   many commands at once, over one connection or over one to every owner
    connection       one connection, and a link that opens it again and again; wire: MessagePack-RPC as bytes
    routing          chooses the connection of a request
    receiver         the receiver's side of cutoffs, restores and notices
"""

from billing.client.batch import Batch
from billing.client.client import Client
from billing.client.errors import (
    AccountNotClosable,
    BackupRefused,
    BillingError,
    BucketMoving,
    BucketPinned,
    Busy,
    Forbidden,
    FrameTooLarge,
    InsufficientFunds,
    InsufficientRunway,
    InternalError,
    InvalidAmount,
    InvalidParams,
    InvalidRate,
    InvalidUserId,
    LimitExceeded,
    MoveRefused,
    ProtocolError,
    RequestIdConflict,
    StaleRate,
    TooManyConnections,
    Unauthenticated,
    Unavailable,
    UnknownAccount,
    UnknownBucket,
    UnknownCursor,
    UnknownCutoff,
    UnknownHold,
    UnknownMethod,
    UnknownShard,
    WrongBucket,
)
from billing.client.synchronous import SyncClient

__all__ = [
    "AccountNotClosable",
    "BackupRefused",
    "Batch",
    "BillingError",
    "BucketMoving",
    "BucketPinned",
    "Busy",
    "Client",
    "Forbidden",
    "FrameTooLarge",
    "InsufficientFunds",
    "InsufficientRunway",
    "InternalError",
    "InvalidAmount",
    "InvalidParams",
    "InvalidRate",
    "InvalidUserId",
    "LimitExceeded",
    "MoveRefused",
    "ProtocolError",
    "RequestIdConflict",
    "StaleRate",
    "SyncClient",
    "TooManyConnections",
    "Unauthenticated",
    "Unavailable",
    "UnknownAccount",
    "UnknownBucket",
    "UnknownCursor",
    "UnknownCutoff",
    "UnknownHold",
    "UnknownMethod",
    "UnknownShard",
    "WrongBucket",
]
