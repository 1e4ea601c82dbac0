"""The messages between a worker and a follower: their arrays, and what is no message."""

from __future__ import annotations

from types import UnionType
from typing import Any, get_args

import msgpack
import msgspec
import pytest

from billing.follower import messages
from shards.system.links import frame_of

TO_FOLLOWER: list[tuple[messages.Message, list[Any]]] = [
    (messages.Open("/d/history", 2, 3, 9, False, (True, "url")), [0, "/d/history", 2, 3, 9, False, [True, "url"]]),
    (messages.Batch(7, b"entries"), [1, 7, b"entries"]),
    (messages.Ask(5, (1, b"user", [0, 0, 0])), [2, 5, [1, b"user", [0, 0, 0]]]),
    (messages.Close(), [3]),
    (messages.Settle(), [4]),
    (messages.Ping(), [5]),
    (messages.LogLevel(10), [6, 10]),
]
TO_WORKER: list[tuple[messages.Message, list[Any]]] = [
    (messages.Opened(7, ["remark"]), [16, 7, ["remark"]]),
    (messages.Reached(7, 800, 6, 0), [17, 7, 800, 6, 0]),
    (messages.Answer(5, [{"entry_id": 1}]), [18, 5, [{"entry_id": 1}]]),
    (messages.Refused(5, "why"), [19, 5, "why"]),
    (messages.Failed(74, "why"), [20, 74, "why"]),
    (messages.Told({"notices_owed": 1}), [21, {"notices_owed": 1}]),
    (messages.Remark("what"), [22, "what"]),
    (messages.Logged(30, "billing.notices", "%s waits", ("u",)), [23, 30, "billing.notices", "%s waits", ["u"]]),
]


@pytest.mark.parametrize(
    ("union", "decode", "here", "there"),
    [
        (messages.ToFollower, messages.to_follower, TO_FOLLOWER, TO_WORKER),
        (messages.ToWorker, messages.to_worker, TO_WORKER, TO_FOLLOWER),
    ],
)
def test_each_message_is_its_array_and_nothing_else_is_one(
    union: UnionType,
    decode: Any,
    here: list[tuple[messages.Message, list[Any]]],
    there: list[tuple[messages.Message, list[Any]]],
) -> None:
    assert {type(message) for message, _ in here} == set(get_args(union))
    for message, array in here:
        assert msgpack.unpackb(frame_of(message)[4:]) == array
        assert decode(frame_of(message)[4:]) == message
    wrong: list[Any] = [array for _, array in there] + [array[:-1] for _, array in here if len(array) > 1]
    for malformed in [*wrong, [], [99], ["stop"], None]:
        with pytest.raises(msgspec.ValidationError):
            decode(msgpack.packb(malformed))
