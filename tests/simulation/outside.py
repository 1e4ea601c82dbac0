"""The world that the application calls: a cutoff endpoint that lies, and a history without SQLite."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from billing.expirationd.dialing import Unreachable
from billing.expirationd.health import BUSY, DROPPED, FAILED, OK, TIMED_OUT
from billing.expirationd.line import Verdict
from billing.ledger.entry import FIELDS, history_row, unpack
from shards.batch import ENTRY, split_batch
from shards.system.clock import Clocks

SICK = ("hangs", "fails", "asks for time", "hangs up")
ASKED_FOR_NS = 20 * 10**9


class EndpointFaults:
    """How the endpoint behaves now: the share of calls that go wrong, by how; and the users for whom all calls do."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.wrong: dict[str, float] = {}  # "refused" | "slow" | "5xx" | "4xx" | "lost" | "dropped" -> share
        self.met: dict[str, int] = {}
        self.sick: dict[bytes, str] = {}  # user -> one of SICK

    def draw(self, among: tuple[str, ...]) -> str:
        for name in among:
            if name in self.wrong and self.rng.random() < self.wrong[name]:
                self.met[name] = self.met.get(name, 0) + 1
                return name
        return ""


class SimLine:
    """A connection to the endpoint."""

    def __init__(self, endpoint: SimEndpoint) -> None:
        self.endpoint = endpoint
        self.used = False
        self.ended = asyncio.Event()


class CallObserver(Protocol):
    """What the endpoint has of the auditor."""

    last_call: dict[bytes, tuple[str, int]]

    def billing_ns(self, boot_ns: int) -> int:
        """Billing time at this boot instant of the caller."""

    def attempt(self, kind: str, user: bytes, event_id: str, seq: int, exhausted_at_ns: int, now_ns: int) -> None:
        """An attempt starts."""

    def calls(self, user: bytes, event_id: str) -> None:
        """It is under way."""

    def called(self, user: bytes, now_ns: int) -> None:
        """It is over."""

    def on_accepted(self, kind: str, user: bytes, seq: int) -> None:
        """It is answered with 2xx."""


class SimEndpoint:
    """`billing.expirationd.endpoint.Endpoint`, and the service behind it."""

    def __init__(
        self,
        origin: str,
        clocks: Clocks,
        endpoint_faults: EndpointFaults,
        auditor: CallObserver,
        trace: Callable[..., None],
    ) -> None:
        self._boot_ns = clocks.boot_ns
        self.origin = origin
        self.connections = self.connects = 0
        self.is_taking = False  # it answers calls one by one
        self.closed = False
        self._moods = endpoint_faults
        self._auditor = auditor
        self._trace = trace
        self._idle: list[SimLine] = []
        self._calls: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """No connection is kept warm."""

    def open_ahead(self) -> None:
        """No connection is opened before its call."""

    def spare(self) -> SimLine | None:
        return self._idle.pop() if self._idle else None

    async def connect(self) -> SimLine:
        fault = self._moods.draw(("refused",))
        await asyncio.sleep(self._moods.rng.random() * 0.002)
        if fault:
            raise Unreachable("refused")
        return SimLine(self)

    def keep(self, line: SimLine) -> None:
        self._idle.append(line)

    def ask(self, line: SimLine, request: bytes, timeout_s: float, on_verdict: Callable[[Verdict], None]) -> None:
        kind, user, event_id, seq, exhausted_at_ns = _read(request)
        now_ns = self._auditor.billing_ns(self._boot_ns())
        self._trace("attempt", kind, user, seq, exhausted_at_ns)
        self._auditor.attempt(kind, user, event_id, seq, exhausted_at_ns, now_ns)
        self.go_on(self._exchange(line, kind, user, seq, event_id, timeout_s, on_verdict))

    def go_on(self, call: Coroutine[Any, Any, None]) -> None:
        """The rest of a call, which was written just now."""
        task = asyncio.get_running_loop().create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _exchange(
        self,
        line: SimLine,
        kind: str,
        user: bytes,
        seq: int,
        event_id: str,
        timeout_s: float,
        on_verdict: Callable[[Verdict], None],
    ) -> None:
        self._auditor.calls(user, event_id)
        try:
            verdict = await self._answer(line, user, timeout_s, lambda ok: self._took(kind, user, seq, ok))
        finally:
            self._auditor.called(user, self._auditor.billing_ns(self._boot_ns()))
        if not self.closed and verdict[0] != TIMED_OUT:
            self._idle.append(line)
        on_verdict(verdict)

    def _took(self, kind: str, user: bytes, seq: int, ok: bool) -> None:
        self._auditor.last_call[user] = kind, seq
        if ok:
            self._auditor.on_accepted(kind, user, seq)

    async def _answer(self, line: SimLine, user: bytes, timeout_s: float, reached: Callable[[bool], None]) -> Verdict:
        """What this call meets. `reached`: the service has it; told whether it is answered with 2xx."""
        endpoint_faults = self._moods
        fault = endpoint_faults.draw(("dropped", "slow", "5xx", "4xx", "lost"))
        if fault == "dropped" and line.used:
            return DROPPED, "the connection was closed", -1
        line.used = True
        sick = endpoint_faults.sick.get(user, "")
        if fault == "slow" or sick == "hangs":
            return await self._hang(line, timeout_s)
        await asyncio.sleep(endpoint_faults.rng.random() * 0.004)
        if fault == "5xx":
            pause_ns = -1 if endpoint_faults.rng.random() < 0.5 else endpoint_faults.rng.randrange(3 * 10**9)
            return FAILED if pause_ns < 0 else BUSY, "503", pause_ns
        if sick:
            return (BUSY, "429", ASKED_FOR_NS) if sick == "asks for time" else (FAILED, sick, -1)
        if fault == "4xx":
            return FAILED, "404", -1
        reached(fault != "lost")
        if fault == "lost":
            return FAILED, "the reply was lost", -1
        return OK, "", -1

    async def _hang(self, line: SimLine, timeout_s: float) -> Verdict:
        try:
            await asyncio.wait_for(line.ended.wait(), timeout_s)
        except TimeoutError:
            return TIMED_OUT, "no answer in time", -1
        return TIMED_OUT, "no answer so far, and others wait", -1

    def end(self, line: SimLine, why: str) -> None:
        line.ended.set()

    async def close(self) -> None:
        self.closed = True
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)


