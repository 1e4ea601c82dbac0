"""The commands that give an account of the daemon the state that a source describes. Pure.

Their order is the money, the credit limit, the rates; so that a user who has money is never exhausted by the import.
Each command carries a `request_id` made of the import's label and of what it does. The daemon keeps request ids for
seven days, so an interrupted import may be run again within that time: commands that were carried out get their stored
answers, with `replayed`. The same label with another amount for the same user is refused as `REQUEST_ID_CONFLICT`:
money is not added twice because a file was edited in between. A bucket remembers a limited number of ids, so the ids of
each bucket are counted before anything is sent (`most_of_a_bucket`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, Final

from billing.migration.sources import Account, NotTaken
from shards.buckets import hashed_into

Command = tuple[str, list[Any]]  # method, params

IN_DEBT: Final = "nothing would be available, so that the user would be cut off at once; bring the debt in by hand"


def is_empty(account: Account) -> bool:
    """Whether there is nothing to import: the first top-up opens such an account."""
    return not account.balance_nanos and account.credit_limit_nanos is None and not account.rates


def refusal_of(account: Account) -> NotTaken | None:
    """Returns why an account is not imported, else None: an exhausted account would be cut off, and an import switches
    nobody off.
    """
    available = account.balance_nanos + (account.credit_limit_nanos or 0)
    return NotTaken(account.location, IN_DEBT) if available <= 0 and not is_empty(account) else None


def commands_of(account: Account, label: str, message: str) -> Iterator[Command]:
    """Yields the commands of one account that is neither empty nor refused."""
    user, nanos = account.user_id, account.balance_nanos
    opening = nanos if nanos > 0 else 1  # only a top-up opens an account; the extra nano is taken away below
    yield "top_up", [user, opening, {"request_id": f"{label}:balance", "message": message}]
    if account.credit_limit_nanos is not None:
        yield "set_credit_limit", [user, account.credit_limit_nanos, {"request_id": f"{label}:credit_limit"}]
    if nanos != opening:
        yield "adjust", [user, nanos - opening, message, {"request_id": f"{label}:debt"}]
    for line in account.rates:
        options = {"per": line.per, "resource": line.resource, "request_id": _short(f"{label}:rate:{line.resource}")}
        yield "set_rate", [user, line.rate, options]


def most_of_a_bucket(accounts: Iterable[Account], bucket_count: int) -> int:
    """Returns the largest number of commands, each with a request id, for any one bucket."""
    counts, bucket_of = [0] * bucket_count, hashed_into(bucket_count)
    for account in accounts:
        number = 1 + (account.credit_limit_nanos is not None) + (account.balance_nanos <= 0) + len(account.rates)
        counts[bucket_of(account.user_id.encode()) - 1] += number
    return max(counts)


def _short(request_id: str) -> str:
    """Returns a request id of at most 64 bytes: the digest of a longer one."""
    raw = request_id.encode()
    return request_id if len(raw) <= 64 else sha256(raw).hexdigest()
