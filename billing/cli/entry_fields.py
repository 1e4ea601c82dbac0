"""Unpacks an entry into named fields for people: the request, its outcome, flags and refusals by name.

Only fields that are zero, empty or not given are left out. No field is added that the entry does not contain.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from billing.ledger import commands as ops
from billing.ledger.entry import (
    ACCRUING,
    CROSSED,
    EXHAUSTED,
    OPENED,
    PRESUMED,
    REFUSED,
    RESTORED,
    RULE_ACCRUE,
    RULE_RESTORE,
    Entry,
    answer,
    grace_end_of,
    refused,
    unpack,
)

FLAGS: Final = {
    EXHAUSTED: "exhausted",
    CROSSED: "crossed",
    RESTORED: "restored",
    REFUSED: "refused",
    OPENED: "opened",
    PRESUMED: "presumed",
    RULE_ACCRUE: "rule accrue",
    RULE_RESTORE: "rule restore",
    ACCRUING: "accruing",
}

OPTION_NAMES: Final = {
    ops.TTL_NS: "ttl_ns",
    ops.DEFAULT_TTL_NS: "default_ttl_ns",
    ops.EXPIRES_AT_NS: "expires_at_ns",
}
KINDS: Final = {ops.BY_AMOUNT: "amount", ops.BY_RUNWAY: "runway_ns"}
MODE_NAMES: Final = {number: name for name, number in ops.MODES.items()}
THRESHOLD_BYTES: Final = len(ops.pack_thresholds([(0, 0)]))
UNSAID: Final = frozenset({"exhausts_at_ns", "line_rate"})  # -1 if the entry has no such value
OPTIONS: Final = frozenset({"rate_seq", "min_runway_ns"})  # -1 if the request did not give it


def entry_fields(body: bytes, bucket_id: int) -> dict[str, Any]:
    """The fields of a packed entry, in a readable order. Raises ValueError if `body` is no entry."""
    entry = unpack(body)
    named = Entry._make(entry)
    fields: dict[str, Any] = {
        "operation": ops.NAMES.get(named.op, named.op),
        "user_id": named.user_id,
        "at_ns": named.at_ns,
        **command_fields(named),
    }
    skipped = {"op", "flags", "refusal", "a", "b", "c", "key", "options", "note", *fields}
    for name, value in named._asdict().items():
        if name not in skipped and value not in (0, b"") and not (name in UNSAID and value < 0):
            fields[name] = value
    fields["flags"] = [name for flag, name in FLAGS.items() if named.flags & flag]
    try:
        if named.flags & REFUSED:
            fields["refusal"] = str(refused(entry, bucket_id))
        elif named.flags & RESTORED and named.note:
            fields["cutoff"] = answer(entry, bucket_id)["cutoff"]
        elif (named.flags & CROSSED or named.op == ops.SET_CLASS) and named.note:
            fields["grace_ends_at_ns"] = grace_end_of(body)
    except (KeyError, IndexError, AssertionError, struct.error):  # not written by the ledger: shown unparsed
        fields |= {"refusal": named.refusal, "note": named.note}
    return fields


def command_fields(entry: Entry) -> dict[str, Any]:
    """The parameters of the command in an entry, by name: the first one always, others only if they were given."""
    fields: dict[str, Any] = {}
    options = ops.unpack_options(entry.options)
    names = ops.FIELD_NAMES.get(entry.op, ("a", "b", "c", "key"))
    for number, (name, value) in enumerate(zip(names, (entry.a, entry.b, entry.c, entry.key), strict=True)):
        if name == "mode":
            fields[name] = MODE_NAMES.get(entry.b, value)
        elif name == "kind" and entry.op == ops.THRESHOLD:
            fields[name] = KINDS.get(entry.a, value)
        elif name == "thresholds" and len(entry.key) % THRESHOLD_BYTES == 0:
            fields[name] = [{KINDS.get(kind, str(kind)): value} for kind, value in ops.unpack_thresholds(entry.key)]
        elif name and (number == 0 or (value != -1 if name in OPTIONS else value)):
            fields[f"asked_{name}" if name in Entry._fields else name] = value
    for tag, name in OPTION_NAMES.items():
        if tag in options:
            fields[name] = ops.number_of(options, tag)
    if ops.KIND in options:
        fields["kind"] = options[ops.KIND]
    return fields
