"""What is fed with broken input: each target has sound inputs to begin with, and a function that takes any bytes.

A target returns where the input was taken or refused as declared; anything else that it raises is a fault. It also says
how much memory and how many steps (calls of functions) an input of so many bytes may cost at most: nobody can make a
decoder work for long, or hold much, with little.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from billing.api.auth import Guard
from billing.api.http.reading import Reader
from billing.api.http.routes import ROUTES, Route
from billing.api.http.writing import problem
from billing.api.iproto.protocol import AUTH, CALL, CALL_16, ER_PROC_LUA, ID, PING, SELECT
from billing.api.methods import METHODS, parse
from billing.api.wire import DECODE_ERRORS, make_unpacker
from billing.config.load import ConfigError, load
from billing.ledger.errors import KINDS, Refused
from shards import control
from shards.journal import Corrupt, Gap
from shards.journal.file import snapshot
from shards.journal.file.record import BARRIER, Malformed, pack_batch, pack_block, salt_seed, unpack_block
from shards.journal.file.recovery import examine
from shards.system.links import FrameDecoder, FrameError, frame_of, untyped
from tests.api.iproto.streams import converse as converse_iproto
from tests.api.test_any_bytes import converse
from tests.conftest import REPOSITORY
from tests.fuzz.mutation import mended_snapshot, mutated
from tests.shards.journal.journal_machine import DIRECTORY, SHARD
from tests.shards.journal.specimen import STATES, Specimen
from tests.simulation.disk import SimDisk

LONGEST = 20_000  # of an input, in bytes
CALLS: tuple[list[Any], ...] = (
    ["top_up", ["u", "12.5", {"request_id": "r1", "message": "x" * 40}]],
    ["set_rate", ["u", 36, {"per": "hour", "resource": "vm-1", "rate_seq": 5, "min_runway_ns": 10**9}]],
    ["set_thresholds", ["u", [{"amount": 5}, {"runway_ns": 10**12}]]],
    ["set_class", ["u", "default"]],
    ["debit", [5, 2.0**53, {"mode": "partial"}]],
    ["history", ["u", {"limit": 10, "before": 99}]],
    ["accounts", [{"after": "u", "limit": 1000}]],
    ["adjust", ["u", -5, "why"]],
    ["move_bucket", [477, 2]],
    ["hello", [{"token": "secret", "errors": "map"}]],
    ["forecast", [{"horizon_s": 3600}]],
    *([name, ["u"]] for name in sorted(METHODS)),
)


IN_PATH = {"user_id": b"u", "hold_id": b"r:h", "bucket_id": b"477"}
SIGN_IN = Guard("operator:admin:" + "0" * 64 + ":" + "0" * 40 + "\n")
GUARDED = b"\x01"


class Target(NamedTuple):
    """`take` is given the bytes; peak memory may be `memory` + 64 a byte, the calls made `steps` + 40 a byte."""

    sound: Callable[[], list[bytes]]
    take: Callable[[bytes], None]
    memory: int
    steps: int
    make: Callable[[random.Random, list[bytes]], bytes]


# -- the door -------------------------------------------------------------------------------------------------------


def frames() -> list[bytes]:
    """Streams of requests."""
    calls = [msgpack.packb([0, number, *call]) for number, call in enumerate(CALLS)]
    return [b"".join(calls), b"".join(calls[:3]), msgpack.packb([2, "top_up", ["u", 5]]) + calls[0], *calls[:6]]


def take_frames(data: bytes) -> None:
    replies, _, ended = converse(data, [len(data) // 2])
    for kind, _, error, _ in replies:
        assert kind == 1
        name = error.partition(": ")[0] if isinstance(error, str) else error and error["name"]
        assert name is None or name in KINDS, name
    assert [reply[1] for reply in replies].count(None) <= ended  # a wrong token ends a connection with its own reply


def take_request(data: bytes) -> None:
    unpacker = make_unpacker()
    try:
        unpacker.feed(data)
        method, params = next(unpacker)
    except (*DECODE_ERRORS, StopIteration, TypeError):
        return
    try:
        call = parse(method, params)
    except Refused as refusal:
        if refusal.name not in KINDS or len(str(refusal)) > 500:
            raise AssertionError(f"an error that is not declared: {refusal}") from None
        return
    assert len(call.user_id) <= 128
    for field in call.body:
        plain = type(field) in (bool, int, bytes, str)
        assert plain or all(type(part) in (int, bytes, str) for part in field), "a set of words, or a command"


def take_json(data: bytes) -> None:
    """A request over HTTP: the first byte says of which route; then its Idempotency-Key, a zero byte, and its body, or
    what stands behind the question mark.
    """
    if not data:
        return
    route = ROUTES[data[0] % len(ROUTES)]
    key, _, rest = data[1:].partition(b"\0")
    query, body = ("", rest) if route.has_body else (rest.decode("latin-1"), b"")
    header = key.decode("utf-8", "surrogateescape") if key else None
    in_path = [IN_PATH[name] for name in route.in_path]
    try:
        call = parse(route.method.name, Reader(route).params(in_path, query, header, body))
    except Refused as refusal:
        details = json.loads(problem(refusal).body)
        assert details["name"] in KINDS, details
        assert len(details["detail"]) <= 500, details
        return
    assert call.method is route.method
    assert all(len(field) <= LONGEST for field in call.body if type(field) in (bytes, str))


def take_iproto(data: bytes) -> None:
    """A stream of packets. The first byte says whether the door wants a sign-in, which no input knows how to make."""
    is_guarded = data[:1] == GUARDED
    replies, calls, _ = converse_iproto(data[1:], [len(data) // 2], SIGN_IN if is_guarded else Guard())
    for kind, _, answer in replies:
        code = kind - 0x8000
        assert kind == 0 or code in (20, 32, 33, 42, 47, 48), kind
        if code == ER_PROC_LUA:
            assert answer.partition(": ")[0] in KINDS, answer
    assert not (is_guarded and calls), "something was done before the sign-in"


def take_wire(data: bytes) -> None:
    """As frames between workers, and as messages of the supervisor and of a worker."""
    for decode in (untyped, control.to_worker, control.to_supervisor):
        decoder = FrameDecoder(decode)
        try:
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                for _ in decoder.feed(half):
                    pass
        except FrameError:
            continue


# -- what is stored ---------------------------------------------------------------------------------------------------


@cache
def specimen(state: str) -> Specimen:
    return Specimen(state)


def newest(which: Specimen) -> str:
    return max(name for name in which.names if name.startswith("segment-"))


def segments() -> list[bytes]:
    """The newest segment of each kind of journal; the byte before says of which."""
    segments_made = []
    for number, state in enumerate(STATES):
        which = specimen(state)
        segments_made.append(bytes([number]) + bytes(which.medium.node(f"{DIRECTORY}/{newest(which)}").content))
    return segments_made


def take_segment(data: bytes) -> None:
    """Whatever a segment holds: a prefix of what was written there, or refused."""
    which = specimen(STATES[data[0] % len(STATES)] if data else STATES[0])
    content = which.medium.node(f"{DIRECTORY}/{newest(which)}").content
    intact = bytes(content)
    content[:] = data[1:]
    which.disk = SimDisk(which.medium, which.rng)
    try:
        condition = examine(which.disk, DIRECTORY, SHARD, which.boot_id)
        sentence = which.say(condition)
    except (Corrupt, Gap):
        return
    finally:
        content[:] = intact
    which.compare_prefix(sentence, "a broken segment")


def make_segment(rng: random.Random, bases: list[bytes]) -> bytes:
    """Broken bytes; or lies with every checksum right, whose payloads are those that were written."""
    base = rng.choice(bases)
    if rng.random() < 0.6 or base not in segments():
        return mutated(rng, base, bases, LONGEST)
    which = specimen(STATES[base[0] % len(STATES)])
    header = unpack_block(base[1:])
    lie: dict[str, Any] = {
        "first_position": header.first_position + rng.choice((-1, 1, 2**40)),
        "prev_chain": rng.getrandbits(32),
        "length": rng.choice((0, 1, 2**62)),
        "align": rng.choice((512, 4096)),
        "epoch": rng.getrandbits(64),
    }
    key = rng.choice(list(lie))
    lying_header = header._replace(**{key: lie[key]}) if rng.random() < 0.3 else header
    parts, chain, position = [pack_block(lying_header)], header.prev_chain, header.first_position
    for _, payload in which.log[header.first_position - 1 :]:
        for flags in (BARRIER, 0) if rng.random() < 0.1 else (0,):
            shown = position - flags + rng.choice((0, 0, 0, 0, 1, -1))
            durable = rng.choice((position - 1, position, 0, 2**63))
            body = b"" if flags and rng.random() < 0.7 else payload
            chain, batch = pack_batch(
                salt_seed(header.salt), header.segment_id, chain, shown, flags, durable, rng.getrandbits(60), body
            )
            parts.append(batch.ljust(-(-len(batch) // header.align) * header.align, b"\0"))
        position += 1
    return base[:1] + b"".join(parts).ljust(header.length, b"\0")[: header.length]


def snapshots() -> list[bytes]:
    """Small ones, of no, one and many chunks."""
    which = specimen(STATES[0])
    snapshots_made = []
    for number, sizes in enumerate(([], [200, 100], [1] * 50, [0, 3000])):
        path = f"{DIRECTORY}/made-{number}"
        head = snapshot.Head(SHARD, 5, 6, 7, 8)
        disk = SimDisk(which.medium, which.rng)
        snapshot.write(disk, path, head, (bytes(size) for size in sizes), lambda: 9)
        snapshots_made.append(bytes(which.medium.node(path).content))
        which.medium.remove(path)
    return snapshots_made


def take_snapshot(data: bytes) -> None:
    which = specimen(STATES[0])
    disk = SimDisk(which.medium, which.rng)
    name = next(name for name in which.names if name.startswith(snapshot.PREFIX))
    content = which.medium.node(f"{DIRECTORY}/{name}").content
    intact = bytes(content)
    content[:] = data
    try:
        checked = snapshot.check(disk, DIRECTORY, name, SHARD)
        assert checked.length == len(data)
    except Malformed:
        pass
    finally:
        content[:] = intact


def make_snapshot(rng: random.Random, bases: list[bytes]) -> bytes:
    data = mutated(rng, rng.choice(bases), bases, LONGEST)
    return mended_snapshot(data) if rng.random() < 0.5 else data


# -- the configuration -----------------------------------------------------------------------------------------------


def configurations() -> list[bytes]:
    """The default file, whole and by sections."""
    text = "\n".join(line for line in (REPOSITORY / "config.toml").read_text().split("\n") if not line.startswith("#"))
    return [text.encode(), *(("[" + part).encode() for part in text.split("[")[1:])]


@cache
def config_file() -> Path:
    """A file of its own for this process."""
    directory = tempfile.TemporaryDirectory(prefix="billing-fuzz-")
    _directories.append(directory)
    return Path(directory.name) / "config.toml"


_directories: list[tempfile.TemporaryDirectory[str]] = []


def take_configuration(data: bytes) -> None:
    config_file().write_bytes(data)
    try:
        load(config_file(), {})
    except ConfigError as error:
        if not error.faults or not str(error).replace("\n", " ").isprintable():
            raise AssertionError(f"not to be shown to anybody: {error!r}") from None


def plain(rng: random.Random, bases: list[bytes]) -> bytes:
    return mutated(rng, rng.choice(bases), bases, LONGEST)


def requests() -> list[bytes]:
    return [msgpack.packb(call) for call in CALLS]


JSON_BODIES = (
    b'{"amount":"12.5","message":"\xc3\xbc"}',
    b'{"amount_nanos":12500000000,"expires_at":"2026-11-28T13:03:20.5Z","kind":"gift"}',
    b'{"rate":"36","per":"hour","resource":"vm-1","rate_seq":5,"min_runway_ns":1000000000}',
    b'{"thresholds":[{"amount":"5"},{"amount_nanos":5},{"runway_ns":60000000000}]}',
    b'{"method":"debit","params":["u","5",{"mode":"partial"}]}',
    b'{"amount_nanos":1e400,"amount":NaN,"a":[[[[{"a":1,"a":2}]]]],"step":"begin"}',
    b"cursor=dHU&limit=5&show=rates%2Cholds&state=active&from=2026-11-28T13:03:20Z&to_ns=5&by=resource",
)


def bodies() -> list[bytes]:
    """Each kind of body and query for each route, with and without a key."""
    keys = (b"", b"invoice-17", b'"quoted"')
    sound_bodies = [
        bytes([number]) + keys[number % len(keys)] + b"\0" + body
        for number in range(len(ROUTES))
        for body in JSON_BODIES
    ]
    return sound_bodies + [part for each in map(sound_of, ROUTES) for part in each]


def sound_of(route: Route) -> list[bytes]:
    """A request of a route that is right: its required fields."""
    values = {field.name: {"amount": "5", "rate": "5"}.get(field.type.kind, 1) for field in route.in_body}
    rest = json.dumps(values).encode() if route.has_body else b"&".join(b"%s=1" % name.encode() for name in values)
    return [bytes([ROUTES.index(route)]) + b"\0" + rest]


def packets() -> list[bytes]:
    """Streams of packets, to a door that wants a sign-in and to one that does not."""

    def packet(kind: int, body: dict[int, Any], sync: int = 1) -> bytes:
        packed = msgpack.packb({0: kind, 1: sync}) + msgpack.packb(body)
        return bytes(msgpack.packb(len(packed)) + packed)

    calls = [packet(CALL, {0x22: name, 0x21: params}, sync) for sync, (name, params) in enumerate(CALLS)]
    routed = packet(CALL_16, {0x22: "vshard.router.callrw", 0x21: [477, "write", "top_up", ["u", "5"], {"timeout": 1}]})
    older = packet(CALL, {0x22: "decrease_balance", 0x21: ["u", 200.0]})
    auth = packet(AUTH, {0x23: "operator", 0x21: ["chap-sha1", bytes(20)]})
    handshakes = [packet(PING, {}), packet(ID, {0x54: 3, 0x55: []}), packet(SELECT, {0x10: 281, 0x20: [], 0x12: 100})]
    streams = [
        b"".join(calls),
        b"".join(handshakes) + routed + older,
        auth + b"".join(calls[:3]),
        *calls[:6],
        *handshakes,
    ]
    return [first + stream for first in (b"\0", GUARDED) for stream in streams]


def wires() -> list[bytes]:
    sent: list[Any] = [
        *(control.MoveIn(1, 2, 3, b"x" * 50, b"y" * 16, 4), control.Query(7, b"u", ("get_account", b"u"))),
        *(control.Recovered(1, 2, 3, 4, ["one"]), control.Ask(1, ("rebalance", 0)), control.Examined(1, [(1, 2)], [])),
        *([(1, 0, 7, 0, 3, ("top_up", b"u", 5))], [1, b"answer", 2, (0,)], ["a", [["b"]] * 3]),
    ]
    return [frame_of(message) for message in sent] + [b"".join(map(frame_of, sent))]


TARGETS: dict[str, Target] = {
    "frames": Target(frames, take_frames, 4_000_000, 20_000, plain),
    "requests": Target(requests, take_request, 2_000_000, 5_000, plain),
    "json": Target(bodies, take_json, 2_000_000, 5_000, plain),
    "iproto": Target(packets, take_iproto, 4_000_000, 20_000, plain),
    "wires": Target(wires, take_wire, 500_000, 1_000, plain),
    "journal": Target(segments, take_segment, 2_000_000, 20_000, make_segment),
    "snapshot": Target(snapshots, take_snapshot, 1_000_000, 5_000, make_snapshot),
    "config": Target(configurations, take_configuration, 4_000_000, 100_000, plain),
}


def corpus(name: str) -> Iterator[bytes]:
    """What is kept of earlier finds."""
    for file in sorted((REPOSITORY / "tests" / "fuzz" / "corpus" / name).glob("*")):
        yield file.read_bytes()
