"""A ledger with one bucket, spoken to as a client would speak, for tests that read like the contract.

    driver.top_up("u", 100, at=0)["balance_nanos"] == 100

Rates are nanos per hour unless `per_ns` is said: then nanos per nanosecond, so that money and instants are small
numbers. `driver.rows("u")` is the history, `driver.cutoffs("u")` what became owed, `driver.refused(...)` the error of a
call that must be refused.
"""

from __future__ import annotations

from typing import Any

from billing.ledger import commands as ops
from billing.ledger.classes import NO_CLASSES, Classes
from billing.ledger.entry import REFUSED, Entry, answer, history_row, unpack
from billing.ledger.errors import Refused
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import NANO
from billing.ledger.views import pending_rows

BUCKET = 3
HOUR = NANO  # a rate of that many nanos an hour is one nano a nanosecond
DAY_NS = 24 * 3600 * 10**9


def carried_out(ledger: Ledger, bucket_id: int, command: ops.Command, at: int) -> dict[str, Any]:
    """The answer to a command; none to a report of delivery, which goes the way that the machine sends it."""
    if command[0] >= ops.CUTOFF_STARTED:
        ledger.report(bucket_id, at, command)
        return {}
    return answer(ledger.apply(bucket_id, at, command), bucket_id)


class LedgerDriver:
    """See the module."""

    def __init__(
        self,
        *,
        accrue: bool = False,
        restore: bool = False,
        ids: int = 1000,
        classes: Classes = NO_CLASSES,
        seq_floor: int = 0,
    ) -> None:
        self.filed: list[tuple[int, int]] = []
        self.rules = Rules(accrue, ids, restore, classes=classes, seq_floor=seq_floor)
        self.ledger = Ledger(self.rules, self._file)
        self.ledger.create(BUCKET)
        self.ledger.wake(BUCKET)
        self.journal: list[bytes] = []

    def _file(self, ref: int, due_ns: int) -> int:
        self.filed.append((ref, due_ns))
        return due_ns

    def call(self, op: int, user: str, at: int, **fields: Any) -> dict[str, Any]:
        """One command; fields a, b, c, key, request_id, message, options as the table of commands says."""
        text = {name: fields.get(name, "").encode() for name in ("request_id", "message", "actor")}
        key = fields.get("key", b"")
        command = (
            op,
            user.encode(),
            fields.get("a", 0),
            fields.get("b", 0),
            fields.get("c", 0),
            key.encode() if isinstance(key, str) else key,
            text["request_id"],
            text["message"],
            fields.get("options", b""),
            text["actor"],
        )
        return carried_out(self.ledger, BUCKET, command, at)

    def top_up(self, user: str, amount: int, at: int, **more: Any) -> dict[str, Any]:
        return self.call(ops.TOP_UP, user, at, a=amount, **more)

    def debit(self, user: str, amount: int, at: int, mode: str = "strict", **more: Any) -> dict[str, Any]:
        return self.call(ops.DEBIT, user, at, a=amount, b=ops.MODES[mode], **more)

    def set_rate(
        self, user: str, rate: int, at: int, resource: str = "", seq: int = -1, min_runway: int = -1, **more: Any
    ) -> dict[str, Any]:
        return self.call(ops.SET_RATE, user, at, a=rate, b=seq, c=min_runway, key=resource, **more)

    def change_rate(self, user: str, delta: int, at: int, resource: str = "", **more: Any) -> dict[str, Any]:
        return self.call(ops.CHANGE_RATE, user, at, a=delta, key=resource, **more)

    def set_credit_limit(self, user: str, amount: int, at: int, **more: Any) -> dict[str, Any]:
        return self.call(ops.SET_CREDIT_LIMIT, user, at, a=amount, **more)

    def hold(self, user: str, amount: int, at: int, ttl: int = 0, **more: Any) -> dict[str, Any]:
        return self.call(ops.HOLD, user, at, a=amount, b=ttl, **more)

    def capture(self, user: str, hold_id: str, amount: int, at: int, **more: Any) -> dict[str, Any]:
        return self.call(ops.CAPTURE, user, at, a=amount, key=hold_id, **more)

    def release(self, user: str, hold_id: str, at: int, **more: Any) -> dict[str, Any]:
        return self.call(ops.RELEASE, user, at, key=hold_id, **more)

    def adjust(self, user: str, amount: int, reason: str, at: int, **more: Any) -> dict[str, Any]:
        return self.call(ops.ADJUST, user, at, a=amount, message=reason, **more)

    def set_thresholds(self, user: str, thresholds: list[tuple[int, int]], at: int) -> dict[str, Any]:
        return self.call(ops.SET_THRESHOLDS, user, at, a=len(thresholds), key=ops.pack_thresholds(thresholds))

    def set_class(self, user: str, name: str, at: int, **more: Any) -> dict[str, Any]:
        return self.call(ops.SET_CLASS, user, at, key=name, **more)

    def close(self, user: str, at: int, **more: Any) -> dict[str, Any]:
        return self.call(ops.CLOSE, user, at, **more)

    def report(self, op: int, user: str, seq: int, at: int, error: str = "", operator: int = 0) -> None:
        self.call(op, user, at, a=seq, b=operator, message=error)

    def view(self, user: str, at: int) -> dict[str, Any]:
        return self.ledger.view(BUCKET, user.encode(), at)

    def owed(self, user: str) -> tuple[str, int] | None:
        """(kind, seq) of the call that is owed."""
        call = self.ledger.owed(BUCKET, user.encode())
        return None if call is None else (call.kind, call.seq)

    def entries(self, user: str = "") -> list[Entry]:
        """All entries made so far, of one user or of all."""
        self.journal += [packed for _, packed in self.ledger.records]
        self.ledger.records.clear()
        all_entries = [Entry._make(unpack(packed)) for packed in self.journal]
        return [entry for entry in all_entries if not user or entry.user_id == user.encode()]

    def rows(self, user: str) -> list[dict[str, Any]]:
        """The history, oldest first."""
        return [history_row(entry) for entry in self.entries(user) if entry.entry_id and not entry.flags & REFUSED]

    def operations(self, user: str) -> list[tuple[str, int]]:
        """(operation, at_ns) of the history."""
        return [(row["operation"], row["at_ns"]) for row in self.rows(user)]

    def notices(self) -> list[tuple[str, str, int]]:
        """(kind, user, number) since the last time."""
        notices = [(kind, user.decode(), number) for kind, _, _, user, number in self.ledger.notices]
        self.ledger.notices.clear()
        return notices

    def cutoffs(self) -> list[int]:
        """The seqs of the cutoffs that became owed since the last time."""
        return [number for kind, _, number in self.notices() if kind == "cutoff"]

    def pending(self) -> list[dict[str, Any]]:
        """What is owed to the cutoff URL, account by account."""
        book = self.ledger.books[BUCKET]
        return [row for slot, extra in book.extras.items() for row in pending_rows(book.users[slot], extra)]

    def configure(self, classes: Classes) -> None:
        """The configuration has these classes from now on: the bucket goes to a ledger that knows them."""
        self.entries()
        dumped = self.ledger.dump(BUCKET)
        self.rules = self.rules._replace(classes=classes)
        self.ledger = Ledger(self.rules, self._file)
        self.ledger.load(BUCKET, dumped)
        self.ledger.wake(BUCKET)

    def state(self) -> bytes:
        """The whole bucket."""
        return self.ledger.dump(BUCKET)

    def load_again(self) -> None:
        """The bucket leaves the ledger, and comes back as its snapshot has it."""
        dumped = self.state()
        self.ledger.drop(BUCKET)
        self.ledger.load(BUCKET, dumped)
        self.ledger.wake(BUCKET)

    def moved(self, **rules: Any) -> LedgerDriver:
        """The same bucket in another ledger, which has these rules and loads its snapshot."""
        other = LedgerDriver(**rules)
        other.ledger.drop(BUCKET)
        other.ledger.load(BUCKET, self.state())
        return other

    def replayed(self, **rules: Any) -> LedgerDriver:
        """The same bucket in another ledger, which has these rules and replays its entries."""
        other = LedgerDriver(**rules)
        self.entries()
        for packed in self.journal:
            other.ledger.replay(BUCKET, packed)
        other.ledger.replayed()
        return other


def refusal(call: Any, *args: Any, **kwargs: Any) -> Refused:
    """The error of a call that must be refused."""
    try:
        reply = call(*args, **kwargs)
    except Refused as refused:
        return refused
    raise AssertionError(f"not refused: {reply}")
