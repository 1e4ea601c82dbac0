"""The messages of the control wire: bytes in both directions, and what is no message."""

from __future__ import annotations

import asyncio
import socket
from types import UnionType
from typing import Any, get_args

import msgpack
import msgspec
import pytest

from shards import control
from shards.control import LinkSettings, Message, WorkerSettings
from shards.links.far import Far
from shards.system.clock import Anchor
from shards.system.links import FrameDecoder, FrameError, Wire, frame_of

ANCHOR = Anchor(5, 1000, -3, 250)
BEGIN = control.Begin(
    shard_id=2, directory="/d", founded=True, bucket_map=b"map", peers={1: "one.sock"}, listeners=[("tcp", 7)],
    direct={2: "h:1"}, journal={"kind": "file"}, settings=WorkerSettings(0.05, 9), configuration=b"{}", proved=[1],
    settled=-1, far={3: Far("b:4", 7)}, links=LinkSettings("a:4", "c", 6, 1, "/s", None), log="c",
)  # fmt: skip
# A message, and the array that it is on the wire.
TO_WORKER: list[tuple[Message, list[Any]]] = [
    (BEGIN, ["begin", 2, "/d", True, b"map", {1: "one.sock"}, [["tcp", 7]], {2: "h:1"}, {"kind": "file"}, [0.05, 9],
             b"{}", [1], -1, {3: ["b:4", 7]}, ["a:4", "c", 6, 1, "/s", None], "c"]),
    (control.Serve([ANCHOR]), ["serve", [[5, 1000, -3, 250]]]),
    (control.Stop(), ["stop"]),
    (control.NewAnchor(ANCHOR), ["new_anchor", [5, 1000, -3, 250]]),
    (control.ShardsChanged([["weight", 3, 1]], {3: "s"}, {}, {4: Far("b:4", 7)}),
     ["shards_changed", [["weight", 3, 1]], {3: "s"}, {}, {4: ["b:4", 7]}]),
    (control.Configure(WorkerSettings(0.0, 1), b"c"), ["configure", [0.0, 1], b"c"]),
    (control.Proved(3), ["proved", 3]),
    (control.Held(3, "why"), ["held", 3, "why"]),
    (control.ReadFigures(7), ["read_figures", 7]),
    (control.ReadObstacle(7), ["read_obstacle", 7]),
    (control.Examine(7), ["examine", 7]),
    (control.Query(7, b"u", ("get_account", b"u")), ["query", 7, b"u", ["get_account", b"u"]]),
    (control.Answer(7, {"moves": 1}), ["answer", 7, {"moves": 1}]),
    (control.MoveOut(9, 4, 1), ["move_out", 9, 4, 1]),
    (control.MoveIn(9, 4, 2, b"b", b"d", 5), ["move_in", 9, 4, 2, b"b", b"d", 5]),
    (control.MoveAbort(9, 4), ["move_abort", 9, 4]),
    (control.NewOwner(9, 4, 2, 2), ["new_owner", 9, 4, 2, 2]),
    (control.AskShard(3, ("cut", 100, 5)), ["ask_shard", 3, ["cut", 100, 5]]),
    (control.PassOn(3, 9, 2, (6, 1), b"o"), ["pass_on", 3, 9, 2, [6, 1], b"o"]),
    (control.PassAsk(3, 7, ("move", 1)), ["pass_ask", 3, 7, ["move", 1]]),
    (control.HoldFiles(True), ["hold_files", True]),
    (control.Cut(100, 5), ["cut", 100, 5]),
]  # fmt: skip
TO_SUPERVISOR: list[tuple[Message, list[Any]]] = [
    (control.Waiting("no room"), ["waiting", "no room"]),
    (control.Progress(1, 2), ["progress", 1, 2]),
    (control.Recovered(5, 6, 7, 8, ["w"]), ["recovered", 5, 6, 7, 8, ["w"]]),
    (control.Serving(11, 12, "a:4"), ["serving", 11, 12, "a:4"]),
    (control.Failed(74, "disk"), ["failed", 74, "disk"]),
    (control.Figures.of(7, {"accounts": 1}), ["figures", 7, {"accounts": 1}, {}]),
    (
        control.Figures.of(7, {"owed": 2**64, "least": -(2**63)}),
        ["figures", 7, {"least": -(2**63)}, {"owed": str(2**64)}],
    ),
    (control.Obstacle(7, ""), ["obstacle", 7, ""]),
    (control.Examined(7, [(1, 2)], ["f"]), ["examined", 7, [[1, 2]], ["f"]]),
    (control.QueryReply(b"r"), ["query_reply", b"r"]),
    (control.Ask(7, ("rebalance", 0)), ["ask", 7, ["rebalance", 0]]),
    (control.Payload(9, b"b", b"d", 5), ["payload", 9, b"b", b"d", 5]),
    (control.Stored(9, b"d"), ["stored", 9, b"d"]),
    (control.Served(9), ["served", 9]),
    (control.Known(9), ["known", 9]),
    (control.Unmoved(9, "why"), ["unmoved", 9, "why"]),
    (control.Holdup(9, "why"), ["holdup", 9, "why"]),
    (control.Arriving(9, 4, 2, 3, (6, 1)), ["arriving", 9, 4, 2, 3, [6, 1]]),
    (control.FarReport(3, (6, 1), control.Known(9)), ["far_report", 3, [6, 1], ["known", 9]]),
    (control.FarAnswer(7, {"moves": 1}), ["far_answer", 7, {"moves": 1}]),
    (control.FilesHeld(), ["files_held"]),
    (control.CutAt(-1), ["cut_at", -1]),
    (control.ShardTold(3, -1, "why"), ["shard_told", 3, -1, "why"]),
]
DIRECTIONS = [
    (control.ToWorker, control.to_worker, TO_WORKER, TO_SUPERVISOR),
    (control.ToSupervisor, control.to_supervisor, TO_SUPERVISOR, TO_WORKER),
]


