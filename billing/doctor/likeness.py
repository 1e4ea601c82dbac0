"""Compares two states of a bucket: the one replayed from entries, and the one in a snapshot.

Facts are compared by name, account by account. The instant of a cutoff's 2xx is compared only if the snapshot has one,
since an older version did not keep it. Lines at zero and their rate_seqs are not compared once they are older than a
week: the ledger may remove them at any time after that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, cast

from billing.doctor.entry import UNIT, coins
from billing.doctor.state import IN_GRACE, PENDING, WEEK_NS, Account, Bucket, Grave

Difference = tuple[bytes, str]  # user_id or b"", and the text about the difference

_SUMS: Final = frozenset({"balance", "overrun"})
_PLAIN: Final = (
    "settled_ns", "balance", "overrun", "rate", "credit_limit_nanos", "holds_nanos", "exhausted", "accruing",
    "entry_id", "seq", "off_seq", "off_ns", "on_seq", "restore_attempts", "restore_error", "thresholds", "class_name",
)  # fmt: skip


def facts(account: Account) -> dict[str, object]:
    """The facts of an account to compare, by name."""
    named: dict[str, object] = {name: getattr(account, name) for name in _PLAIN}
    named["lines"] = account.lines or {}
    named["leases"] = account.leases or {}
    named["lines at zero"] = recent(account.quiet or {}, account.settled_ns)
    named["holds"] = account.holds or {}
    named["credits"] = account.credits
    named["cutoffs"] = [cutoff.facts() for cutoff in account.cutoffs]
    return named


def recent(quiet: dict[bytes, tuple[int, int]], at_ns: int) -> dict[bytes, tuple[int, int]]:
    """The lines at zero whose rate_seq still counts at this instant: those at zero for less than a week."""
    return {name: line for name, line in quiet.items() if at_ns - line[1] < WEEK_NS}


def differences(worked_out: Bucket, held: Bucket, now_ns: int) -> Iterator[Difference]:
    """The differences between a bucket replayed from entries (`worked_out`) and in a snapshot (`held`)."""
    if worked_out.generation != held.generation:
        yield b"", f"generation {held.generation}, by the log {worked_out.generation}"
    for user_id in sorted(worked_out.accounts.keys() | held.accounts.keys()):
        by_log, by_snapshot = worked_out.accounts.get(user_id), held.accounts.get(user_id)
        if by_log is None or by_snapshot is None:
            yield user_id, "it is in the snapshot alone" if by_log is None else "it is not in the snapshot"
            continue
        if (expected := facts(by_log)) != (stored := facts(by_snapshot)):
            texts = [
                f"{name} {_shown(name, stored[name])}, worked out {_shown(name, value)}"
                for name, value in expected.items()
                if stored[name] != value
            ]
            yield user_id, "the snapshot says " + "; ".join(texts)
        for expected_cutoff, cutoff in zip(by_log.cutoffs, by_snapshot.cutoffs, strict=False):
            for what, held_ns, expected_ns in (
                ("cutoff", cutoff.delivered_ns, expected_cutoff.delivered_ns),
                ("the restore of cutoff", cutoff.restored_ns, expected_cutoff.restored_ns),
            ):
                if held_ns and held_ns != expected_ns:
                    came = f"the 2xx of {what} {cutoff.seq} came at {held_ns}"
                    yield user_id, f"the snapshot says {came}, worked out {expected_ns}"
    for user_id in sorted(worked_out.graves.keys() | held.graves.keys()):
        if _grave(worked_out.graves.get(user_id), now_ns) != _grave(held.graves.get(user_id), now_ns):
            yield user_id, "what outlives the closed account is not what the log says"
    if worked_out.totals != held.totals:
        for name, total in worked_out.totals.items():
            if held.totals[name] != total:
                yield b"", f"{name} over all entries {coins(held.totals[name])}, worked out {coins(total)}"


def _grave(grave: Grave | None, now_ns: int) -> tuple[object, ...] | None:
    if grave is None:
        return None
    return grave.settled_ns, grave.entry_id, grave.seq, _off(grave), recent(grave.quiet, now_ns)


def _off(grave: Grave) -> tuple[object, ...]:
    return () if grave.off is None else (grave.off[0].facts(), *grave.off[1:])


def _shown(name: str, value: object) -> str:
    return coins(value) if name in _SUMS and isinstance(value, int) else repr(value)


def fingerprint(bucket: Bucket) -> bytes:
    """16 bytes that are equal for two buckets with equal facts, whichever shards they are at."""
    hashed = hashlib.blake2b(digest_size=16)
    for user_id in sorted(bucket.accounts):
        named = facts(bucket.accounts[user_id])
        for table in ("lines", "leases", "lines at zero", "holds"):
            named[table] = sorted(cast(dict[bytes, object], named[table]).items())
        hashed.update(repr((user_id, list(named.values()))).encode())
    for user_id, grave in sorted(bucket.graves.items()):
        hashed.update(repr((user_id, grave.settled_ns, grave.entry_id, grave.seq, _off(grave))).encode())
    hashed.update(repr((bucket.totals, list(bucket.order))).encode())
    return hashed.digest()


def kept_alike(worked_out: Bucket, held: Bucket) -> bool | None:
    """Whether both states keep the same request ids with the same entries; None if one keeps only the newer ones."""
    if worked_out.order == held.order:
        return all(held.request_ids[key] == value for key, value in worked_out.request_ids.items())
    shorter, longer = sorted((worked_out, held), key=lambda bucket: len(bucket.order))
    newest = list(longer.order)[len(longer.order) - len(shorter.order) :]
    if newest != list(shorter.order) or any(longer.request_ids[key] != shorter.request_ids[key] for key in newest):
        return False
    return None


def contradictions(bucket: Bucket, pending: int) -> Iterator[Difference]:
    """The contradictions within one state of a bucket. `pending`: the number of pending cutoffs that its block
    names.
    """
    if pending != bucket.pending():
        yield b"", f"{pending} cutoffs counted as pending, {bucket.pending()} are"
    for account in bucket.accounts.values():
        user_id = account.user_id
        if account.exhausted != (account.available <= 0):
            state = "exhausted" if account.exhausted else "active"
            yield user_id, f"it is {state} with {coins(account.available)} available"
        if sum(rate for rate, _ in (account.lines or {}).values()) != account.rate:
            yield user_id, "its rate is not the sum of its lines"
        if not (account.leases or {}).keys() <= (account.lines or {}).keys():
            yield user_id, "a line has a lease and no rate"
        if sum(credit.rest for credit in account.credits) > max(0, account.balance):
            yield user_id, "it has more credit that ends than money"
        if account.credits != sorted(account.credits):
            yield user_id, "its credits are not in the order in which they are spent"
        if sum(nanos for nanos, _ in (account.holds or {}).values()) != account.holds_nanos:
            yield user_id, "its holds do not add up"
        if not account.exhausted and any(cutoff.status in (PENDING, IN_GRACE) for cutoff in account.cutoffs):
            yield user_id, "it is active and owes a cutoff"
        if account.grace() is not None and len(account.cutoffs) > 1:
            yield user_id, "it has a cutoff beside one whose grace is running"
        if account.cutoffs and account.cutoffs[-1].seq != account.seq:
            yield user_id, f"its latest cutoff is {account.cutoffs[-1].seq}, its exhaustion_seq {account.seq}"
    total = sum(account.balance for account in bucket.accounts.values())
    if total != bucket.expected_balance():
        off = coins(abs(total - bucket.expected_balance()))
        yield b"", f"its balances add up to {total // UNIT} nanos, {off} off what its sums say"
