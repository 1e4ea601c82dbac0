"""Random programs: every command at random instants, on ledger and model, compared to the last internal unit.

A program is a seed. Its instants seek the edges: E - 1 ns, E and E + 1 ns, the same around expiries and thresholds,
the same instant again, and now and then one that lies before the last. After each command the answers, the entries it
made (every field), the notices and from time to time the whole account must be equal. Sometimes time passes by the
wheel's calls instead of by commands, and sometimes the bucket is dumped and loaded in the middle. At the end all
entries are replayed into an empty ledger, which must come to the same block.

By hand, with another number of commands (all cores if started several times with different seeds):

    python -m tests.ledger.programs --commands 10000000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import time
from typing import Any

from billing.ledger import commands as ops
from billing.ledger.classes import CutoffClass
from billing.ledger.entry import (
    CROSSED,
    EXHAUSTED,
    REFUSED,
    RESTORED,
    RULE_ACCRUE,
    RULE_RESTORE,
    Entry,
    event_id,
    unpack,
)
from billing.ledger.errors import NAME_OF_CODE, Refused
from billing.ledger.ledger import Ledger, Rules
from billing.ledger.money import NANO
from tests.ledger.drawing import START, USERS, Drawing
from tests.ledger.driver import carried_out
from tests.ledger.model import Model
from tests.ledger.model_account import HOUR, Op, Refusal

BUCKET = 7
FLOORS = (0, 0, 7, 10**9)  # of the numbers of cutoffs; above 0 where the data were put back to an earlier state
OPS = {name: op for op, name in ops.NAMES.items()}


class Difference(AssertionError):
    """Ledger and model disagree; says the seed, the step and both sides."""


def command_of(op: Op) -> ops.Command:
    """The command that a door would make of it."""
    method, user = op["method"], op["user"].encode()
    a, b, c, key, packed = op.get("amount", 0), 0, 0, b"", b""
    text = str(op.get("reason", op.get("error", "")))
    message = text.encode()
    if method == "set_rate":
        a, b, c = op["rate"], op.get("rate_seq", -1), op.get("min_runway_ns", -1)
        key = op.get("resource", "").encode()
        spans = {ops.TTL_NS: op.get("ttl_ns"), ops.DEFAULT_TTL_NS: op.get("default_ttl_ns")}
        packed = ops.pack_options({tag: struct.pack("<q", span) for tag, span in spans.items() if span is not None})
    elif method == "top_up":
        packed = ops.top_up_options(op.get("expires_at_ns", -1), op.get("kind", "").encode())
    elif method == "change_rate":
        a, key = op["delta"], op.get("resource", "").encode()
        if "default_ttl_ns" in op:
            packed = ops.number_option(ops.DEFAULT_TTL_NS, op["default_ttl_ns"])
    elif method == "debit":
        b = ops.MODES[op.get("mode", "strict")]
    elif method == "hold":
        b = op.get("ttl_ns", 0)
    elif method in ("capture", "release"):
        key = op["hold_id"].encode()
    elif method == "set_class":
        key = op["class"].encode()
    elif method == "set_thresholds":
        kinds = {"amount": ops.BY_AMOUNT, "runway_ns": ops.BY_RUNWAY}
        thresholds = [(kinds[kind], value) for kind, value in op["thresholds"]]
        a, key = len(set(thresholds)), ops.pack_thresholds(thresholds)
    elif "seq" in op:
        a, b = op["seq"], int(op.get("operator", False) or op.get("unbegun", False))
    return (OPS[method], user, a, b, c, key, op.get("request_id", "").encode(), message, packed, b"")


class Program:
    """One seeded program on one bucket, whole (`run`) or step by step. Each step raises `Difference`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        ids_max = self.random.choice((1, 5, 50))
        lease_ns = self.random.choice((0, 0, 0, ops.LEASE_NS_MIN, HOUR))
        floor = FLOORS[seed % len(FLOORS)]
        self.rules = Rules(self.random.random() < 0.3, ids_max, self.random.random() < 0.5, lease_ns, seq_floor=floor)
        self.model = Model(
            accrue=self.rules.accrue, restore=self.rules.restore, ids_max=ids_max, lease=lease_ns, floor=floor
        )
        self.filings: list[tuple[int, int]] = []
        self.ledger = Ledger(self.rules, self._file)
        self.ledger.create(BUCKET)
        self.ledger.wake(BUCKET)
        self.journal: list[bytes] = []
        self.drawing = Drawing(self.random, self.model, START if self.random.random() < 0.9 else 0)
        self.step = self.t = 0
        if self.random.random() < 0.7:
            self._configure_classes()

    def run(self, count: int) -> None:
        """Carries out `count` commands and compares after each; then replays."""
        for _ in range(count):
            self.go_on()
            chance = self.random.random()
            if chance < 0.10:
                self.pass_time()
            elif chance < 0.16:
                self.look(self.random.choice(USERS))
            elif chance < 0.17:
                self.dump_and_load()
            elif chance < 0.18 and self.rules.classes:
                self._configure_classes()
            self.command(self.drawing.next_op())
        self.end()

    def go_on(self) -> None:
        """To the instant of the next step."""
        self.step += 1
        self.t = self.drawing.t = self.drawing.next_instant()

    def end(self) -> None:
        """Looks at everything, and replays."""
        for user in USERS:
            self.look(user)
        self._replay()

    # -- both sides ---------------------------------------------------------------------------------------------------

    def command(self, op: Op) -> None:
        """One command on both sides: the same answer or refusal, the same entries and notices."""
        command = command_of(op)
        actual: Any
        wanted: Any
        try:
            wanted = self.model.apply(self.t, op)
        except Refusal as refusal:
            wanted = refusal
        try:
            actual = carried_out(self.ledger, BUCKET, command, self.t)
        except Refused as refused:
            actual = refused
        if "request_id" in op:
            self.drawing.done = [*self.drawing.done[-20:], op]
        if isinstance(wanted, Refusal) != isinstance(actual, Refused):
            raise self._difference(op, wanted, actual)
        if isinstance(wanted, Refusal):
            facts = actual.as_map()
            if actual.name != wanted.name or any(facts.get(name) != value for name, value in wanted.facts.items()):
                raise self._difference(op, wanted, facts)
            if facts["applied"] != "no" or ("replayed" in facts) != ("replayed" in wanted.facts):
                raise self._difference(op, wanted, facts)
        elif not op["method"].startswith(("cutoff_", "restore_")):
            self._equal(op, self._as_shown(wanted), actual)
        self._drain(op)

    def _as_shown(self, wanted: dict[str, Any]) -> dict[str, Any]:
        expected = dict(wanted, bucket_id=BUCKET)
        if expected.get("cutoff"):
            cutoff = expected["cutoff"]
            exhausted_at_ns = cutoff["at"]
            expected["cutoff"] = {
                "event_id": event_id(expected["user_id"].encode(), cutoff["seq"], exhausted_at_ns),
                "exhausted_at_ns": exhausted_at_ns,
                **{name: cutoff[name] for name in ("seq", "status", "attempts", "last_error")},
            }
            if "restored" not in expected:
                expected["cutoff"]["delivered_at_ns"] = cutoff["delivered_at"]
                expected["cutoff"]["restored_at_ns"] = cutoff["restored_at"]
        if "holds" in expected:
            expected["holds"] = list(expected["holds"].values())
        return expected

    def look(self, user: str) -> None:
        """get_account on both sides."""
        op = {"method": "get_account", "user": user}
        try:
            wanted = self._as_shown(self.model.view(user, self.t))
        except Refusal:
            if user.encode() in self.ledger.books[BUCKET].slots:
                raise self._difference(op, "unknown", "known") from None
            return
        actual = self.ledger.view(BUCKET, user.encode(), self.t)
        self._equal(op, wanted, actual)
        call = self.ledger.owed(BUCKET, user.encode())
        said_owed = None if call is None else (call.kind, call.seq, call.exhausted_at_ns)
        self._equal(op, self.model.accounts[user].owed(), said_owed)
        if call is not None:
            name = event_id(user.encode(), call.seq, call.exhausted_at_ns) + ":restore" * (call.kind == "restore")
            self._equal(op, name, call.event_id)
        self._drain(op)

    def _drain(self, op: Op) -> None:
        packed_entries = [packed for _, packed in self.ledger.records]
        self.ledger.records.clear()
        self.journal += packed_entries
        wanted, self.model.entries = self.model.entries, []
        self._equal(op, len(wanted), len(packed_entries))
        for model_entry, packed in zip(wanted, packed_entries, strict=True):
            self._compare_entry(model_entry, Entry._make(unpack(packed)))
        notices = [(kind, user.decode(), number) for kind, _, _, user, number in self.ledger.notices]
        self.ledger.notices.clear()
        told_by_model, self.model.notices = self.model.notices, []
        self._equal(op, told_by_model, notices)

    def _compare_entry(self, wanted: dict[str, Any], e: Entry) -> None:
        """Every field, exactly. The command of an entry from outside is the command itself."""
        op = wanted["op"]
        pairs: dict[str, tuple[Any, Any]] = {
            "at": (wanted["at"], e.at_ns),
            "entry_id": (wanted["entry_id"], e.entry_id),
            "amount": (wanted["amount"] * NANO, e.amount),
            "accrued": (wanted["accrued"] * NANO, e.accrued),
            "balance": (wanted["balance"] * NANO, e.balance),
            "overrun": (wanted["overrun"] * NANO, e.overrun),
            "rate": (wanted["rate"], e.rate),
            "limit": (wanted["limit"], e.credit_limit_nanos),
            "held": (wanted["held"], e.holds_nanos),
            "runs_out": (-1 if wanted["runs_out"] is None else wanted["runs_out"], e.exhausts_at_ns),
            "seq": (wanted["seq"], e.exhaustion_seq),
            "exhausted": (wanted["exhausted"], bool(e.flags & EXHAUSTED)),
            "crossed": (wanted["crossed"], bool(e.flags & CROSSED)),
            "restored": (wanted["restored"], bool(e.flags & RESTORED)),
            "rules": (wanted["rules"], (bool(e.flags & RULE_ACCRUE), bool(e.flags & RULE_RESTORE))),
            "refused": (wanted["refused"], NAME_OF_CODE[e.refusal] if e.flags & REFUSED else None),
        }
        user = op["user"].encode()
        if "threshold" in op:
            kind, value = op["threshold"]
            command = (OPS["threshold"], user, int(kind == "runway_ns"), value, 0, b"", b"", b"", b"", b"")
        elif op["method"] == "hold_expired":
            command = (OPS["hold_expired"], user, op["amount"], 0, 0, op["hold_id"].encode(), b"", b"", b"", b"")
        elif op["method"] == "credit_expired":
            credit = op["credit"]
            key = credit["kind"].encode()
            command = (OPS["credit_expired"], user, credit["amount"], credit["entry"], 0, key, b"", b"", b"", b"")
        elif op["method"] == "lease_expired":
            key = op["resource"].encode()
            command = (OPS["lease_expired"], user, op["rate"], 0, 0, key, b"", b"", b"", b"")
        elif op["method"] == "grace_ended":
            command = (OPS["grace_ended"], user, op["seq"], op["exhausted_at"], 0, b"", b"", b"", b"", b"")
        elif op["method"] == "exhaust":
            command = (OPS["exhaust"], user, 0, 0, 0, b"", b"", b"", b"", b"")
        else:
            command = command_of(op)
        pairs["command"] = (command, e.command)
        if wanted["refused"] is None and not wanted["restored"]:
            forfeited = wanted.get("forfeited", 0) * NANO
            note = struct.pack("<qq", *divmod(int(forfeited), NANO)) if forfeited else b""
            if wanted.get("call_at") is not None:
                note = struct.pack("<q", wanted["call_at"])
            pairs["note"] = (note, e.note)
        for name, (model_value, value) in pairs.items():
            if model_value != value:
                raise self._difference({**op, "field": name}, model_value, value)

    # -- the wheel's calls, moves, recovery ---------------------------------------------------------------------------

    def _file(self, ref: int, due_ns: int) -> int:
        filed_ns = max(0, due_ns - self.random.choice((0, 1, 1000)))
        self.filings.append((filed_ns, ref))
        return filed_ns

    def pass_time(self) -> None:
        """Time passes by itself: everything that is due fires, nothing else does."""
        op = {"method": "advance", "user": ""}
        for user in sorted(self.model.accounts):
            self.model.pass_time(self.model.accounts[user], self.t)
        wanted = sorted(self.model.entries, key=lambda entry: (entry["op"]["user"], entry["entry_id"]))
        notices = sorted(self.model.notices)
        while due := [filing for filing in self.filings if filing[0] <= self.t]:
            self.filings = [filing for filing in self.filings if filing[0] > self.t]
            for filed_ns, ref in due:
                (due_ns,) = self.ledger.next_due_ns([(ref, filed_ns)])
                if 0 <= due_ns <= self.t:
                    self.ledger.tick([ref], self.t)
                elif due_ns > self.t:
                    self.filings.append((due_ns, ref))
                    self.ledger.moved([(ref, due_ns)])
        self.ledger.records.sort(key=lambda record: _order(record[1]))
        self.ledger.notices.sort(key=lambda notice: (notice[0], notice[3], notice[4]))
        self.model.entries, self.model.notices = wanted, notices
        self._drain(op)

    def _configure_classes(self) -> None:
        """The configuration has other classes from now on; a bucket goes to a ledger that knows them."""
        self.model.classes = self.drawing.classes()
        classes = {name.encode(): CutoffClass(*policy) for name, policy in self.model.classes.items()}
        self.rules = self.rules._replace(classes=classes)
        self.dump_and_load()

    def dump_and_load(self) -> None:
        """The bucket goes to another ledger, as in a move, or because the data were put back to an earlier state."""
        if self.model.floor:
            self.model.floor += 3
            self.rules = self.rules._replace(seq_floor=self.model.floor)
        dumped = self.ledger.dump(BUCKET)
        self.ledger.still(BUCKET)
        self.filings = []
        loaded = Ledger(self.rules, self._file)
        loaded.load(BUCKET, dumped)
        self._equal({"method": "dump", "user": ""}, dumped, loaded.dump(BUCKET))
        loaded.wake(BUCKET)
        self.ledger = loaded

    def _replay(self) -> None:
        """Recovery: the same entries make the same bucket."""
        other_rules = Rules(not self.rules.accrue, self.rules.request_ids_per_bucket, not self.rules.restore, 7)
        again = Ledger(other_rules, self._file)
        again.create(BUCKET)
        for packed in self.journal:
            again.replay(BUCKET, packed)
        again.replayed()
        self._equal({"method": "replay", "user": ""}, self.ledger.dump(BUCKET), again.dump(BUCKET))

    def _equal(self, op: Op, wanted: Any, actual: Any) -> None:
        if wanted != actual:
            raise self._difference(op, wanted, actual)

    def _difference(self, op: Op, wanted: Any, actual: Any) -> Difference:
        return Difference(f"seed {self.seed} step {self.step} at {self.t}: {op}\nmodel  {wanted}\nledger {actual}")


def _order(packed: bytes) -> tuple[str, int]:
    e = Entry._make(unpack(packed))
    return e.user_id.decode(), e.entry_id


def run(commands: int, seed: int, each: int = 400) -> int:
    """Programs of `each` commands with the seeds `seed`, `seed + 1`, ... until `commands` are done; how many that
    were.
    """
    commands_run = 0
    while commands_run < commands:
        Program(seed).run(each)
        seed += 1
        commands_run += each
    return commands_run


def main() -> None:
    """A campaign: says how far it is once in ten seconds, and at the end what was done, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    begun = shown = time.monotonic()
    commands_run, seed = 0, arguments.seed
    while commands_run < arguments.commands:
        commands_run += run(400, seed)
        seed += 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(
                f"{commands_run} commands, seeds {arguments.seed}..{seed - 1}, {commands_run / (shown - begun):.0f}/s",
                file=sys.stderr,
            )
    print(json.dumps({"commands": commands_run, "programs": seed - arguments.seed, "differences": 0}))


if __name__ == "__main__":
    main()