@pytest.mark.parametrize(("union", "decode", "here", "there"), DIRECTIONS)
def test_each_message_is_its_array_in_both_directions(union: UnionType, decode: Any, here: Any, there: Any) -> None:
    assert {type(message) for message, _ in here} == set(get_args(union))
    for message, array in here:
        body = frame_of(message)[4:]
        assert msgpack.unpackb(body, strict_map_key=False) == array
        assert decode(body) == message
        assert decode(msgpack.packb(array)) == message


@pytest.mark.parametrize(("union", "decode", "here", "there"), DIRECTIONS)
def test_what_is_no_message_of_this_direction_is_refused(union: UnionType, decode: Any, here: Any, there: Any) -> None:
    wrong = [array for _, array in there]
    wrong += [array[:-1] for _, array in here if len(array) > 1]  # too short
    wrong += [[array[0], *[object] * (len(array) - 1)] for _, array in here if len(array) > 1]  # of another type
    wrong += [[], ["no_such_message"], [7], {"stop": 1}, None, "stop"]
    for array in wrong:
        with pytest.raises(msgspec.ValidationError):
            decode(msgpack.packb(array, default=lambda _: {"wrong": [None]}))


def test_every_message_goes_in_one_direction() -> None:
    assert set(Message.__subclasses__()) == {*get_args(control.ToWorker), *get_args(control.ToSupervisor)}
    assert not {*get_args(control.ToWorker)} & {*get_args(control.ToSupervisor)}


def test_what_is_no_message_is_no_frame_however_deep_it_is() -> None:
    decoder = FrameDecoder(control.to_supervisor)
    assert list(decoder.feed(frame_of(control.Known(1)) + frame_of(control.Served(2)))) == [
        control.Known(1),
        control.Served(2),
    ]
    deep = b"\x92\xa6answer\x93\x01" + b"\x91" * 100_000
    for body in (b"\xc1", deep, msgpack.packb(["known", "one"])):
        with pytest.raises(FrameError):
            list(FrameDecoder(control.to_worker).feed(len(body).to_bytes(4, "little") + body))


async def test_a_wire_ends_on_what_is_no_message_and_hands_on_what_came_before() -> None:
    near, far = socket.socketpair()
    heard: list[Any] = []
    closed = asyncio.Event()
    loop = asyncio.get_running_loop()
    wire = Wire(lambda _, message: heard.append(message), lambda _: closed.set(), lambda _: None, control.to_worker)
    await loop.create_connection(lambda: wire, sock=near)
    far.sendall(frame_of(control.Proved(1)) + frame_of(control.Known(1)) + frame_of(control.Proved(2)))
    await asyncio.wait_for(closed.wait(), 60)
    assert heard == [control.Proved(1)]
    far.close()
