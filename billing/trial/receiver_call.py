"""One call as the receiver keeps it: parsed from its bytes, and shown as JSON or as a line."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from billing.trial.receiver_connection import headers_of


class Call(NamedTuple):
    """One request that the receiver got."""

    number: int  # of all calls, from 0
    arrived_ns: int  # by the receiver's clock
    method: str
    target: str  # path and query as sent
    user_id: str
    event_id: str
    seq: int
    exhausted_at_ns: int  # -1: the call names none
    answered: str  # "200", "401", or the name of the fault
    repeated: bool  # the event_id came before

    @property
    def lateness_us(self) -> float:
        """Microseconds from the exact instant to arrival."""
        return (self.arrived_ns - self.exhausted_at_ns) / 1000

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


def call_of(number: int, arrived_ns: int, head: bytes, body: bytes, answered: str, events: set[str]) -> Call:
    """Parses a request. `events`: the event ids of earlier calls."""
    method, target = head.decode("latin-1").split(" ", 2)[:2]
    query = {name: values[0] for name, values in parse_qs(target.partition("?")[2], keep_blank_values=True).items()}
    if method == "POST":
        query = {**_texts(body), "event_id": headers_of(head).get(b"webhook-id", b"").decode("latin-1")}
    event_id = query.get("event_id", "")
    return Call(
        number,
        arrived_ns,
        method,
        target,
        query.get("user_id", query.get("user", "")),
        event_id,
        _integer(query.get("seq", "")),
        _integer(query.get("exhausted_at_ns", "")),
        answered,
        bool(event_id) and event_id in events,
    )


def _texts(body: bytes) -> dict[str, str]:
    """The strings and integers in a JSON object and in its member `data`, as texts. Empty for any other body."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    inner = document.get("data")
    both = {**document, **inner} if isinstance(inner, dict) else document
    return {name: str(value) for name, value in both.items() if isinstance(value, str | int)}


def _integer(text: str) -> int:
    return int(text) if text.isdigit() and len(text) < 20 else -1


def shown(call: Call) -> dict[str, Any]:
    """A call as the JSON of `/received` and of the log shows it."""
    lateness = round(call.lateness_us, 1) if call.exhausted_at_ns >= 0 else None
    return {**call._asdict(), "lateness_us": lateness}


def _late(lateness_us: float) -> str:
    """A lateness in microseconds, from a second on in seconds."""
    return f"{lateness_us:+,.0f} µs" if abs(lateness_us) < 10**6 else f"{lateness_us / 10**6:+,.1f} s"


def line_of(call: Call) -> str:
    """A call as one line for a terminal, with its lateness. Characters that cannot be printed are escaped."""
    late = _late(call.lateness_us) if call.exhausted_at_ns >= 0 else ""
    notes = [f"answered {call.answered}"] * (call.answered != "200") + ["again"] * call.repeated
    parts = [call.method, call.path, call.user_id, f"seq {call.seq}", f"{late:>12}", call.event_id, *notes]
    line = "  ".join(parts)
    return line if line.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
