"""What clients ask: one call, and the programs that make them up, every procedure on accounts among them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

COMMANDS = {
    "top_up": 1, "set_rate": 2, "change_rate": 3, "debit": 4, "set_credit_limit": 5, "hold": 6, "capture": 7,
    "release": 8, "adjust": 9, "set_thresholds": 10, "close_account": 11,
    "set_class": 12,
}  # fmt: skip
COIN = 10**9
HOUR_NS = 3600 * 10**9
GRACES_S = {"gold": 2.0, "quick": 0.1, "none": 0.0}  # of each cutoff class


class Call:
    """One request, as it is sent once or, with the same request_id, again."""

    def __init__(self, method: str, user: bytes, params: list[Any], options: dict[str, Any]) -> None:
        self.method = method
        self.user = user
        self.params = params
        self.options = options
        self.request_id: bytes = options.get("request_id", b"")
        self.tag = b""  # its message, unique
        self.number = 0  # `a` of the entry it makes
        self.key = b""
        self.tries = 0
        self.after = 0  # an entry_id that somebody had seen before this was sent
        self.answer: Any = None  # a result or an error, once known

    def __repr__(self) -> str:
        return f"{self.method}({self.user!r}, {self.params}, {self.options}) try {self.tries}"

    @property
    def wire(self) -> list[Any]:
        """The parameters as sent."""
        return [self.user, *self.params, *([self.options] if self.options else [])]


class Programs:
    """Makes calls up."""

    def __init__(
        self, rng: random.Random, users: list[bytes], now_ns: Callable[[], int] = lambda: 1_700_000_000 * 10**9
    ) -> None:
        """`now_ns`: about what the daemon's billing time is, for credits that end soon."""
        self._rng = rng
        self._now_ns = now_ns
        self.users = users
        self.made: dict[str, int] = {}
        self.holds: dict[bytes, list[Any]] = {}  # user -> hold ids that clients were told
        self._count = 0

    def call(self) -> Call:
        """The next one."""
        rng = self._rng
        user = rng.choice(self.users)
        method = rng.choices(tuple(_WEIGHTS), tuple(_WEIGHTS.values()))[0]
        if method in ("capture", "release") and not self.holds.get(user):
            method = "hold"
        self.made[method] = self.made.get(method, 0) + 1
        self._count += 1
        call = getattr(self, "_" + method)(user)
        assert isinstance(call, Call)
        return call

    def _new(self, method: str, user: bytes, *params: Any, number: int = 0, key: bytes = b"", **options: Any) -> Call:
        if method in COMMANDS and self._rng.random() < 0.6:
            options["request_id"] = b"r%d" % self._count
        call = Call(method, user, list(params), options)
        call.number, call.key = number, key
        if "message" in options:
            call.tag = options["message"]
        return call

    def _tag(self) -> bytes:
        return b"m%d" % self._count

    def _amount(self) -> int:
        """Small against what a coin-a-second rate burns in the seconds of a run, or odd, or large."""
        rng = self._rng
        small, large = rng.randrange(1, 10**6), rng.randrange(1, 5 * COIN)
        moment = rng.randrange(1, 3 * 10**7)  # it may be gone before a slow disk has it
        return rng.choice((rng.randrange(1, 9), small, moment, rng.randrange(1, COIN), large, 3 * COIN))

    def _rate(self) -> int:
        """Nanos an hour; often such that accounts run out within seconds."""
        rng = self._rng
        return rng.choice((0, rng.randrange(1, 10**6), rng.randrange(1, 3600 * COIN), rng.randrange(1, 9000 * COIN)))

    def _top_up(self, user: bytes) -> Call:
        amount = self._amount()
        options: dict[str, Any] = {"message": self._tag()}
        if self._rng.random() < 0.3:
            options["expires_at_ns"] = self._now_ns() + self._rng.randrange(-(10**8), 4 * 10**9)
            options["kind"] = "promo"
        return self._new("top_up", user, amount, number=amount, **options)

    def _set_rate(self, user: bytes) -> Call:
        rng, rate = self._rng, self._rate()
        options: dict[str, Any] = {"per": "hour", "message": self._tag()}
        if rng.random() < 0.3:
            options["resource"] = rng.choice(("vm-1", "vm-2"))
        if rng.random() < 0.2:
            options["rate_seq"] = rng.randrange(self._count + 1)
        if rng.random() < 0.1:
            options["min_runway_ns"] = rng.randrange(10 * 10**9)
        if rng.random() < 0.2:
            options["ttl_ns"] = rng.randrange(10**6, 5 * 10**9)
        return self._new("set_rate", user, rate, number=rate, **options)

    def _change_rate(self, user: bytes) -> Call:
        delta = self._rate() - self._rate() // 2
        return self._new("change_rate", user, delta, number=delta, per="hour", message=self._tag())

    def _debit(self, user: bytes) -> Call:
        amount, mode = self._amount(), self._rng.choice(("strict", "partial", "force"))
        return self._new("debit", user, amount, number=amount, mode=mode, message=self._tag())

    def _set_credit_limit(self, user: bytes) -> Call:
        amount = self._rng.choice((0, self._amount()))
        return self._new("set_credit_limit", user, amount, number=amount)

    def _hold(self, user: bytes) -> Call:
        amount = self._amount()
        options: dict[str, Any] = {"ttl_ns": self._rng.randrange(1, 5 * 10**9)} if self._rng.random() < 0.5 else {}
        return self._new("hold", user, amount, number=amount, **options)

    def _capture(self, user: bytes) -> Call:
        hold, amount = self._rng.choice(self.holds[user]), self._amount()
        return self._new("capture", user, hold, amount, number=amount, key=_bytes(hold))

    def _release(self, user: bytes) -> Call:
        hold = self._rng.choice(self.holds[user])
        return self._new("release", user, hold, key=_bytes(hold))

    def _adjust(self, user: bytes) -> Call:
        amount = self._amount() * self._rng.choice((1, -1))
        call = self._new("adjust", user, amount, self._tag(), number=amount)
        call.tag = self._tag()
        return call

    def _set_thresholds(self, user: bytes) -> Call:
        rng = self._rng
        thresholds = [{"amount": rng.randrange(1, 3 * COIN)} for _ in range(rng.randrange(3))]
        thresholds += [{"runway_ns": rng.randrange(1, 10**10)} for _ in range(rng.randrange(2))]
        return self._new("set_thresholds", user, thresholds, number=len(thresholds))

    def _set_class(self, user: bytes) -> Call:
        name = self._rng.choice(("default", *GRACES_S))
        key = b"" if name == "default" else name.encode()
        return self._new("set_class", user, name, key=key, message=self._tag())

    def _close_account(self, user: bytes) -> Call:
        return self._new("close_account", user)

    def _get_account(self, user: bytes) -> Call:
        return self._new("get_account", user)

    def _history(self, user: bytes) -> Call:
        return self._new("history", user, limit=self._rng.randrange(1, 20))


def _bytes(hold: Any) -> bytes:
    return hold.encode() if isinstance(hold, str) else bytes(hold)


_WEIGHTS = {
    "top_up": 24, "set_rate": 18, "change_rate": 6, "debit": 14, "set_credit_limit": 4, "hold": 6, "capture": 4,
    "release": 3, "adjust": 4, "set_thresholds": 3, "set_class": 5, "close_account": 2,
    "get_account": 12, "history": 3,
}  # fmt: skip
assert struct.calcsize("<Bq") == 9
