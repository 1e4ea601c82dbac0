"""Publishes behind a known last sequence, one message in flight, and retries until the outcome is known.

    answer                                  what the publisher does
    acknowledged                            returns the sequence
    none, or the connection died            retries the same bytes at the same sequence with another server; the message
                                            is in doubt from here on
    no leader, no server, not now, denied   retries
    wrong last sequence                     reads the message there: where it is ours, it was written before, and its
                                            sequence is returned; another's is `Taken`; where there is none, retries
    no room                                 raises `Full`; retries where the message is in doubt, since room may come
    refused                                 raises `Unknown`

A message that was never in doubt is `Unavailable` after `PATIENCE_S`: surely not written. One in doubt is `Lost` after
`DOUBT_S`: only reading the stream anew can tell. A message that says nothing but that the owner lives (`put` with
`matters` false) may stay in doubt: it is `Unavailable` after `PATIENCE_S`, and the next `put` settles it first.
"""

from __future__ import annotations

from collections.abc import Callable

from shards.journal import Full, Lost, Unavailable, Unknown
from shards.journal.jetstream.connection import Denied, NoAnswer, Unreachable
from shards.journal.jetstream.streams import RETRY_S, NoRoom, NotNow, Refused, Stored, Stream, Superseded

PATIENCE_S = 2.0
DOUBT_S = 10.0


class Taken(Exception):
    """A message of somebody else stands at the sequence of ours."""

    def __init__(self, stored: Stored) -> None:
        super().__init__(f"sequence {stored.sequence} holds another's message")
        self.stored = stored


class Publisher:
    """Publishes to one stream; see the module. `sequence`: the stream's last one, as far as this publisher knows."""

    def __init__(self, stream: Stream, sequence: int, boot_ns: Callable[[], int]) -> None:
        self._stream = stream
        self.sequence = sequence
        self._boot_ns = boot_ns
        self.doubts = 0  # how often no answer came
        self._unsettled: tuple[str, bytes] | None = None  # a message in doubt: it may stand at the next sequence

    def put(self, subject: str, message: bytes, matters: bool = True) -> int:
        """Publishes a message and returns its sequence. Raises Full, Unavailable, Lost, Unknown, Taken; see
        the module.
        """
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
                reason = error
                try:
                    stored = stream.message(expected + 1)
                except Unavailable as unread:  # what stands there may be this message
                    stored, reason = None, unread
                if stored is not None:
                    if stored.payload != message:
                        raise Taken(stored) from None
                    self.sequence = stored.sequence
                    return stored.sequence
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
                what = (
                    "the log's servers do not let this host in"
                    if isinstance(reason, Denied)
                    else "the log cannot be reached"
                )
                raise Unavailable(f"{what}: {reason}") from reason
            stream.connection.pause(RETRY_S)
