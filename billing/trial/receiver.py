"""The receiver: a cutoff endpoint for trying, for tests and for measuring.

It takes GETs (cutoffs and restores) and POSTs (notices), stamps each with the instant at which its bytes were read,
answers 200, and keeps the calls. *Lateness* is that instant minus `exhausted_at_ns`; it is never below zero if the
daemon keeps its promise. `clock` gives the time (the wall clock by default, which billing time follows up to its slew).
If secrets are given, a call with a wrong or missing signature gets status 401. The receiver can also misbehave: see
`faults`.

**It is cheap on purpose**, since it runs beside the daemon that is measured: a plain `asyncio.Protocol` answers in the
callback that read the request, and the request is parsed only later (`received_calls`). Pipelined requests are answered
in order.

    GET /stats       counts, lateness in microseconds (least, p50, p99, most), connections
    GET /received    ?after=N&limit=N   calls as JSON, oldest first; `next` is the `after` of the next page
    GET /misbehave   ?fault=NAME=VALUE&for_s=S   begins a fault, which ends after S seconds

**Limits.** `receiver_connection` limits the size of a request, `received_calls` the number of calls that are kept.

It switches no machine off, and opens no file.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from billing.signature import verify
from billing.trial.faults import BEHAVES, WHOLE, Fault, Misbehaviour, parse_fault
from billing.trial.received_calls import ReceivedCalls
from billing.trial.receiver_call import Call, call_of, shown
from billing.trial.receiver_connection import Connection, headers_of
from shards.system.clock import MACHINE_CLOCKS

if TYPE_CHECKING:
    import ssl

_SHORTLY_S: Final = 0.01
_BIND_TRIES: Final = 100


class Receiver:
    """The endpoint, in this process: `await start()`, then `url`, `calls`, `stats()`, `await close()`.

    `fault` may be changed while the receiver runs. `received`: the object that counts and keeps the calls.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Callable[[], int] = MACHINE_CLOCKS.wall_ns,
        secrets: Sequence[bytes] = (),
        misbehaviour: Misbehaviour = BEHAVES,
        received: ReceivedCalls | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.now_ns = clock
        self.secrets = tuple(secrets)
        self.fault = misbehaviour.fault
        self._meets = misbehaviour.meets
        self.connections: set[Connection] = set()
        self.connects = 0
        self._received = received or ReceivedCalls()
        self.take_call = self._received.take_call  # called by connections
        self._tls = tls
        self._bound = False
        self._server: asyncio.AbstractServer | None = None
        self._shut: socket.socket | None = None  # bound but not listening: connections are refused
        self._flap: asyncio.TimerHandle | None = None
        self._recovery: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()  # a change of the fault, or a flap, is complete before the next one begins

    @property
    def url(self) -> str:
        """`http://host:port`, or `https://host:port` with TLS."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    @property
    def calls(self) -> list[Call]:
        """The calls kept, oldest first."""
        return self._received.calls_kept()

    def clear(self) -> None:
        """Forgets all calls and their counts."""
        self._received.clear()

    async def start(self) -> None:
        """Binds the port, and listens unless the fault is `refuse`. Port 0 takes a free port, which the receiver keeps
        from then on.
        """
        name = self.fault.name if self.fault else ""
        await self.listen(name != "refuse")
        if name == "flap":
            self._arm_flap()

    async def listen(self, listening: bool) -> None:
        """Listens if `listening`; else refuses new connections and resets the open ones."""
        if listening == (self._server is not None) and self._bound:
            return
        if self._server is not None:
            self._server.close()
            self._server = None
            for connection in list(self.connections):
                connection.reset()
            await asyncio.sleep(0)
        elif self._shut is not None:
            self._shut.close()
            self._shut = None
        bound = await self._bind()
        if listening:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: Connection(self), sock=bound, backlog=1024, ssl=self._tls)
        else:
            self._shut = bound

    async def close(self) -> None:
        """Stops listening and closes every connection."""
        for timer in (self._flap, self._recovery):
            if timer is not None:
                timer.cancel()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._shut is not None:
            self._shut.close()
        for connection in list(self.connections):
            connection.transport.abort()
        self._received.close()
        await asyncio.sleep(0)

    def stats(self) -> dict[str, Any]:
        """Counts over all calls, and the lateness of the cutoffs kept, first attempts only."""
        return {
            **self._received.counts(),
            "connections": len(self.connections),
            "connects": self.connects,
            "lateness_us": self._received.lateness_us(),
        }

    # -- for connections --------------------------------------------------------------------------------------------

    def fault_now(self, head: bytes, body: bytes) -> Fault | None:
        """The fault that this call meets; None if it meets none."""
        fault = self.fault
        if fault is None or fault.name in WHOLE:
            return None
        if fault.users < 1:
            fault = fault.of(call_of(0, 0, head, body, "", set()).user_id)
            if fault is None:
                return None
        return fault if self._meets() else None

    def is_served(self, connection: Connection) -> bool:
        """Whether requests on this connection are served now. With the fault `one-at-a-time` only the oldest connection
        is served.
        """
        if self.fault is None or self.fault.name != "one-at-a-time":
            return True
        return min(self.connections, key=lambda candidate: candidate.number) is connection

    def serve_next(self) -> None:
        """Called when a connection has ended. With the fault `one-at-a-time` it serves the next oldest connection."""
        if self.connections and self.fault is not None and self.fault.name == "one-at-a-time":
            min(self.connections, key=lambda candidate: candidate.number).serve()

    def genuine(self, head: bytes, body: bytes) -> bool:
        """Whether the call's signature is right, or the receiver has no secrets to verify it with."""
        if not self.secrets:
            return True
        headers = headers_of(head)
        return verify(
            self.secrets,
            headers.get(b"webhook-id", b""),
            headers.get(b"webhook-timestamp", b""),
            headers.get(b"webhook-signature", b""),
            body or head.split(b" ", 2)[1],
            self.now_ns() // 10**9,
        )

    def page(self, target: str) -> bytes | None:
        """The JSON of `/stats`, `/received` or `/misbehave`; None for other paths."""
        path, _, query = target.partition("?")
        if path == "/stats":
            return json.dumps(self.stats()).encode()
        if path == "/misbehave":
            return self._misbehave(query)
        if path != "/received":
            return None
        wanted = {name: values[-1] for name, values in parse_qs(query).items()}
        after = int(wanted.get("after", "0")) if wanted.get("after", "0").isdigit() else 0
        limit = int(wanted.get("limit", "1000")) if wanted.get("limit", "1000").isdigit() else 1000
        calls = [call for call in self.calls if call.number >= after][: min(limit, 10_000)]
        return json.dumps(
            {"calls": [shown(call) for call in calls], "next": calls[-1].number + 1 if calls else after}
        ).encode()

    def _misbehave(self, query: str) -> bytes:
        """Begins a fault that ends by itself. Returns the fault as JSON, or an error as JSON if it cannot be parsed."""
        wanted = {name: values[-1] for name, values in parse_qs(query).items()}
        try:
            fault, for_s = parse_fault(wanted.get("fault", "")), float(wanted.get("for_s", ""))
        except ValueError as error:
            return json.dumps({"error": str(error)}).encode()
        loop = asyncio.get_running_loop()
        for timer in (self._recovery, self._flap):
            if timer is not None:
                timer.cancel()
        self._recovery = loop.call_later(for_s, lambda: self._spawn(self._change(None)))
        # A little later, so that this answer still leaves if the fault resets all connections.
        loop.call_later(_SHORTLY_S, lambda: self._spawn(self._change(fault)))
        return json.dumps({"fault": fault.name, "for_s": for_s}).encode()

    def _spawn(self, change: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change(self, fault: Fault | None) -> None:
        async with self._changing:
            if self._flap is not None:
                self._flap.cancel()
            self.fault = fault
            name = fault.name if fault else ""
            for connection in list(self.connections) if fault is None else []:
                connection.recover()
            await self.listen(name != "refuse")
            if name == "flap":
                self._arm_flap()

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        for tries_left in range(_BIND_TRIES if self._bound else 1, 0, -1):
            bound = socket.socket(family, socket.SOCK_STREAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((self.host, self.port))
            except OSError:
                bound.close()
                if tries_left == 1:
                    raise
                await asyncio.sleep(_SHORTLY_S)  # our previous socket is still being closed
            else:
                self.port = bound.getsockname()[1]
                self._bound = True
                return bound
        raise AssertionError("the last try returns or raises")

    def _arm_flap(self) -> None:
        assert self.fault is not None
        loop = asyncio.get_running_loop()
        self._flap = loop.call_later(self.fault.value, lambda: self._spawn(self._on_flap()))

    async def _on_flap(self) -> None:
        async with self._changing:
            if self.fault is not None and self.fault.name == "flap":
                await self.listen(self._server is None)
                self._arm_flap()


def _print(line: str) -> None:
    print(line, flush=True)


def run_receiver(receiver: Receiver, out: Callable[[str], object] = _print) -> int:
    """Runs `billing receiver`: serves until SIGINT or SIGTERM. Returns 0. `out(line)`: called with the line that says
    where it listens, and at the end with a line of statistics.
    """
    import uvloop

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await receiver.start()
        out(f"listening on {receiver.url}")
        await stop.wait()
        await receiver.close()
        out(json.dumps(receiver.stats()))

    uvloop.run(serve())
    return 0
