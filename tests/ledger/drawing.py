"""What a random program does next: operations and instants that seek the edges of what the model knows."""

from __future__ import annotations

import random

from tests.ledger.model import Model, Policy
from tests.ledger.model_account import BOUND, HOUR, WEEK, Account, Op

START = 1_700_000_000 * 10**9
USERS = ("a", "Ünal", "c" * 40)
RESOURCES = ("", "", "vm-1", "vm-2")
AMOUNTS = (1, 1, 2, 3, 5, 10, 100, 999, 10**6, 10**9, 10**15, BOUND // 3, BOUND - 1, BOUND)
RATES = (0, 0, 1, 2, 7, 3600, HOUR // 3, HOUR, HOUR + 1, 3 * HOUR, 5 * HOUR + 7, 10**15, BOUND // 2, BOUND)
SPANS = (1, 2, 3, 10, 100, 10**6, 10**9, HOUR, WEEK, 30 * WEEK, BOUND)
LEASE_MIN = 10**6
CLASSES = ("gold", "slow", "x-9_")
METHODS = {
    "top_up": 14, "debit": 12, "set_rate": 16, "change_rate": 6, "set_credit_limit": 5, "hold": 8, "capture": 4,
    "release": 3, "adjust": 5, "set_thresholds": 4, "set_class": 5, "close_account": 3, "delivery": 16, "again": 5,
}  # fmt: skip
DELIVERY = (
    "cutoff_started", "cutoff_started", "cutoff_delivered", "cutoff_delivered", "cutoff_failed", "restore_started",
    "restore_failed", "restore_delivered", "cutoff_retry", "cutoff_released",
)  # fmt: skip


class Drawing:
    """Draws from one seeded generator; `t` is the program's instant, `done` the operations that had a request_id."""

    def __init__(self, draw: random.Random, model: Model, t: int) -> None:
        self.random = draw
        self.model = model
        self.accounts = model.accounts
        self.t = t
        self.done: list[Op] = []

    def next_instant(self) -> int:
        """The same, an edge, one before the last, or some time later."""
        draw = self.random
        chance = draw.random()
        if chance < 0.25:
            return self.t
        if chance < 0.28:
            return max(0, self.t - draw.choice(SPANS[:7]))
        account = self.accounts.get(draw.choice(USERS))
        if chance < 0.75 and account is not None:
            coming = account.coming()
            if coming is not None and coming[0] <= BOUND // 2:
                return max(self.t, coming[0] + draw.choice((-1, -1, 0, 0, 0, 1)))
        later = self.t + draw.choice(SPANS[:-2])
        return later if later < BOUND // 2 else self.t

    def next_op(self) -> Op:
        """An operation on one of the users."""
        draw = self.random
        (method,) = draw.choices(tuple(METHODS), tuple(METHODS.values()))
        user = draw.choice(USERS)
        account = self.accounts.get(user)
        if method == "again":
            return draw.choice(self.done) if self.done else self._top_up(user)
        if account is None and draw.random() < 0.9:
            return self._top_up(user)
        if method == "delivery":
            return self._delivery(user, account)
        op = getattr(self, "_" + method)(user, account)
        if draw.random() < 0.3:
            op["request_id"] = f"r{draw.randrange(200)}"
        return dict(op)

    def _amount(self, account: Account | None) -> int:
        """One that seeks the edge of what is available, or any."""
        edges = [1]
        if account is not None:
            available = int(account.available)
            edges = [available - 1, available, available + 1, available // 2, -int(account.balance), 1 - available]
        amount = self.random.choice(edges) if self.random.random() < 0.5 else self.random.choice(AMOUNTS)
        return min(max(1, amount), BOUND)

    def _top_up(self, user: str, account: Account | None = None) -> Op:
        draw = self.random
        op: Op = {"method": "top_up", "user": user, "amount": self._amount(account)}
        if draw.random() < 0.4:
            op["expires_at_ns"] = self._end(account)
            op["kind"] = draw.choice(("", "promo", "Guthaben ü"))
        return op

    def _end(self, account: Account | None) -> int:
        """An end about when another credit, a hold, a lease or the money ends, or any; now and then one in the past."""
        draw = self.random
        now = self.t if account is None else max(self.t, account.at)
        edges = [now + draw.choice(SPANS), now + draw.choice(SPANS), now]
        if account is not None:
            edges += [credit["end"] for credit in account.credits]
            edges += [] if account.call_at is None else [account.call_at] * 2
            edges += [*account.ends.values(), *(end for _, end in account.holds.values() if end is not None)]
            if account.runs_out is not None:
                edges += [account.runs_out + draw.randrange(-1, 2)] * 2
        return min(max(0, draw.choice(edges)), BOUND)

    def _debit(self, user: str, account: Account | None) -> Op:
        mode = self.random.choice(("strict", "strict", "partial", "force"))
        return {"method": "debit", "user": user, "amount": self._amount(account), "mode": mode}

    def _adjust(self, user: str, account: Account | None) -> Op:
        amount = self._amount(account) * self.random.choice((1, -1))
        return {"method": "adjust", "user": user, "amount": amount, "reason": "Irrtum ü"}

    def _set_credit_limit(self, user: str, account: Account | None) -> Op:
        amount = 0 if self.random.random() < 0.3 else self._amount(account)
        return {"method": "set_credit_limit", "user": user, "amount": amount}

    def _hold(self, user: str, account: Account | None) -> Op:
        op: Op = {"method": "hold", "user": user, "amount": self._amount(account)}
        chance = self.random.random()
        if chance < 0.6:
            op["ttl_ns"] = self.random.choice(SPANS)
        if chance < 0.3 and account is not None and account.runs_out is not None:  # expires about when it runs out
            op["ttl_ns"] = min(max(1, account.runs_out - max(self.t, account.at) + self.random.randrange(-1, 2)), BOUND)
        elif chance < 0.4 and account is not None and (call_at := self.model.call_at(account)) is not None:
            op["ttl_ns"] = min(max(1, call_at - max(self.t, account.at) + self.random.randrange(-1, 2)), BOUND)
        return op

    def _hold_of(self, account: Account | None) -> str:
        names = list(account.holds) if account is not None else []
        return self.random.choice(names) if names and self.random.random() < 0.9 else "e:999999"

    def _capture(self, user: str, account: Account | None) -> Op:
        return {"method": "capture", "user": user, "hold_id": self._hold_of(account), "amount": self._amount(account)}

    def _release(self, user: str, account: Account | None) -> Op:
        return {"method": "release", "user": user, "hold_id": self._hold_of(account)}

    def _rate_for(self, account: Account | None) -> int:
        """One that runs the money out soon, in a nanosecond, or never; or any."""
        if account is not None and account.available > 0 and self.random.random() < 0.5:
            rate = int(account.available * HOUR) // self.random.choice((1, 2, 3, 1000, 10**9))
            return min(max(0, rate + self.random.randrange(-1, 2)), BOUND)
        return self.random.choice(RATES)

    def _set_rate(self, user: str, account: Account | None) -> Op:
        draw = self.random
        rate = 0 if draw.random() < 0.2 else self._rate_for(account)
        op: Op = {"method": "set_rate", "user": user, "rate": rate}
        if draw.random() < 0.5:
            op["resource"] = draw.choice(RESOURCES)
        if draw.random() < 0.3:
            op["rate_seq"] = draw.randrange(20)
        if draw.random() < 0.2:
            runways = [0, *SPANS]
            if account is not None:
                other_lines = account.rate - account.lines.get(op.get("resource", ""), 0)
                if other_lines + rate > 0:
                    runways += [max(0, account.runway_at(other_lines + rate) + draw.randrange(2))] * 6
            op["min_runway_ns"] = min(draw.choice(runways), BOUND)
        if draw.random() < 0.3:
            op["ttl_ns"] = self._lease(account)
        return op

    def _lease(self, account: Account | None) -> int:
        """One that ends about when the money does, with another lease or a hold, or any."""
        draw = self.random
        now = self.t if account is None else max(self.t, account.at)
        edges = [LEASE_MIN, draw.choice(SPANS)]
        if account is not None:
            edges += [end - now for end in account.ends.values()]
            edges += [end - now for _, end in account.holds.values() if end is not None]
            edges += [] if account.call_at is None else [account.call_at - now] * 2
            if account.runs_out is not None:
                edges += [account.runs_out - now + draw.randrange(-1, 2)] * 2
        return min(max(LEASE_MIN, draw.choice(edges)), BOUND)

    def _change_rate(self, user: str, account: Account | None) -> Op:
        delta = self._rate_for(account) * self.random.choice((1, -1))
        return {"method": "change_rate", "user": user, "delta": delta, "resource": self.random.choice(RESOURCES)}

    def _set_thresholds(self, user: str, account: Account | None) -> Op:
        draw = self.random
        thresholds = [
            ("amount", self._amount(account)) if draw.random() < 0.5 else ("runway_ns", draw.choice((0, *SPANS)))
            for _ in range(draw.randrange(4))
        ]
        return {"method": "set_thresholds", "user": user, "thresholds": thresholds}

    def _set_class(self, user: str, account: Account | None) -> Op:
        name = self.random.choice(("", "nobody's", *CLASSES, *CLASSES, *CLASSES))
        return {"method": "set_class", "user": user, "class": name}

    def classes(self) -> dict[str, Policy]:
        """What a configuration says of classes; one may be missing from it."""
        draw = self.random
        return {
            name: Policy(draw.choice((0, *SPANS)), draw.random() < 0.5, draw.random() < 0.5)
            for name in CLASSES
            if draw.random() < 0.9
        }

    def _close_account(self, user: str, account: Account | None) -> Op:
        return {"method": "close_account", "user": user}

    def _delivery(self, user: str, account: Account | None) -> Op:
        draw = self.random
        op: Op = {"method": draw.choice(DELIVERY), "user": user, "seq": draw.randrange(5)}
        if account is not None and draw.random() < 0.9:
            op["seq"] = max(0, account.seq - draw.choice((0, 0, 0, 1)))
            owed = account.owed()
            if owed is not None and draw.random() < 0.6:
                op["seq"] = owed[1]
        if op["method"].endswith("failed"):
            op["error"] = "500"
        if op["method"] == "cutoff_failed" and draw.random() < 0.3:
            op["unbegun"] = True
        if op["method"] == "cutoff_retry":
            op["operator"] = draw.random() < 0.5
        return op
