"""The reply to a command, as a map or, for the most frequent commands, as a record that is encoded as that map.

The bulk of all replies are alike: they have the same keys, and nothing beside them. Such a reply is an `AccountReply`,
and of a debit a `DebitReply`: making one and encoding it costs half of what the map does, whose keys are hashed when it
is made and walked when it is encoded. It waits as it is until its batch is durable, and is encoded once, into the
buffer of the client that it is for. Whatever else an answer says (what was restored, a hold, what was captured or paid
out) is a map, made by `billing.ledger.entry.answer`. A test holds both to the same content.
"""

from typing import Final

import msgspec

from billing.ledger.commands import DEBIT, HOLD
from billing.ledger.entry import EXHAUSTED, REPLAYED, RESTORED, EntryTuple, answer

_PARTICULAR: Final = EXHAUSTED | RESTORED | REPLAYED


class AccountReply(msgspec.Struct, gc=False):
    """The map of CONTRACT §3, its keys in their order. It holds texts and numbers alone: nothing for a collector."""

    user_id: str
    bucket_id: int
    state: str
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


class DebitReply(AccountReply, gc=False):
    """The same of a debit."""

    outcome: str
    debited_nanos: int


RESULTS: Final = frozenset({AccountReply, DebitReply, dict})  # what `reply_of` makes


def reply_of(entry: EntryTuple, bucket_id: int) -> dict[str, object] | AccountReply:
    """The reply to the call that made this entry, or that got it again; it was not refused. The map of CONTRACT §3."""
    (
        op, flags, _, _, _, _, at_ns, entry_id, amount_nanos, amount_frac, _, _, nanos, _, rate, _, limit_nanos,
        holds_nanos, exhausts_at_ns, seq, _, _, user_id, _, _, _, _, _, _,
    ) = entry  # fmt: skip
    if flags & _PARTICULAR or amount_frac or op > DEBIT:
        return answer(entry, bucket_id)
    runway_ns: int | None
    if exhausts_at_ns < 0:
        exhausts_at_ns = runway_ns = None
    else:
        runway_ns = exhausts_at_ns - at_ns
    if op == DEBIT:
        return DebitReply(
            user_id.decode(), bucket_id, "active", nanos, limit_nanos, nanos + limit_nanos - holds_nanos, rate,
            rate // 3600, exhausts_at_ns, runway_ns, seq, entry_id, at_ns, False, "ok", -amount_nanos,
        )  # fmt: skip
    return AccountReply(
        user_id.decode(), bucket_id, "active", nanos, limit_nanos, nanos + limit_nanos - holds_nanos, rate,
        rate // 3600, exhausts_at_ns, runway_ns, seq, entry_id, at_ns, False,
    )  # fmt: skip


assert DEBIT < HOLD, "the most frequent commands have the lowest numbers"
