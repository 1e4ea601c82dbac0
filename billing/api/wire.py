"""MessagePack-RPC as bytes, without I/O: the limits of decoding, and the encoding of replies.

    request       [0, msgid, method, params]
    response      [1, msgid, error, result]
    notification  [2, method, params]

A frame has no length prefix. A request with a value beyond the decoder's limits is refused (`billing.api.frames`); a
frame that itself is too large ends the connection. Texts, raw and bin are all decoded as bytes; arrays as lists; maps
as tuples of pairs, so that a key that comes twice is seen and no key is ever hashed.

An error is by default one string, `"NAME: message"`, and a map on a connection whose client asked for that. Worked
example, `ping` with msgid 1 and its answer:

    94 00 01 a4 "ping" 90        94 01 01 c0 a4 "pong"
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgpack
import msgspec

from billing.ledger.errors import Refused
from shards.replies import Moving, Unavailable, WrongBucket

REQUEST: Final = 0
RESPONSE: Final = 1
NOTIFICATION: Final = 2
MSGID_MAX: Final = 2**32 - 1

# How a connection wants its errors (`mode`).
ERRORS_AS_STRING: Final = 0
ERRORS_AS_MAP: Final = 1

FRAME_BYTES_MAX: Final = 64 * 1024
SLICE_BYTES_MAX: Final = 8 * 1024  # the decoder gets at most one such slice at a time, and is emptied before the next
TEXT_BYTES_MAX: Final = 4 * 1024
ARRAY_LENGTH_MAX: Final = 64
MAP_LENGTH_MAX: Final = 32

# Replies of `shards` that are no results -> their names as errors.
BY_SHARDS: Final[dict[type, str]] = {Unavailable: "UNAVAILABLE", Moving: "BUCKET_MOVING", WrongBucket: "WRONG_BUCKET"}

# The decoder raises these for bytes that are no acceptable MessagePack; it is of no further use then.
DECODE_ERRORS: Final = (ValueError, msgpack.UnpackException)

_encoder: Final = msgspec.msgpack.Encoder()
encode: Final = _encoder.encode
encode_into: Final = _encoder.encode_into


_LIMITS: Final[dict[str, Any]] = {
    "raw": True,
    "strict_map_key": False,  # keys are not hashed at all, see object_pairs_hook
    "object_pairs_hook": tuple,
    "max_str_len": TEXT_BYTES_MAX,
    "max_bin_len": TEXT_BYTES_MAX,
    "max_array_len": ARRAY_LENGTH_MAX,
    "max_map_len": MAP_LENGTH_MAX,
    "max_ext_len": 0,
}

# Decodes bytes that are exactly one frame; raises DECODE_ERRORS where they are no frame, less than one, or more.
decode_single: Final[Callable[[bytes | memoryview], Any]] = partial(msgpack.unpackb, **_LIMITS)


def make_unpacker() -> Any:
    """Returns a streaming decoder with the door's limits. It allocates in small steps: most connections are idle."""
    return msgpack.Unpacker(read_size=4096, max_buffer_size=FRAME_BYTES_MAX + SLICE_BYTES_MAX, **_LIMITS)


NOT_TAKEN: Final = (
    f"a text may have {TEXT_BYTES_MAX} bytes, an array {ARRAY_LENGTH_MAX} values, a map {MAP_LENGTH_MAX}; "
    "timestamps and other extension types, and values nested beyond all need, are not taken"
)


def encode_reply(msgid: int | None, mode: int, reply: object) -> bytes:
    """Encodes a whole response. `reply` is a result, a `Refused`, or a reply of `shards` where the owner of a bucket
    cannot be asked (`Unavailable`, `Moving`, `WrongBucket`).
    """
    kind = type(reply)
    if kind is Refused:
        error = reply.as_map() if mode == ERRORS_AS_MAP else str(reply)  # type: ignore[attr-defined]
        return encode((RESPONSE, msgid, error, None))
    if kind in BY_SHARDS:
        return encode_reply(msgid, mode, refused_by_shards(reply))
    return encode((RESPONSE, msgid, None, reply))


def error_name_of(reply: object) -> str:
    """Returns the error name of a reply; empty for a result."""
    kind = type(reply)
    if kind is Refused:
        return str(reply.name)  # type: ignore[attr-defined]
    return BY_SHARDS.get(kind, "")


def refused_by_shards(reply: object) -> Refused:
    """Converts a reply of `shards` that is no result to a refusal with the name that `BY_SHARDS` gives it."""
    if isinstance(reply, Unavailable):
        return Refused(
            "UNAVAILABLE",
            f"shard {reply.shard_id}: {reply.reason}" if reply.shard_id else reply.reason,
            {"shard_id": reply.shard_id},
            applied=reply.applied,
        )
    if isinstance(reply, Moving):
        message = f"bucket {reply.bucket_id} is on its way to another shard, and too many requests wait for it already"
        return Refused("BUCKET_MOVING", message, {"bucket_id": reply.bucket_id})
    assert isinstance(reply, WrongBucket)
    return Refused(
        "WRONG_BUCKET",
        f"bucket {reply.bucket_id} is not served by shard {reply.shard_id}",
        {"bucket_id": reply.bucket_id, "shard_id": reply.shard_id},
    )
