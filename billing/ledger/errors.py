"""Refusals: every stable error name, with its code and whether a retry can succeed.

A refusal is an answer: the command changed nothing (`applied` "no"), or it is unknown whether the command changed
something (`applied` "unknown"). Names and codes never change their meaning and are never reused, so that no client has
to parse a message. Every name is defined in this table: raising `Refused` with another name is a bug and ends the
worker.

A message never contains raw bytes that a client sent: it names the field and gives numbers.
"""

from typing import Final, NamedTuple


class Kind(NamedTuple):
    """The fixed properties of an error name: its code on the wire, and whether the same call, unchanged, may succeed
    later.
    """

    code: int
    retry: bool


KINDS: Final[dict[str, Kind]] = {
    # 1xx: the request itself is wrong
    "PROTOCOL_ERROR": Kind(100, False),  # framing garbage; the connection closes behind it
    "FRAME_TOO_LARGE": Kind(101, False),
    "UNKNOWN_METHOD": Kind(102, False),
    "INVALID_PARAMS": Kind(103, False),  # wrong arity, unknown option, a value of the wrong type or out of range
    "INVALID_USER_ID": Kind(104, False),
    "INVALID_AMOUNT": Kind(105, False),
    "INVALID_RATE": Kind(106, False),
    # 2xx: the ledger refuses the command; nothing was changed
    "UNKNOWN_ACCOUNT": Kind(200, False),
    "INSUFFICIENT_FUNDS": Kind(201, False),
    "INSUFFICIENT_RUNWAY": Kind(202, False),
    "STALE_RATE": Kind(203, False),
    "REQUEST_ID_CONFLICT": Kind(204, False),
    "UNKNOWN_HOLD": Kind(205, False),
    "LIMIT_EXCEEDED": Kind(206, False),
    "ACCOUNT_NOT_CLOSABLE": Kind(207, False),  # a rate, a debt, a hold or an owed cutoff stands against closing
    "UNKNOWN_CUTOFF": Kind(208, False),  # nothing is owed to the cutoff URL for this account
    "UNKNOWN_CURSOR": Kind(209, False),  # of another daemon, or its history has taken back or deleted entries
    # 3xx: authentication and permissions
    "UNAUTHENTICATED": Kind(300, False),
    "FORBIDDEN": Kind(301, False),
    # 4xx: the account cannot be served here or now; a retry may succeed
    "UNAVAILABLE": Kind(400, True),
    "BUCKET_MOVING": Kind(401, True),
    "WRONG_BUCKET": Kind(402, True),
    "TOO_MANY_CONNECTIONS": Kind(403, True),
    "BUSY": Kind(404, True),  # the worker has too much in flight, or the connection asks too often; nothing was changed
    # 5xx: the operator's side of sharding
    "UNKNOWN_BUCKET": Kind(500, False),
    "UNKNOWN_SHARD": Kind(501, False),
    "BUCKET_PINNED": Kind(502, False),
    "MOVE_REFUSED": Kind(503, False),  # to itself, to a shard that is down, or while another move of it runs
    "BACKUP_REFUSED": Kind(504, False),  # a shard is down, or another one is being taken; the message says which
    # 9xx: a fault of the daemon
    "INTERNAL": Kind(900, False),
}

NAME_OF_CODE: Final[dict[int, str]] = {kind.code: name for name, kind in KINDS.items()}
assert len(NAME_OF_CODE) == len(KINDS), "two error names share a code"


class Refused(Exception):
    """The call is refused. `details` are named facts in plain numbers and strings, e.g. `{"shortfall_nanos": 7}`."""

    __slots__ = ("applied", "code", "details", "message", "name", "retry")

    def __init__(
        self, name: str, message: str, details: dict[str, object] | None = None, *, applied: str = "no"
    ) -> None:
        kind = KINDS[name]
        assert applied in ("no", "unknown")
        super().__init__(name, message)
        self.name = name
        self.code = kind.code
        self.retry = kind.retry
        self.message = message
        self.details: dict[str, object] = details or {}
        self.applied = applied

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"

    def as_map(self) -> dict[str, object]:
        """The structured form on the wire: code, name, message, retry, applied and the details. A detail cannot replace
        one of the five fixed keys.
        """
        return {
            **self.details,
            "code": self.code,
            "name": self.name,
            "message": self.message,
            "retry": self.retry,
            "applied": self.applied,
        }
