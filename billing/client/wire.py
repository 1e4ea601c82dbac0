"""MessagePack-RPC as bytes, for callers; `billing.api.wire`, by which doors decode, has the grammar."""

from typing import Final

import msgpack
import msgspec

REQUEST: Final = 0
RESPONSE: Final = 1
MSGID_MAX: Final = 2**32 - 1
FRAME_BYTES_MAX: Final = 64 * 1024  # of one request; the daemon ends the connection of a longer one

# The decoder raises these for bytes that are no acceptable MessagePack; it is of no further use then.
DECODE_ERRORS: Final = (ValueError, msgpack.UnpackException)

_encoder: Final = msgspec.msgpack.Encoder()
_encode_into: Final = _encoder.encode_into
encode: Final = _encoder.encode


def stage(request: tuple[int, int, str, object], staged: bytearray) -> bool:
    """Adds a request to what is staged; returns whether it is short enough for the daemon. Where it is not, or is no
    MessagePack (TypeError, ValueError, OverflowError), what is staged stays as it was.
    """
    before = len(staged)
    try:
        _encode_into(request, staged, -1)
        if len(staged) - before <= FRAME_BYTES_MAX:
            return True
    except BaseException:  # a part of the request may have been staged
        del staged[before:]
        raise
    del staged[before:]
    return False
