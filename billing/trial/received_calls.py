"""The calls that a receiver has received: all are counted, the last ones are kept.

The callback that reads a call only appends its bytes. Calls are parsed later, in batches, because the receiver runs
beside the daemon that is measured, and its work before an answer would count.

**Limits.** The last `keep` calls and the first `EVENTS_MAX` event ids are kept; all calls are counted. This module
opens no file: the caller hands in a log as an open stream.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

from billing.trial.receiver_call import Call, call_of, shown

EVENTS_MAX: Final = 2_000_000
CALLS_KEPT: Final = 100_000

_LOOK_S: Final = 0.01


class ReceivedCalls:
    """All calls of one receiver. `on_call(call)`: called for each call, some 10 ms after it came; `log`: gets each call
    as a line of JSON.
    """

    def __init__(
        self, keep: int = CALLS_KEPT, on_call: Callable[[Call], object] | None = None, log: TextIO | None = None
    ) -> None:
        self._on_call, self._log = on_call, log
        self._raw: list[tuple[int, bytes, bytes, str]] = []  # arrived_ns, head, body, answered
        self._calls_kept: deque[Call] = deque(maxlen=keep)
        self._events: set[str] = set()
        self._count = self._acknowledged = self._repeated = self._early = self._refused = 0
        self._look: asyncio.TimerHandle | None = None

    def take_call(self, arrived_ns: int, head: bytes, body: bytes, answered: str) -> None:
        """Appends a call, which is parsed later. Needs a running event loop."""
        self._raw.append((arrived_ns, head, body, answered))
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._on_look)

    def calls_kept(self) -> list[Call]:
        """The calls kept, oldest first."""
        self._take_apart()
        return list(self._calls_kept)

    def counts(self) -> dict[str, int]:
        """Counts over all calls."""
        self._take_apart()
        return {
            "received": self._count,
            "acknowledged": self._acknowledged,
            "events": len(self._events),
            "repeated": self._repeated,
            "early": self._early,
            "bad_signatures": self._refused,
        }

    def lateness_us(self) -> dict[str, float] | None:
        """Least, median, 99th percentile and greatest lateness of the cutoffs kept, first attempts only, in
        microseconds; None if there are none.
        """
        late = sorted(call.lateness_us for call in self.calls_kept() if call.exhausted_at_ns >= 0 and not call.repeated)
        if not late:
            return None
        return {
            "least": round(late[0], 1),
            "p50": round(late[len(late) // 2], 1),
            "p99": round(late[len(late) * 99 // 100], 1),
            "most": round(late[-1], 1),
        }

    def clear(self) -> None:
        """Forgets all calls, event ids and counts."""
        self._raw.clear()
        self._calls_kept.clear()
        self._events.clear()
        self._count = self._acknowledged = self._repeated = self._early = self._refused = 0

    def close(self) -> None:
        """Parses the calls that are left, and stops the timer."""
        if self._look is not None:
            self._look.cancel()
        self._take_apart()

    def _on_look(self) -> None:
        self._look = None
        self._take_apart()

    def _take_apart(self) -> None:
        raw, self._raw = self._raw, []
        for arrived_ns, head, body, answered in raw:
            call = call_of(self._count, arrived_ns, head, body, answered, self._events)
            self._count += 1
            self._acknowledged += answered.startswith("2")
            self._refused += answered == "401"
            self._repeated += call.repeated
            self._early += call.arrived_ns < call.exhausted_at_ns
            if len(self._events) < EVENTS_MAX:
                self._events.add(call.event_id)
            self._calls_kept.append(call)
            if self._log is not None:
                self._log.write(json.dumps(shown(call)) + "\n")
            if self._on_call is not None:
                self._on_call(call)
        if raw and self._log is not None:
            self._log.flush()
