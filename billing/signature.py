"""Signatures after Standard Webhooks, by which a receiver verifies that a call came from this daemon. Pure.

    signed content     <webhook-id> "." <webhook-timestamp> "." <content>
    header             webhook-signature: v1,<base64 of HMAC-SHA256(secret, signed content)>

`content` is the body of a POST. A GET has no body; its `content` is the request target as it stands in the request
line: path and query, percent-encoded. `webhook-timestamp` is seconds since the Unix epoch, in decimal. While operators
change the secret, the old and the new one are both valid: the header holds one signature for each, separated by a
space, and a receiver accepts the call if any signature is right.

A secrets file holds one secret a line, the current one first, `SECRETS_MAX` at most. A secret is 24 to 64 bytes in
base64, usually with the prefix `whsec_`. Empty lines and lines beginning with `#` are skipped.

Worked example (secret `whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`, id `u1-3-1700000000000000000`, timestamp 1700000000):

    u1-3-1700000000000000000.1700000000./cutoff?user_id=u1
    v1,NwnZs2z1XCFVoZc40fIqdEzpnF6YCV13S2/a+GOYfC4=

This module reads no file and no clock, and none of its error messages contains a secret.
"""

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Final

SECRETS_MAX: Final = 2
SECRET_BYTES_MIN: Final = 24
SECRET_BYTES_MAX: Final = 64
TOLERANCE_S: Final = 300  # a receiver accepts a webhook-timestamp that differs from its own time by this much

_PREFIX: Final = "whsec_"


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Parses the text of a secrets file; the current secret comes first. Raises ValueError, whose text names the line,
    never its content.
    """
    secrets = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            secret = b64decode(line.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"line {number}: expected base64, with or without {_PREFIX} before it") from None
        if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
            raise ValueError(
                f"line {number}: expected {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes in base64, got {len(secret)}"
            )
        secrets.append(secret)
    if not 1 <= len(secrets) <= SECRETS_MAX:
        raise ValueError(f"expected 1 to {SECRETS_MAX} secrets, one a line, got {len(secrets)}")
    return tuple(secrets)


def sign(secrets: Sequence[bytes], webhook_id: bytes, timestamp_s: int, content: bytes) -> bytes:
    """The value of `webhook-signature`: one signature for each secret, in their order."""
    signed = b"%b.%d.%b" % (webhook_id, timestamp_s, content)
    return b" ".join([b"v1," + b64encode(hmac.digest(secret, signed, "sha256")) for secret in secrets])


def verify(
    secrets: Sequence[bytes],
    webhook_id: bytes,
    timestamp: bytes,
    signature: bytes,
    content: bytes,
    now_s: int,
    tolerance_s: int = TOLERANCE_S,
) -> bool:
    """Whether a call is genuine and recent. `webhook_id`, `timestamp` and `signature`: the three headers as received;
    `now_s`: the receiver's time, in seconds since the Unix epoch.

    Signatures of versions other than v1 are ignored. Signatures are compared in constant time.
    """
    if not timestamp.isdigit() or len(timestamp) > 12 or abs(now_s - int(timestamp)) > tolerance_s:
        return False
    candidates = [part[3:] for part in signature.split(b" ") if part.startswith(b"v1,")]
    signed = b"%b.%b.%b" % (webhook_id, timestamp, content)
    right = False
    for secret in secrets:
        expected = b64encode(hmac.digest(secret, signed, "sha256"))
        for candidate in candidates:
            right |= hmac.compare_digest(candidate, expected)
    return right
