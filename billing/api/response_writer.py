"""Bytes out of replies: the output half of MessagePack-RPC, without I/O.

Replies of three kinds wait, each kind in a buffer of its own, and each buffer leaves in one write:

    answer(msgid, reply)    a reply of the gate: leaves with `durable`, once all staged answers are durable
    relay(data)             a whole reply that another worker encoded and made durable: leaves with `relayed`
    reply(msgid, reply)     a reply of the door itself, which depends on nothing stored: leaves with `prompt`

The owner of the writer adds the requests that it submits to `in_flight`; each `answer` and `relay`, and each `refuse`
in their place, subtracts one. States:

    OPEN      requests are submitted and answered
    ENDING    no further request is submitted; open requests are still answered, until `is_over`
    PARTED    `last_words` were taken, and nothing follows them

Invariant: every reply leaves once, after the earlier replies of its kind, and none leaves after the last words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from billing.api.replies import RESULTS
from billing.api.wire import ERRORS_AS_STRING, RESPONSE, encode_into, encode_reply

OPEN: Final = "open"
ENDING: Final = "ending"
PARTED: Final = "parted"
PROMPT_BYTES_MAX: Final = 8 * 1024  # the door's own replies leave when there are this many, or the read ends
_NOTHING: Final = bytearray()


class ResponseWriter:
    """The output of one connection. The token of an answer is the msgid of the request."""

    __slots__ = ("_last_words", "_note_error", "_prompt", "_relayed", "_staged", "in_flight", "mode", "state")

    def __init__(self, note_error: Callable[[object], None]) -> None:
        """`note_error` is called with each reply of this worker that may be an error."""
        self.mode = ERRORS_AS_STRING  # how errors are encoded from now on
        self.in_flight = 0  # requests submitted and not answered; a listing counts by its weight
        self.state = OPEN
        self._note_error = note_error
        self._staged = bytearray()
        self._relayed = bytearray()
        self._prompt = bytearray()
        self._last_words = b""

    def answer(self, token: Any, reply: object) -> None:
        """Stages the reply to request `token`."""
        self.in_flight -= 1
        if type(reply) in RESULTS:
            encode_into((RESPONSE, token, None, reply), self._staged, -1)
        else:
            self._note_error(reply)
            self._staged += encode_reply(token, self.mode, reply)

    def relay(self, data: bytes) -> None:
        """Stages a whole reply of another worker."""
        self.in_flight -= 1
        self._relayed += data

    def refuse(self, token: Any, reply: object) -> None:
        """Stages a prompt reply in place of an answer."""
        self.in_flight -= 1
        self.reply(token, reply)

    def reply(self, msgid: int | None, reply: object) -> None:
        """Stages a reply that depends on nothing stored; `msgid` None: to bytes that were no request."""
        self._note_error(reply)
        self._prompt += encode_reply(msgid, self.mode, reply)

    def durable(self) -> bytearray:
        """Takes out the staged answers, which the caller writes now; empty where there are none."""
        staged = self._staged
        if not staged:
            return _NOTHING
        self._staged = bytearray()
        return staged

    def relayed(self) -> bytearray:
        """Takes out the relayed replies, which the caller writes now; empty where there are none."""
        relayed = self._relayed
        if not relayed:
            return _NOTHING
        self._relayed = bytearray()
        return relayed

    def prompt(self, least_bytes: int = 1) -> bytearray:
        """Takes out the door's own replies, which the caller writes now; empty below `least_bytes` bytes."""
        prompt = self._prompt
        if len(prompt) < least_bytes:
            return _NOTHING
        self._prompt = bytearray()
        return prompt

    def end(self, last_words: bytes) -> None:
        """OPEN -> ENDING: `last_words` will follow the replies to all open requests."""
        assert self.state is OPEN
        self.state = ENDING
        self._last_words = last_words

    @property
    def is_over(self) -> bool:
        """Whether the connection is ENDING and every reply was taken out, so that the last words are next."""
        return self.state is ENDING and self.in_flight <= 0 and not self._staged and not self._relayed

    def last_words(self) -> bytes:
        """ENDING -> PARTED: returns the bytes that leave last."""
        assert self.state is ENDING
        self.state = PARTED
        return bytes(self.prompt()) + self._last_words

    def clear(self) -> None:
        """Drops all waiting replies, because nobody will read them."""
        for buffer in (self._staged, self._relayed, self._prompt):
            buffer.clear()
