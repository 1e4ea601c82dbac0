"""Replies that are records say what the plain map says."""

from __future__ import annotations

import random

import msgspec
import pytest

from billing.api.replies import AccountReply, reply_of
from billing.api.wire import ERRORS_AS_MAP, ERRORS_AS_STRING, encode_reply, error_name_of
from billing.ledger import commands as ops
from billing.ledger.entry import answer
from billing.ledger.errors import Refused
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import INT64_MAX
from shards.replies import Moving, Unavailable, WrongBucket

USERS = (b"7", b"user_0000123", "пользователь".encode(), b"x" * 31, b"y" * 32, b"z" * 128)
BUCKET_ID = 65_535
OPS = (ops.TOP_UP, ops.TOP_UP, ops.SET_RATE, ops.CHANGE_RATE, ops.DEBIT, ops.SET_CREDIT_LIMIT, ops.HOLD)


@pytest.mark.parametrize(
    ("reply", "name", "applied"),
    [
        (Moving(7), "BUCKET_MOVING", "no"),
        (WrongBucket(7, 2), "WRONG_BUCKET", "no"),
        (Unavailable(2, "gone", "unknown"), "UNAVAILABLE", "unknown"),
    ],
)
def test_what_the_shards_cannot_do_now_is_an_error_that_may_be_tried_again(
    reply: object, name: str, applied: str
) -> None:
    kind, msgid, error, result = msgspec.msgpack.decode(encode_reply(5, ERRORS_AS_MAP, reply))
    assert (kind, msgid, result) == (1, 5, None)
    assert (error["name"], error["retry"], error["applied"]) == (name, True, applied)
    assert msgspec.msgpack.decode(encode_reply(5, ERRORS_AS_STRING, reply))[2].startswith(f"{name}: ")
    assert error_name_of(reply) == name


@pytest.mark.parametrize("seed", range(20))
def test_a_record_of_a_reply_encodes_as_the_plain_map(seed: int) -> None:
    rng = random.Random(seed)
    ledger = Ledger(Rules(accrue=False, request_ids_per_bucket=10, restore=False), lambda ref, due_ns: due_ns)
    ledger.create(BUCKET_ID)
    at_ns, records, records_whole = 10**18, 0, 0
    for number in range(400):
        at_ns += rng.choice((0, 1, 10**6, 10**9))
        op = rng.choice(OPS)
        a = rng.choice((1, 3600, 10**6, 10**12, INT64_MAX // 3))
        if op == ops.SET_CREDIT_LIMIT and rng.random() < 0.5:
            a = 0
        b, c = (-1, -1) if op in (ops.SET_RATE, ops.CHANGE_RATE) else (rng.randrange(3) if op == ops.DEBIT else 0, 0)
        request_id = b"%d" % rng.randrange(number + 1) if rng.random() < 0.2 else b""
        try:
            entry = ledger.apply(BUCKET_ID, at_ns, (op, rng.choice(USERS), a, b, c, b"", request_id, b"", b"", b""))
        except Refused:
            continue
        reply = reply_of(entry, BUCKET_ID)
        plain = answer(entry, BUCKET_ID)
        if isinstance(reply, AccountReply):
            records += 1
            assert list(msgspec.msgpack.decode(msgspec.msgpack.encode(reply)).items()) == list(plain.items())
        else:
            records_whole += 1
            assert reply == plain
    assert records > 5
    assert records_whole > 5
