"""Faults of the trial receiver: the ways in which an endpoint misbehaves, each by one name.

    slow=MS      answers after MS milliseconds                 redirect     302 to /elsewhere
    status=CODE  status CODE; status=429:3 with Retry-After 3  reset        the connection is reset
    refuse       connections are refused                       flap=S       S seconds well, S seconds refused, ...
    hang         never answers                                 lost         takes the call, closes without an answer
    hang-body    status and headers, then nothing              drip         one byte a second; drip=MS: each MS
    endless      a body without end                            gzip-bomb    10 KiB that would unpack to 10 MiB

    body-204     a 204 with a length and a body            odd-framing  200 with two lengths, and chunked besides
    long-header  200 behind a header of 64 KiB             one-at-a-time  serves its oldest connection only
    gateway=MS   504 after MS milliseconds, as from a proxy in front of a dead service

`NAME[=VALUE]@SHARE` makes a share of the users (above 0, up to 1) sick: all calls for these users meet the fault, and
no other calls do. Several of these, joined by `+`, make several groups of users sick, each with its own fault.
`refuse`, `flap` and `one-at-a-time` concern the whole receiver. All other faults concern single calls; a `Misbehaviour`
may restrict them to a share of the calls. A call that is read is always recorded: a fault spoils only its answer.
"""

from __future__ import annotations

import random
import zlib
from functools import cache
from typing import Final, NamedTuple
from zlib import crc32

BOMB_BYTES: Final = 10 * 2**20
ENDLESS_CHUNK: Final = b"x" * 65_536
DRIP_MS: Final = 1000

WHOLE: Final = ("refuse", "flap", "one-at-a-time")  # these concern the receiver, not single calls
ODD: Final = {
    "body-204": b'HTTP/1.1 204 No Content\r\nContent-Length: 12\r\n\r\n{"ok": true}',
    "odd-framing": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nok",
    "long-header": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 65_536 + b"\r\nContent-Length: 2\r\n\r\nok",
}

_NAMES: Final = {
    "slow": "required",
    "status": "required",
    "refuse": "",
    "hang": "",
    "hang-body": "",
    "drip": "optional",
    "endless": "",
    "gzip-bomb": "",
    "redirect": "",
    "reset": "",
    "flap": "required",
    "lost": "",
    "body-204": "",
    "odd-framing": "",
    "long-header": "",
    "one-at-a-time": "",
    "gateway": "required",
}


class Fault(NamedTuple):
    """One fault, or the first of several joined ones. `value`: milliseconds of slow, gateway and drip, the code of
    status, seconds of flap. `users`: the share of users whose calls meet the fault; these users are the share that
    begins at `above`, which is the sum of the shares of the faults before it. `joined`: the further faults, at the
    first one only.
    """

    name: str
    value: float = 0.0
    retry_after_s: int = -1
    users: float = 1.0
    above: float = 0.0
    joined: tuple[Fault, ...] = ()

    def of(self, user_id: str) -> Fault | None:
        """The one of these faults that the user's calls meet; None if they meet none. The same for a user each time."""
        position = crc32(user_id.encode()) / 2**32
        among = (self, *self.joined)
        return next((fault for fault in among if fault.above <= position < fault.above + fault.users), None)

    def concerns(self, user_id: str) -> bool:
        """Whether the user is sick: whether the user's calls meet one of these faults."""
        return self.of(user_id) is not None


class Misbehaviour(NamedTuple):
    """How a receiver misbehaves from its start on. `share`: the share (0 to 1) of the calls that meet a fault of single
    calls; `rng` draws which.
    """

    fault: Fault | None = None
    share: float = 1.0
    rng: random.Random = random.Random()

    def meets(self) -> bool:
        """Draws whether the next call meets the fault."""
        return self.share >= 1 or self.rng.random() < self.share


BEHAVES: Final = Misbehaviour()


def parse_fault(text: str) -> Fault:
    """Parses a fault as written on a command line. Raises ValueError, whose text says what is expected."""
    first, *rest = text.split("+")
    if rest:
        return _joined([parse_fault(part) for part in (first, *rest)])
    text, at, users = text.partition("@")
    if at:
        return _of_users(parse_fault(text), users)
    name, _, value = text.partition("=")
    wanted = _NAMES.get(name)
    if wanted is None or (wanted == "required" and not value) or (wanted == "" and value):
        raise ValueError(f"expected one of {', '.join(_NAMES)} (slow=MS, status=CODE, flap=S), got {text!r}")
    if name == "drip" and not value:
        return Fault(name, DRIP_MS)
    if not value:
        return Fault(name)
    number, colon, retry_after = value.partition(":")
    try:
        fault = Fault(name, float(number), int(retry_after) if colon else -1)
    except ValueError:
        raise ValueError(f"expected a number behind {name}=, got {text!r}") from None
    if colon and name != "status":
        raise ValueError(f"only status= has a Retry-After, got {text!r}")
    if name == "status" and not (fault.value.is_integer() and 200 <= fault.value <= 599):
        raise ValueError(f"expected a status between 200 and 599, got {text!r}")
    if not 0 < fault.value < 86_400_000:
        raise ValueError(f"expected a number above 0, got {text!r}")
    return fault


def _joined(faults: list[Fault]) -> Fault:
    placed: list[Fault] = []
    for fault in faults:
        placed.append(fault._replace(above=sum(earlier.users for earlier in placed)))
    if any(fault.users == 1 for fault in faults) or sum(fault.users for fault in faults) > 1:
        raise ValueError(
            "expected a share of users behind each fault that + joins, and no more than all of them together"
        )
    return placed[0]._replace(joined=tuple(placed[1:]))


def _of_users(fault: Fault, users: str) -> Fault:
    try:
        share = float(users)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1 or fault.name in WHOLE:
        raise ValueError(f"expected a share of users above 0 and up to 1 behind @, of a fault of calls, got {users!r}")
    return fault._replace(users=share)


def answer(status: int, body: bytes = b"ok", headers: bytes = b"") -> bytes:
    """A complete HTTP answer that keeps the connection open. Each header line in `headers` ends with CRLF."""
    return b"HTTP/1.1 %d %b\r\nContent-Length: %d\r\n%b\r\n%b" % (
        status,
        b"OK" if status == 200 else b"-",
        len(body),
        headers,
        body,
    )


@cache
def bomb() -> bytes:
    """An HTTP answer of some 10 KiB, which a client without a limit unpacks to `BOMB_BYTES`."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(65_536)
    packed = b"".join(packer.compress(zeros) for _ in range(BOMB_BYTES // len(zeros))) + packer.flush()
    return answer(200, packed, b"Content-Encoding: gzip\r\n")
