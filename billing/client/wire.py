"""MessagePack-RPC from the caller's side, as bytes: `billing.api.wire` has the grammar, by which doors read."""

from typing import Final

import msgpack
import msgspec

REQUEST: Final = 0
RESPONSE: Final = 1
MSGID_MAX: Final = 2**32 - 1

# What the decoder raises at bytes that are no acceptable MessagePack. After it the decoder is of no further use.
DECODE_ERRORS: Final = (ValueError, msgpack.UnpackException)

encode_into: Final = msgspec.msgpack.Encoder().encode_into
