"""A model of the ledger, written from the contract with `fractions.Fraction` and nothing of `billing`.

It is slow and plain on purpose: money is a Fraction of nanos, everything derived is computed anew each time it is
asked for, there are no rows, no cached sums, no fast path. An operation is a dict as a client would think of it, e.g.

    {"method": "debit", "user": "a", "amount": 5, "mode": "partial", "request_id": "r1"}

`apply(t, op)` returns a reply dict, or raises `Refusal`. What happened is left in `entries` (one dict per change,
exact) and `notices`, which the caller takes.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

from tests.ledger.model_account import BOUND, WEEK, Account, Op, Refusal


class Policy(NamedTuple):
    """What a class of cutoffs is."""

    grace: int
    accrue: bool
    restore: bool


class Model:
    """All accounts of one bucket."""

    def __init__(
        self,
        *,
        accrue: bool,
        restore: bool,
        ids_max: int,
        lease: int = 0,
        classes: dict[str, Policy] | None = None,
        floor: int = 0,
    ) -> None:
        self.default = Policy(0, accrue, restore)
        self.classes = classes or {}
        self.ids_max = ids_max
        self.floor = floor  # of the numbers of cutoffs
        self.lease = lease  # of a rate that is reported without one
        self.accounts: dict[str, Account] = {}
        self.closed: dict[str, Account] = {}
        self.ids: list[dict[str, Any]] = []  # oldest first
        self.entries: list[dict[str, Any]] = []
        self.notices: list[tuple[str, str, int]] = []

    # -- commands -----------------------------------------------------------------------------------------------------

    def apply(self, t: int, op: Op) -> dict[str, Any]:
        request_id = op.get("request_id")
        if request_id is not None:
            for stored in self.ids:
                if stored["id"] == (op["user"], request_id) and stored["at"] + WEEK > t:
                    return self._again(stored, op)
        if op["method"] == "set_class" and op["class"] and op["class"] not in self.classes:
            raise Refusal("INVALID_PARAMS", **{"class": op["class"]})
        reports = op["method"] == "change_rate" or (op["method"] == "set_rate" and op["rate"] > 0)
        if self.lease and reports and "ttl_ns" not in op:
            op = {**op, "default_ttl_ns": self.lease}
        account = self.accounts.get(op["user"])
        if account is None:
            if op["method"] != "top_up":
                raise Refusal("UNKNOWN_ACCOUNT")
            return self._open(t, op)
        t = max(t, account.at)
        self.pass_time(account, t)
        if op["method"].startswith(("cutoff_", "restore_")):
            if account.deliver(op, t):
                self.notices.append(("cutoff", account.user, op["seq"]))
            self._write(account, op, t, 0, Fraction(0), Fraction(0))
            return {}
        unsettled = (account.at, account.balance, account.overrun, dict(account.seqs), dict(account.zero_since))
        credits = [dict(credit) for credit in account.credits]
        accrued = self._accrue(account, t)
        account.forget_lines()
        above = [threshold for threshold in account.thresholds if account.is_above(threshold)]
        before = account.balance
        try:
            if op["method"] == "close_account":
                account.check_closable(self.policy(account).restore)
            raised = getattr(account, op["method"])(op)
        except Refusal as refusal:
            if request_id is not None or op["method"] == "debit":
                self._write(account, op, t, 0, Fraction(0), Fraction(0), refused=refusal.name)
            if request_id is not None:
                self._keep(op, t, None, refusal)
            account.at, account.balance, account.overrun, account.seqs, account.zero_since = unsettled
            account.credits = credits
            raise
        if op["method"] == "close_account":
            return self._close(account, op, t, accrued)
        entry = self._settle_state(account, op, t, before, accrued, above, bool(raised))
        reply = self._reply(account, op, entry)
        if request_id is not None:
            self._keep(op, t, reply, None)
        return reply

    def _again(self, stored: dict[str, Any], op: Op) -> dict[str, Any]:
        op_stored = {name: value for name, value in stored["op"].items() if name != "default_ttl_ns"}
        if _without_defaults(op_stored) != _without_defaults(op):
            raise Refusal("REQUEST_ID_CONFLICT")
        if stored["refusal"] is not None:
            raise Refusal(stored["refusal"].name, **stored["refusal"].facts, replayed=True)
        return {**stored["reply"], "replayed": True}

    def _keep(self, op: Op, t: int, reply: dict[str, Any] | None, refusal: Refusal | None) -> None:
        while self.ids and self.ids[0]["at"] + WEEK <= t:
            self.ids.pop(0)
        key = (op["user"], op["request_id"])
        self.ids = [stored for stored in self.ids if stored["id"] != key]
        self.ids.append({"id": key, "at": t, "op": op, "reply": reply, "refusal": refusal})
        del self.ids[: -self.ids_max]

    def _open(self, t: int, op: Op) -> dict[str, Any]:
        earlier = self.closed.get(op["user"])
        if "expires_at_ns" in op and op["expires_at_ns"] <= (t if earlier is None else max(t, earlier.at)):
            raise Refusal("INVALID_PARAMS", expires_at_ns=op["expires_at_ns"])
        account = Account(op["user"], t)
        self.closed.pop(op["user"], None)
        if earlier is not None:
            account.at = t = max(t, earlier.at)
            account.entry_id, account.seq = earlier.entry_id, earlier.seq
            account.seqs, account.zero_since = earlier.seqs, earlier.zero_since
            account.forget_lines()
            if earlier.maybe_off > earlier.back_on:  # as if it had not been closed between
                account.exhausted, account.cutoffs = True, earlier.cutoffs
                account.maybe_off, account.back_on = earlier.maybe_off, earlier.back_on
        self.accounts[op["user"]] = account
        account.top_up(op)
        entry = self._settle_state(account, op, t, Fraction(0), Fraction(0), [], False)
        reply = self._reply(account, op, entry)
        if "request_id" in op:
            self._keep(op, t, reply, None)
        return reply

    def _close(self, account: Account, op: Op, t: int, accrued: Fraction) -> dict[str, Any]:
        amount = -account.balance
        forfeited = sum((credit["left"] for credit in account.credits), Fraction(0))
        account.balance, account.limit, account.exhausted, account.credits = Fraction(0), 0, True, []
        account.entry_id += 1
        entry = self._write(account, op, t, account.entry_id, amount, accrued)
        entry["forfeited"] = forfeited
        reply = self._reply(account, op, entry)
        del self.accounts[account.user]
        self.closed[account.user] = account
        if "request_id" in op:
            self._keep(op, t, reply, None)
        return reply

    # -- time ---------------------------------------------------------------------------------------------------------

    def pass_time(self, account: Account, t: int) -> None:
        """What time causes up to t, each thing at its instant."""
        while (coming := account.coming()) is not None and coming[0] <= t:
            at, rank = coming
            above = [threshold for threshold in account.thresholds if account.is_above(threshold)]
            if rank == 0:
                self._expire(account, at, above)
                continue
            if rank == 1:
                self._end_credit(account, at, above)
                continue
            if rank == 3:
                self._end_grace(account, at, above)
                continue
            if rank == 4:
                self._end_lease(account, at, above)
                continue
            op: Op = {"method": "exhaust" if rank == 2 else "threshold", "user": account.user}
            accrued = self._accrue(account, at)
            if rank == 5:
                op["threshold"] = next(threshold for threshold in above if not account.is_above(threshold))
            self._settle_state(account, op, at, account.balance, accrued, above, False)

    def _expire(self, account: Account, at: int, above: list[tuple[str, int]]) -> None:
        """All holds of one instant are free before anything can run out in it; an entry for each of them."""
        together = sorted(name for name, (_, expires) in account.holds.items() if expires == at)
        amounts = [account.holds.pop(name)[0] for name in together]
        accrued = self._accrue(account, at)
        for name, amount in zip(together, amounts, strict=True):
            op = {"method": "hold_expired", "user": account.user, "hold_id": name, "amount": amount}
            self._settle_state(account, op, at, account.balance, accrued, above if name == together[-1] else [], False)
            accrued = Fraction(0)

    def _end_credit(self, account: Account, at: int, above: list[tuple[str, int]]) -> None:
        accrued = self._accrue(account, at)
        before = account.balance
        credit = account.end_credit(at)
        op = {"method": "credit_expired", "user": account.user, "credit": credit}
        self._settle_state(account, op, at, before, accrued, above, False)

    def _end_grace(self, account: Account, at: int, above: list[tuple[str, int]]) -> None:
        """The time that the class gave is over: from now on the cutoff is called."""
        accrued = self._accrue(account, at)
        called = account.cutoffs[-1]
        called["status"] = "pending"
        op = {"method": "grace_ended", "user": account.user, "seq": called["seq"], "exhausted_at": called["at"]}
        self._settle_state(account, op, at, account.balance, accrued, above, False)
        self.notices.append(("cutoff", account.user, called["seq"]))

    def policy(self, account: Account) -> Policy:
        """Of its class, or the default's where there is none of that name."""
        return self.classes.get(account.class_name, self.default)

    def call_at(self, account: Account) -> int | None:
        """The instant of the coming call, if nothing but time happens."""
        if account.exhausted:
            return account.call_at
        runs_out = account.runs_out
        if runs_out is None or runs_out > BOUND:
            return None
        return min(runs_out + self.policy(account).grace, BOUND)

    def _end_lease(self, account: Account, at: int, above: list[tuple[str, int]]) -> None:
        """Of the lines that end at one instant the first by its name."""
        accrued = self._accrue(account, at)
        resource = sorted(resource for resource, end in account.ends.items() if end == at)[0]
        op: Op = {"method": "lease_expired", "user": account.user, "resource": resource}
        op["rate"] = account.end_lease(resource)
        self._settle_state(account, op, at, account.balance, accrued, above, False)

    def _accrue(self, account: Account, t: int) -> Fraction:
        if t == account.at or not account.lines:
            account.at = t
            return Fraction(0)
        spent = account.per_ns * (t - account.at)
        account.at = t
        covered = Fraction(0) if account.exhausted else min(spent, account.available)
        account.overrun = min(account.overrun + spent - covered, Fraction(BOUND))
        below = account.goes_below if account.exhausted else self.policy(account).accrue
        charged = covered
        if below and spent > covered:
            charged = min(spent, account.balance + BOUND, account.available + BOUND)
        account.balance -= charged
        account.spend(charged)
        return charged

    def _settle_state(
        self,
        account: Account,
        op: Op,
        t: int,
        before: Fraction,
        accrued: Fraction,
        above: list[tuple[str, int]],
        raised: bool,
    ) -> dict[str, Any]:
        empty = account.available <= 0
        crossed = empty and (raised or not account.exhausted)
        restored = account.exhausted and not empty
        call_at = None
        if crossed and account.call_at is not None:
            crossed = False  # one call will be made for all lines
        if crossed:
            grace = 0
            if not account.exhausted:
                account.goes_below = self.policy(account).accrue
                grace = self.policy(account).grace
            account.seq = max(account.seq + 1, self.floor)
            cutoff: dict[str, Any] = {"seq": account.seq, "at": t, "status": "pending"}
            cutoff |= {"attempts": 0, "last_error": None, "delivered_at": None, "restored_at": None}
            account.cutoffs.append(cutoff)
            if grace and t < BOUND:
                cutoff["status"], cutoff["call_at"] = "in_grace", min(t + grace, BOUND)
                call_at = cutoff["call_at"]
            else:
                self.notices.append(("cutoff", account.user, account.seq))
            if len(account.pending()) > 64:
                account.pending()[0]["status"] = "folded"
        elif op["method"] == "set_class" and account.call_at is not None:
            call_at = max(t, min(account.cutoffs[-1]["at"] + self.policy(account).grace, BOUND))
            account.cutoffs[-1]["call_at"] = call_at
        if restored:
            for cutoff in account.pending() + account.in_grace():
                cutoff["status"] = "superseded"
                self.notices.append(("superseded", account.user, cutoff["seq"]))
            if not self.policy(account).restore:
                account.back_on = account.maybe_off
            account.restore_attempts = 0
            if account.maybe_off > account.back_on:
                self.notices.append(("restore", account.user, account.seq))
            account.goes_below = False
        account.exhausted = empty
        if empty and account.rate == 0 and account.cutoffs[-1]["status"] == "delivered":
            account.cutoffs[-1]["status"] = "effective"
        account.entry_id += 1
        amount = account.balance - before
        entry = self._write(account, op, t, account.entry_id, amount, accrued, crossed=crossed, restored=restored)
        entry["call_at"] = call_at
        if op["method"] == "set_class" and (owed := account.owed()) is not None:
            self.notices.append((owed[0], account.user, account.seq))
        if op["method"] == "threshold":
            self.notices.append(("threshold", account.user, account.entry_id))
        for threshold in above:
            if not account.is_above(threshold) and op.get("threshold") != threshold:
                account.entry_id += 1
                fired: Op = {"method": "threshold", "user": account.user, "threshold": threshold}
                self._write(account, fired, t, account.entry_id, Fraction(0), Fraction(0))
                self.notices.append(("threshold", account.user, account.entry_id))
        return entry

    # -- what is seen -------------------------------------------------------------------------------------------------

    def _write(
        self,
        account: Account,
        op: Op,
        t: int,
        entry_id: int,
        amount: Fraction,
        accrued: Fraction,
        *,
        crossed: bool = False,
        restored: bool = False,
        refused: str | None = None,
    ) -> dict[str, Any]:
        runs_out = account.runs_out
        entry = {
            "op": op,
            "at": t,
            "entry_id": entry_id,
            "amount": amount,
            "accrued": accrued,
            "balance": account.balance,
            "rate": account.rate,
            "limit": account.limit,
            "held": sum(held for held, _ in account.holds.values()),
            "runs_out": runs_out if runs_out is not None and runs_out <= BOUND else None,
            "seq": account.seq,
            "overrun": account.overrun,
            "exhausted": account.exhausted,
            "crossed": crossed,
            "restored": restored,
            "refused": refused,
            "rules": self.policy(account)[1:],
        }
        self.entries.append(entry)
        return entry

    def _reply(self, account: Account, op: Op, entry: dict[str, Any]) -> dict[str, Any]:
        debited = math.floor(entry["balance"] - entry["amount"]) - math.floor(entry["balance"])
        reply = self._state(entry, account.user)
        if op["method"] == "debit":
            reply |= {"outcome": "exhausted" if entry["exhausted"] else "ok", "debited_nanos": debited}
        if op["method"] == "capture":
            reply["captured_nanos"] = debited
        if op["method"] == "close_account":
            paid_out = math.floor(-entry["amount"] - entry["forfeited"])
            reply |= {"paid_out_nanos": paid_out, "forfeited_nanos": debited - paid_out}
        if op["method"] == "hold":
            reply["hold_id"] = "r:" + op["request_id"] if "request_id" in op else f"e:{entry['entry_id']}"
        if entry["restored"]:
            reply |= {"restored": True, "cutoff": dict(account.cutoffs[-1])}
        return reply

    def _state(self, entry: dict[str, Any], user: str) -> dict[str, Any]:
        balance = math.floor(entry["balance"])
        return {
            "user_id": user,
            "state": "exhausted" if entry["exhausted"] else "active",
            "balance_nanos": balance,
            "credit_limit_nanos": entry["limit"],
            "available_nanos": balance + entry["limit"] - entry["held"],
            "rate_nanos_per_hour": entry["rate"],
            "rate_nanos_per_second": entry["rate"] // 3600,
            "exhausts_at_ns": entry["runs_out"],
            "runway_ns": None if entry["runs_out"] is None else entry["runs_out"] - entry["at"],
            "exhaustion_seq": entry["seq"],
            "entry_id": entry["entry_id"],
            "at_ns": entry["at"],
            "replayed": False,
        }

    def view(self, user: str, t: int) -> dict[str, Any]:
        """get_account. What is due happens first, as entries; then it is only looked at."""
        if user not in self.accounts:
            raise Refusal("UNKNOWN_ACCOUNT")
        account = self.accounts[user]
        t = max(t, account.at)
        self.pass_time(account, t)
        before = (account.at, account.balance, account.overrun)
        credits = [dict(credit) for credit in account.credits]
        self._accrue(account, t)
        call_at = self.call_at(account)
        by_end = sorted(account.credits, key=lambda credit: (credit["end"], credit["left"], credit["entry"]))
        entry = self._write(account, {}, t, account.entry_id, Fraction(0), Fraction(0))
        self.entries.pop()
        account.at, account.balance, account.overrun = before
        account.credits = credits
        return self._state(entry, user) | {
            "rates": dict(account.lines),
            "leases": dict(account.ends),
            "credits": [
                {
                    "kind": credit["kind"],
                    "amount_nanos": credit["amount"],
                    "left_nanos": math.floor(credit["left"]),
                    "expires_at_ns": credit["end"],
                    "entry_id": credit["entry"],
                }
                for credit in by_end
            ],
            "class": account.class_name or "default",
            "cutoff_at_ns": call_at,
            "overrun_nanos": math.floor(entry["overrun"]),
            "holds_nanos": entry["held"],
            "holds": {
                name: {"hold_id": name, "amount_nanos": amount, "expires_at_ns": expires}
                for name, (amount, expires) in account.holds.items()
            },
            "thresholds": [
                {f"{kind}_nanos" if kind == "amount" else kind: value} for kind, value in account.thresholds
            ],
            "cutoff": dict(account.cutoffs[-1]) if account.cutoffs else None,
        }


def _without_defaults(op: Op) -> Op:
    """The same parameters are the same whether a default is said or not, and thresholds in any order."""
    plain = {name: value for name, value in op.items() if (name, value) not in (("resource", ""), ("mode", "strict"))}
    return plain | {"thresholds": sorted(set(op["thresholds"]))} if "thresholds" in op else plain
