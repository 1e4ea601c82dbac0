"""One account of the model: what it holds, and what each procedure does to it. See `model`."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

HOUR = 3600 * 10**9
WEEK = 7 * 24 * HOUR
BOUND = 2**63 - 1

Op = dict[str, Any]


class Refusal(Exception):
    """An error name, and the facts that come with it."""

    def __init__(self, name: str, **facts: Any) -> None:
        super().__init__(name, facts)
        self.name = name
        self.facts = facts


def _spent_first(credit: dict[str, Any]) -> tuple[int, Fraction, int]:
    return credit["end"], credit["left"], credit["entry"]


class Account:
    """What the model knows of one account."""

    def __init__(self, user: str, at: int) -> None:
        self.user = user
        self.at = at  # everything up to here has been accounted for
        self.balance = Fraction(0)
        self.limit = 0
        self.holds: dict[str, tuple[int, int | None]] = {}
        self.credits: list[dict[str, Any]] = []  # each with its end, what is left, entry, amount and kind
        self.lines: dict[str, int] = {}
        self.ends: dict[str, int] = {}  # of lines with a lease
        self.seqs: dict[str, int] = {}
        self.zero_since: dict[str, int] = {}
        self.thresholds: list[tuple[str, int]] = []
        self.exhausted = False
        self.goes_below = False
        self.overrun = Fraction(0)
        self.seq = 0
        self.entry_id = 0
        self.cutoffs: list[dict[str, Any]] = []  # all there ever were
        self.maybe_off = 0  # highest seq whose machines may be off
        self.back_on = 0  # highest seq made good
        self.class_name = ""
        self.restore_attempts = 0

    @property
    def available(self) -> Fraction:
        beyond = self.limit
        for amount, _ in self.holds.values():
            beyond -= amount
        return self.balance + beyond if beyond else self.balance

    @property
    def rate(self) -> int:
        return sum(self.lines.values()) if self.lines else 0

    @property
    def per_ns(self) -> Fraction:
        return Fraction(self.rate, HOUR)

    @property
    def runs_out(self) -> int | None:
        """The first nanosecond at which what has been spent is at least what there was."""
        return self.falls_to(0)

    def falls_to(self, floor: int) -> int | None:
        """The first nanosecond at which available is the floor or below, by time alone; None where it is already."""
        above = self.available - floor if floor else self.available
        if above <= 0:
            return None
        if not self.credits:  # nothing but the rate takes from it
            return self.at + math.ceil(above * HOUR / self.rate) if self.lines else None
        instants = {credit["end"] for credit in self.credits}
        for end in sorted(instants):
            if self._available_at(end) <= floor:
                return self._spent_down_to(floor, end)
        last = max(instants, default=self.at)
        return math.ceil(last + (self._available_at(last) - floor) / self.per_ns) if self.lines else None

    def _spent_down_to(self, floor: int, end: int) -> int:
        """Between two ends money only goes by the rate: when it is gone before `end`, else `end` itself."""
        begin = max((credit["end"] for credit in self.credits if credit["end"] < end), default=self.at)
        gone = math.ceil(begin + (self._available_at(begin) - floor) / self.per_ns) if self.lines else end
        return min(max(gone, self.at), end)  # what ends at this very instant is still there

    def _available_at(self, t: int) -> Fraction:
        """By time alone, all ends up to t included, as if it never ran out."""
        spent, lost = self.per_ns * (t - self.at), Fraction(0)
        for end in sorted({credit["end"] for credit in self.credits if credit["end"] <= t}):
            of_these = sum(credit["left"] for credit in self.credits if credit["end"] <= end)
            spent_by_end = self.per_ns * (end - self.at)  # from what ends first, what is lost already left aside
            lost += max(Fraction(0), of_these - spent_by_end - lost)
        return self.available - spent - lost

    def spend(self, amount: Fraction) -> None:
        """Takes from what ends soonest, of one end from the smaller, then from the older; the rest never ends."""
        while amount > 0 and self.credits:
            first = min(self.credits, key=_spent_first)
            from_credit = min(amount, first["left"])
            first["left"] -= from_credit
            amount -= from_credit
            self.credits = [credit for credit in self.credits if credit["left"] > 0]

    def end_credit(self, t: int) -> dict[str, Any]:
        """What is left of one that ends now is gone."""
        credit_ended = min((credit for credit in self.credits if credit["end"] == t), key=_spent_first)
        self.credits.remove(credit_ended)
        self.balance -= credit_ended["left"]
        return credit_ended

    def _credit_end(self) -> int | None:
        """The first end at which something is left."""
        spends = self.lines and (self.goes_below or not self.exhausted)
        for end in sorted({credit["end"] for credit in self.credits}):
            up_to_it = sum(credit["left"] for credit in self.credits if credit["end"] <= end)
            if up_to_it > (self.per_ns * (end - self.at) if spends else 0):
                return int(end)
        return None

    def is_above(self, threshold: tuple[str, int]) -> bool:
        kind, value = threshold
        available = self.available
        if kind == "amount":
            return available > value
        if available <= 0:
            return False
        runs_out = self.runs_out
        return runs_out is None or runs_out - self.at > value

    def crosses(self, threshold: tuple[str, int]) -> int | None:
        """When time alone takes it to or below the threshold."""
        if not self.is_above(threshold):
            return None
        kind, value = threshold
        if kind == "amount":
            return self.falls_to(value)
        return None if self.runs_out is None else self.runs_out - value

    def forget_lines(self) -> None:
        for resource, since in list(self.zero_since.items()):
            if since + WEEK <= self.at:
                del self.zero_since[resource]
                self.seqs.pop(resource, None)

    def coming(self) -> tuple[int, int] | None:
        """(instant, rank) of what time causes next: 0 expiries of holds, 1 the end of a credit, 2 running out, 3 the
        end of a grace, 4 the end of a lease, 5 a threshold.
        """
        dues = [(expires, 0) for _, expires in self.holds.values() if expires is not None]
        runs_out, credit_end = self.runs_out, self._credit_end()
        if credit_end is not None:
            dues.append((credit_end, 1))
        if runs_out is not None:
            dues.append((runs_out, 2))
        if self.call_at is not None:
            dues.append((self.call_at, 3))
        crossings = (self.crosses(threshold) for threshold in self.thresholds)
        dues += [(end, 4) for end in self.ends.values()]
        dues += [(crossing, 5) for crossing in crossings if crossing is not None]
        return min(dues, default=None)

    def pending(self) -> list[dict[str, Any]]:
        return [cutoff for cutoff in self.cutoffs if cutoff["status"] == "pending"]

    def in_grace(self) -> list[dict[str, Any]]:
        return self.cutoffs[-1:] if self.call_at is not None else []

    @property
    def call_at(self) -> int | None:
        """The end of the grace that is running."""
        if not self.cutoffs or self.cutoffs[-1]["status"] != "in_grace":
            return None
        end: int = self.cutoffs[-1]["call_at"]
        return end

    def owed(self) -> tuple[str, int, int] | None:
        if self.exhausted:
            pending = self.pending()
            return ("cutoff", pending[0]["seq"], pending[0]["at"]) if pending else None
        if self.maybe_off <= self.back_on:
            return None
        (made_good,) = (cutoff for cutoff in self.cutoffs if cutoff["seq"] == self.maybe_off)
        return ("restore", self.maybe_off, made_good["at"])

    # Each of these checks, then changes; a true return value means that a line rose from zero.

    def top_up(self, op: Op) -> None:
        end = op.get("expires_at_ns")
        if end is not None and end <= self.at:
            raise Refusal("INVALID_PARAMS", expires_at_ns=end)
        if end is not None and len(self.credits) == 100:
            raise Refusal("LIMIT_EXCEEDED", limit="credits")
        self._check(self.balance + op["amount"])
        debt = max(Fraction(0), -self.balance)
        self.balance += op["amount"]
        if end is not None and op["amount"] > debt:
            remaining = op["amount"] - debt
            of_top_up = {"entry": self.entry_id + 1, "amount": op["amount"], "kind": op.get("kind", "")}
            self.credits.append({"end": end, "left": remaining, **of_top_up})

    def adjust(self, op: Op) -> None:
        self._check(self.balance + op["amount"])
        self.balance += op["amount"]
        self.spend(Fraction(-op["amount"]))

    def debit(self, op: Op) -> None:
        mode, amount = op.get("mode", "strict"), Fraction(op["amount"])
        if mode == "strict" and amount > self.available:
            raise Refusal("INSUFFICIENT_FUNDS", shortfall_nanos=math.ceil(amount - self.available))
        if mode == "partial":
            amount = max(Fraction(0), min(amount, self.available))
        self._check(self.balance - amount)
        self.balance -= amount
        self.spend(Fraction(amount))

    def set_credit_limit(self, op: Op) -> None:
        held = sum(amount for amount, _ in self.holds.values())
        if self.balance + op["amount"] - held < -BOUND:
            raise Refusal("LIMIT_EXCEEDED")
        self.limit = op["amount"]

    def hold(self, op: Op) -> None:
        amount = op["amount"]
        if amount > self.available:
            raise Refusal("INSUFFICIENT_FUNDS", shortfall_nanos=math.ceil(amount - self.available))
        if sum(held for held, _ in self.holds.values()) + amount > BOUND:
            raise Refusal("LIMIT_EXCEEDED")
        name = "r:" + op["request_id"] if "request_id" in op else f"e:{self.entry_id + 1}"
        if name in self.holds:
            raise Refusal("REQUEST_ID_CONFLICT")
        expires = self.at + op["ttl_ns"] if "ttl_ns" in op else None
        self.holds[name] = (amount, expires if expires is None or expires <= BOUND else None)

    def capture(self, op: Op) -> None:
        if op["hold_id"] not in self.holds:
            raise Refusal("UNKNOWN_HOLD")
        held = self.holds[op["hold_id"]][0]
        balance = self.balance - min(held, op["amount"])
        if balance < -BOUND or self.available + held - min(held, op["amount"]) < -BOUND:
            raise Refusal("LIMIT_EXCEEDED")
        del self.holds[op["hold_id"]]
        self.spend(self.balance - balance)
        self.balance = balance

    def release(self, op: Op) -> None:
        if op["hold_id"] not in self.holds:
            raise Refusal("UNKNOWN_HOLD")
        del self.holds[op["hold_id"]]

    def set_thresholds(self, op: Op) -> None:
        self.thresholds = sorted(set(op["thresholds"]))

    def set_class(self, op: Op) -> None:
        self.class_name = op["class"]

    def set_rate(self, op: Op) -> bool:
        resource = op.get("resource", "")
        seq = op.get("rate_seq")
        if seq is not None and seq <= self.seqs.get(resource, -1):
            raise Refusal("STALE_RATE", rate_seq=self.seqs[resource])
        return self._set_line(resource, op["rate"], seq, op.get("min_runway_ns"), self._end(op))

    def change_rate(self, op: Op) -> bool:
        resource = op.get("resource", "")
        rate = self.lines.get(resource, 0) + op["delta"]
        if rate < 0:
            raise Refusal("INVALID_RATE", rate_nanos_per_hour=self.lines.get(resource, 0))
        ends = [end for end in (self.ends.get(resource), self._end(op)) if end is not None]
        return self._set_line(resource, rate, None, None, max(ends, default=None))

    def _end(self, op: Op) -> int | None:
        ttl = op.get("ttl_ns", op.get("default_ttl_ns"))
        return None if ttl is None or self.at + ttl > BOUND else self.at + ttl

    def end_lease(self, resource: str) -> int:
        """The line falls to zero by itself; the rate it had."""
        rate = self.lines[resource]
        self._set_line(resource, 0, None, None, None)
        return rate

    def _set_line(self, resource: str, rate: int, seq: int | None, min_runway: int | None, end: int | None) -> bool:
        old = self.lines.get(resource, 0)
        total = self.rate - old + rate
        if total > BOUND:
            raise Refusal("LIMIT_EXCEEDED")
        if min_runway is not None and total > 0:
            runway = self.runway_at(total)
            if runway == 0 or runway < min_runway:
                raise Refusal("INSUFFICIENT_RUNWAY", runway_ns=runway)
        self.lines.pop(resource, None)
        self.ends.pop(resource, None)
        self.zero_since.pop(resource, None)
        if seq is not None:
            self.seqs[resource] = seq
        if rate > 0:
            self.lines[resource] = rate
            if end is not None:
                self.ends[resource] = end
        elif resource in self.seqs:
            self.zero_since[resource] = self.at
        return old == 0 and rate > 0

    def runway_at(self, rate: int) -> int:
        """How long the money would last at this rate; 0 where there is none."""
        lines, self.lines = self.lines, {"": rate}
        falls = self.runs_out
        self.lines = lines
        return 0 if falls is None else falls - self.at

    def close_account(self, op: Op) -> None:
        """Changes nothing here: the model puts the account away."""

    def check_closable(self, restores: bool) -> None:
        """A restore that is owed is an obstacle where there is a URL for it."""
        call = self.owed()
        obstacles = {
            "rate": self.rate > 0,
            "debt": self.balance < 0,
            "hold": bool(self.holds),
            "cutoff": (call is not None and (call[0] == "cutoff" or restores)) or self.call_at is not None,
        }
        for obstacle, stands in obstacles.items():
            if stands:
                raise Refusal("ACCOUNT_NOT_CLOSABLE", obstacle=obstacle)

    def _check(self, balance: Fraction) -> None:
        if abs(balance) > BOUND or self.available - self.balance + balance < -BOUND:
            raise Refusal("LIMIT_EXCEEDED")

    def _restored(self, seq: int, t: int) -> None:
        for cutoff in self.cutoffs:
            if cutoff["seq"] == seq:
                cutoff["restored_at"] = t

    # -- delivery -----------------------------------------------------------------------------------------------------

    def deliver(self, op: Op, t: int) -> bool:
        """What a report of delivery changes; whether the cutoff is owed anew."""
        method, seq = op["method"], op["seq"]
        if method.startswith("restore_"):
            if not self.back_on < seq <= self.maybe_off:
                raise Refusal("UNKNOWN_CUTOFF")
            if method == "restore_started":
                if self.exhausted:
                    raise Refusal("UNKNOWN_CUTOFF")
                self.restore_attempts += 1
            elif method == "restore_delivered":
                self.back_on, self.restore_attempts = seq, 0
                self._restored(seq, t)
            return False
        latest = self.cutoffs[-1] if self.cutoffs else None
        cutoff = next((each for each in self.cutoffs if each["seq"] == seq), None)
        if cutoff is None or (cutoff is not latest and cutoff["status"] != "pending"):
            raise Refusal("UNKNOWN_CUTOFF")
        status = cutoff["status"]
        unbegun = op.get("unbegun", False)
        if method in ("cutoff_delivered", "cutoff_failed") and seq > self.maybe_off and not unbegun:
            raise Refusal("UNKNOWN_CUTOFF")
        if unbegun:
            if status != "pending":
                raise Refusal("UNKNOWN_CUTOFF")
            cutoff["attempts"] += 1
        if method == "cutoff_delivered":
            if status not in ("pending", "superseded"):
                raise Refusal("UNKNOWN_CUTOFF")
            cutoff["status"] = "effective" if self.exhausted and self.rate == 0 else "delivered"
            cutoff["last_error"] = None
            cutoff["delivered_at"] = t
        elif method == "cutoff_failed":
            cutoff["last_error"] = op["error"]
        elif method == "cutoff_retry":
            again = status == "delivered" and self.rate > 0
            if op["operator"]:
                again = status in ("delivered", "effective")
            if not self.exhausted or cutoff is not latest or not again:
                raise Refusal("UNKNOWN_CUTOFF")
            cutoff["status"] = "pending"
            cutoff["delivered_at"] = None
            return True
        elif status != "pending":
            raise Refusal("UNKNOWN_CUTOFF")
        elif method == "cutoff_started":
            cutoff["attempts"] += 1
            self.maybe_off = max(self.maybe_off, seq)
        else:
            return True
        return False
