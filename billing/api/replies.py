"""The reply to a command, as a map or, for the most frequent commands, as a record that is encoded as that map.

Most replies are alike: they have the same keys and no others. Such a reply is an `AccountReply`, and the reply to a
debit a `DebitReply`. Making and encoding such a record costs half as much as a map, whose keys are hashed when it is
made and walked when it is encoded. The record waits until its batch goes to the journal, and is then encoded once, into
the buffer of its client, which leaves when the batch is durable. A reply with other content (a restored cutoff, a hold,
a captured or paid-out amount) is a map, made by `billing.ledger.entry.answer`. A test compares the content of both
forms.
"""

from typing import Final

import msgspec

from billing.ledger.commands import DEBIT, HOLD
from billing.ledger.entry import EXHAUSTED, REPLAYED, RESTORED, EntryTuple, answer

_PARTICULAR: Final = EXHAUSTED | RESTORED | REPLAYED


class AccountReply(msgspec.Struct, gc=False):
    """The map of CONTRACT §3, with its keys in their order. It holds only texts and numbers, so the garbage collector
    does not track it.
    """

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
    """The reply to a debit: an `AccountReply` with the outcome and the amount."""

    outcome: str
    debited_nanos: int


RESULTS: Final = frozenset({AccountReply, DebitReply, dict})  # the types that `reply_of` returns


def reply_of(entry: EntryTuple, bucket_id: int) -> dict[str, object] | AccountReply:
    """Returns the reply to a call, in the form of CONTRACT §3. `entry`: the entry that the call made or, for a repeated
    call, got again; not that of a refused call.
    """
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
