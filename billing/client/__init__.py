"""The client, under the name by which other projects import it: `from billing.client import Client, InsufficientFunds`.

It needs nothing of the daemon but the table of errors and the check of signatures.

    client           `Client`, and what it promises; synchronous: `SyncClient`, for programs without an event loop
    methods          a method for each procedure; blocking_methods: those that wait; blocking: how they do
    arguments        what a call takes; result, results: what it answers
    errors           what it raises
    batch, fan_out   many commands at once: over one connection, to every owner
    connection       one connection, and a link that always tries to have one; wire: its bytes
    routing          which connection a request takes
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
