"""MessagePack-RPC as bytes, for callers; `billing.api.wire`, by which doors decode, has the grammar."""

from typing import Final

import msgpack
import msgspec

REQUEST: Final = 0
RESPONSE: Final = 1
MSGID_MAX: Final = 2**32 - 1

# The decoder raises these for bytes that are no acceptable MessagePack; it is of no further use then.
DECODE_ERRORS: Final = (ValueError, msgpack.UnpackException)

encode_into: Final = msgspec.msgpack.Encoder().encode_into
