"""An endpoint in virtual time, in the place of `billing.expirationd.endpoint.Endpoint` and the service behind it."""

import asyncio
from collections.abc import Callable

from billing.expirationd.dialing import Unreachable
from billing.expirationd.health import OK
from billing.expirationd.line import Verdict
from tests.simulation.loop import Kernel


class LateEndpoint:
    """An endpoint that refuses connections until an instant, and then answers after `answer_s`."""

    def __init__(self, kernel: Kernel, back_ns: int = 0, answer_s: float = 0.001) -> None:
        self.kernel, self.back_ns, self.answer_s = kernel, back_ns, answer_s
        self.refused: list[int] = []
        self.requests: list[bytes] = []
        self.at_once = self.most_at_once = 0
        self.endpoint = self  # it is its own line
        self.is_taking = False  # it answers calls one by one

    def start(self) -> None:
        """Nothing is warm where nobody answers."""

    def open_ahead(self) -> None:
        """No connection is opened before its call."""

    def spare(self) -> None:
        return None

    async def connect(self) -> "LateEndpoint":
        if self.kernel.now_ns < self.back_ns:
            self.refused.append(self.kernel.now_ns)
            raise Unreachable("connection refused")
        return self

    def keep(self, line: "LateEndpoint") -> None:
        """Whoever connects again is answered as well."""

    def ask(
        self, line: "LateEndpoint", request: bytes, timeout_s: float, on_verdict: Callable[[Verdict], None]
    ) -> None:
        self.requests.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        asyncio.get_running_loop().call_later(self.answer_s, self._answer, on_verdict)

    def _answer(self, on_verdict: Callable[[Verdict], None]) -> None:
        self.at_once -= 1
        on_verdict((OK, "", -1))

    def end(self, line: "LateEndpoint", why: str) -> None:
        """Whoever is answered at all is answered soon."""

    async def close(self) -> None:
        """Nothing is open."""