def _read(request: bytes) -> tuple[str, bytes, str, int, int]:
    """(kind, user, event id, seq, instant) of a request as it was written."""
    target = request.split(b" ", 2)[1].decode("ascii")
    parts = urlsplit(target)
    query = parse_qs(parts.query, strict_parsing=True)
    user = next(unquote_to_bytes(pair[8:]) for pair in parts.query.split("&") if pair.startswith("user_id="))
    header = request.split(b"webhook-id: ", 1)[1].split(b"\r\n", 1)[0].decode("ascii")
    (event_id,) = query["event_id"]
    assert header == event_id, "webhook-id is not the event_id"
    return parts.path.strip("/"), user, event_id, int(query["seq"][0]), int(query["exhausted_at_ns"][0])


class Archive:
    """What all shards' histories hold: durable, and shared as the files of one directory are."""

    def __init__(self) -> None:
        self.positions: dict[int, int] = {}
        self.rows: dict[bytes, dict[int, dict[str, object]]] = {}  # user -> entry_id -> row


class SimHistory:
    """`billing.history.link.HistoryLink` with the archive at hand: first reads what that lacks, then follows."""

    def __init__(self, archive: Archive, shard_id: int, journal: Any) -> None:
        self._archive = archive
        self._shard_id = shard_id
        self._journal = journal

    def start(self, _: float = 0.0) -> None:
        position = self._archive.positions.get(self._shard_id, 0)
        for batch_position, payload in self._journal.replay(max(position + 1, self._journal.first)):
            self.hand(batch_position, payload)

    def hand(self, position: int, payload: bytes) -> None:
        archive = self._archive
        if position <= archive.positions.get(self._shard_id, 0):
            return
        archive.positions[self._shard_id] = position
        for kind, _, _, body in split_batch(payload):
            if kind == ENTRY:
                entry = unpack(body)
                if entry[7]:
                    archive.rows.setdefault(entry[FIELDS.index("user_id")], {})[entry[7]] = history_row(entry)

    def history(
        self, bucket_id: int, generation: int, user_id: bytes, limit: int, before: int, newest: Any, done: Any
    ) -> None:
        rows = self._archive.rows.get(user_id, {})
        chosen = sorted((entry_id for entry_id in rows if entry_id < before), reverse=True)[:limit]
        done([rows[entry_id] for entry_id in chosen])

    def trim_floor(self) -> int:
        return self._archive.positions.get(self._shard_id, 0)

    def silence(self) -> str:
        return ""

    def obstacle(self) -> str:
        return ""

    def figures(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        """All of it is durable."""
