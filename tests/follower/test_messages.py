"""The messages between a worker and a follower: their arrays, and what is no message."""

from __future__ import annotations

from types import UnionType
from typing import Any, get_args

import msgpack
import msgspec
import pytest

from billing.follower import messages as say
from shards.system.links import frame_of

TO_FOLLOWER: list[tuple[say.Message, list[Any]]] = [
    (say.Open("/d/history", 2, 3, 9, False, (True, "url")), [0, "/d/history", 2, 3, 9, False, [True, "url"]]),
    (say.Batch(7, b"entries"), [1, 7, b"entries"]),
    (say.Ask(5, (1, b"user", [0, 0, 0])), [2, 5, [1, b"user", [0, 0, 0]]]),
    (say.Close(), [3]),
    (say.Settle(), [4]),
    (say.Ping(), [5]),
]
TO_WORKER: list[tuple[say.Message, list[Any]]] = [
    (say.Opened(7, ["remark"]), [16, 7, ["remark"]]),
    (say.Reached(7, 800, 6, 0), [17, 7, 800, 6, 0]),
    (say.Answer(5, [{"entry_id": 1}]), [18, 5, [{"entry_id": 1}]]),
    (say.Refused(5, "why"), [19, 5, "why"]),
    (say.Failed(74, "why"), [20, 74, "why"]),
    (say.Told({"notices_owed": 1}), [21, {"notices_owed": 1}]),
    (say.Remark("what"), [22, "what"]),
    (say.Logged(30, "billing.notices", "%s waits", ("u",)), [23, 30, "billing.notices", "%s waits", ["u"]]),
]


@pytest.mark.parametrize(
    ("union", "decode", "here", "there"),
    [(say.ToFollower, say.to_follower, TO_FOLLOWER, TO_WORKER), (say.ToWorker, say.to_worker, TO_WORKER, TO_FOLLOWER)],
)
def test_each_message_is_its_array_and_nothing_else_is_one(
    union: UnionType, decode: Any, here: list[tuple[say.Message, list[Any]]], there: list[tuple[say.Message, list[Any]]]
) -> None:
    assert {type(message) for message, _ in here} == set(get_args(union))
    for message, array in here:
        assert msgpack.unpackb(frame_of(message)[4:]) == array
        assert decode(frame_of(message)[4:]) == message
    wrong: list[Any] = [array for _, array in there] + [array[:-1] for _, array in here if len(array) > 1]
    for one in [*wrong, [], [99], ["stop"], None]:
        with pytest.raises(msgspec.ValidationError):
            decode(msgpack.packb(one))
