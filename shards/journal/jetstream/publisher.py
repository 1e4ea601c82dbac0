"""Publishing behind a known last sequence, one message in flight, until it is known what came of it.

    answer                                  what is done
    acknowledged                            it is there
    none, or the connection died            the same bytes at the same sequence again, over another server: in doubt now
    nobody leads, or not now                again
    wrong last sequence                     what stands there is read: ours was taken earlier; another's is `Superseded`
    no room                                 `Full`, unless it is in doubt: then it goes on, the room may come
    refused                                 `Unknown`

Where nothing was ever in doubt, `Unavailable` after `PATIENCE_S`: surely not written. Where it is, `Lost` after
`DOUBT_S`: only a new reading of the stream can tell. What says nothing but that we live (`put` with `matters` false)
stays in doubt instead: it is `Unavailable` after `PATIENCE_S`, and whatever is published next settles it first.
"""

from __future__ import annotations

from collections.abc import Callable

from shards.journal import Full, Lost, Unavailable, Unknown
from shards.journal.jetstream.connection import Denied, NoAnswer, Unreachable
from shards.journal.jetstream.streams import RETRY_S, NoRoom, NotNow, Refused, Stored, Stream, Superseded

PATIENCE_S = 2.0
DOUBT_S = 10.0


class Taken(Exception):
    """Another message stands where ours should."""

    def __init__(self, stored: Stored) -> None:
        super().__init__(f"sequence {stored.sequence} holds another's message")
        self.stored = stored


class Publisher:
    """See the module. `sequence`: the last one of the stream, as far as is known here."""

    def __init__(self, stream: Stream, sequence: int, boot_ns: Callable[[], int]) -> None:
        self._stream = stream
        self.sequence = sequence
        self._boot_ns = boot_ns
        self.doubts = 0  # how often an answer was missing
        self._unsettled: tuple[str, bytes] | None = None  # may be there as the next sequence

    def put(self, subject: str, message: bytes, matters: bool = True) -> int:
        """Publishes, and returns the sequence. Raises Full, Unavailable, Lost, Unknown, Taken; see the module."""
        if self._unsettled is not None:
            self._put(*self._unsettled, False, True)
            self._unsettled = None
        return self._put(subject, message, matters, False)

    def _put(self, subject: str, message: bytes, matters: bool, in_doubt: bool) -> int:
        stream, expected = self._stream, self.sequence
        began_ns = self._boot_ns()
        while True:
            reason: Exception
            try:
                sequence = stream.publish(subject, message, expected)
                if sequence != expected + 1:
                    raise Unknown(f"{stream.name} took a message as sequence {sequence}, not as {expected + 1}")
                self.sequence = sequence
                return sequence
            except NoAnswer as error:
                in_doubt, reason = True, error
                self.doubts += 1
            except Superseded as error:
                stored = stream.message(expected + 1)
                if stored is not None:
                    if stored.payload != message:
                        raise Taken(stored) from None
                    self.sequence = stored.sequence
                    return stored.sequence
                reason = error
            except NoRoom as error:
                if not in_doubt:
                    raise Full(f"the log is full: {error}") from error
                reason = error
            except Refused as error:
                raise Unknown(f"the log's servers refuse a message: {error}") from error
            except (Unreachable, NotNow, Denied) as error:
                reason = error
            waited_ns = self._boot_ns() - began_ns
            if in_doubt and matters and waited_ns > DOUBT_S * 1e9:
                raise Lost(f"it is not known whether {stream.name} took a message: {reason}") from reason
            if not (in_doubt and matters) and waited_ns > PATIENCE_S * 1e9:
                self._unsettled = (subject, message) if in_doubt else None
                raise Unavailable(f"the log cannot be reached: {reason}") from reason
            stream.connection.pause(RETRY_S)
