"""Commands and their answers, in columns: some 70 bytes a command, so that a run may have tens of millions.

One row is one command. Before the command is sent, its row has its due instant, user, operation and value. When the
command is answered, the row gets the state of the account from the reply: the entry, its instant, balance, rate, coming
exhaustion and number of exhaustions. The verdict is made of these columns alone.

Every command that changes an account carries a `request_id` made of the run and the row, so that it takes effect once
even if it is sent again. A row has the user's number, an index of `Columns.users`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, Final

from billing.trial.loadtest.verdict import BEGUN, SUPERSEDED

TOP_UP: Final = 0  # value: nanos
RATE: Final = 1  # value: nanos a second, of the line ""
LINE_RATE: Final = 2  # value: nanos an hour, of the line named in the row
DEBIT: Final = 3  # value: nanos
READ: Final = 4
NAMES: Final = ("top_up", "set_rate", "set_rate", "debit", "get_account")

OPEN: Final = 0  # not answered
ACTIVE: Final = 1  # answered: the account is active
EXHAUSTED: Final = 2  # answered: the account is exhausted
REFUSED: Final = 3  # a debit beyond what is available
STALE: Final = 4  # a late retry of a rate, after a newer one
FAILED: Final = 5  # failed for good though it should not, or never answered

NEVER: Final = -1  # no exhaustion is coming
HOURS: Final = 3600
RUN_SHIFT: Final = 40


class Columns:
    """The commands of one run. `users`: user ids by number; `resources`: names of rate lines by number."""

    def __init__(self, run: int, users: list[str], resources: list[str] | None = None) -> None:
        self.run = run
        self.users = users
        self.resources = [""] if resources is None else resources
        self.due = array("q")  # nanoseconds after the start of the run
        self.user = array("I")
        self.kind = bytearray()
        self.value = array("q")
        self.line = array("I")
        self.state = bytearray()
        self.sent = array("q")  # boot instant of the last sending
        self.entry = array("Q")
        self.at = array("q")
        self.balance = array("q")
        self.rate = array("q")  # nanos an hour
        self.exhausts = array("q")
        self.seq = array("I")
        self.restored: dict[int, str] = {}  # row of a top-up that restored -> status of the newest cutoff in the reply
        self._ids = run << RUN_SHIFT

    def __len__(self) -> int:
        return len(self.kind)

    def add(self, due_ns: int, user: int, kind: int, value: int, line: int = 0) -> int:
        """Appends a command. Returns its row."""
        self.due.append(due_ns)
        self.user.append(user)
        self.kind.append(kind)
        self.value.append(value)
        self.line.append(line)
        return len(self.kind) - 1

    def seal(self) -> None:
        """Allocates the answer columns of all rows added until now."""
        missing = len(self.kind) - len(self.state)
        self.state.extend(bytes(missing))
        for column in (self.sent, self.at, self.balance, self.rate, self.exhausts):
            column.frombytes(bytes(8 * missing))
        self.entry.frombytes(bytes(8 * missing))
        self.seq.frombytes(bytes(self.seq.itemsize * missing))

    def request(self, row: int) -> tuple[str, list[Any]]:
        """(method, parameters) of a row's command."""
        kind, user = self.kind[row], self.users[self.user[row]]
        if kind == READ:
            return "get_account", [user]
        options: dict[str, Any] = {"request_id": (self._ids | row).to_bytes(8, "big")}
        if kind == LINE_RATE:
            options["per"] = "hour"
            options["resource"] = self.resources[self.line[row]]
            options["rate_seq"] = 1 if self.value[row] else 2
        return NAMES[kind], [user, self.value[row], options]

    def answer(self, row: int, reply: Mapping[str, Any]) -> None:
        """Stores a reply in its row. Raises KeyError or TypeError if the reply is not about an account."""
        self.at[row] = reply["at_ns"]
        self.balance[row] = reply["balance_nanos"]
        self.rate[row] = reply["rate_nanos_per_hour"]
        exhausts_at_ns = reply["exhausts_at_ns"]
        self.exhausts[row] = NEVER if exhausts_at_ns is None else exhausts_at_ns
        self.seq[row] = reply["exhaustion_seq"]
        self.entry[row] = reply["entry_id"]
        self.state[row] = ACTIVE if reply["state"] == "active" else EXHAUSTED
        if "restored" in reply and reply["restored"] and reply.get("cutoff"):
            cutoff = reply["cutoff"]
            status = cutoff["status"]
            self.restored[row] = BEGUN if status == SUPERSEDED and cutoff["attempts"] else status

    def rate_per_hour(self, row: int) -> int:
        """The rate that a row's command set, in nanos an hour."""
        return self.value[row] * HOURS if self.kind[row] == RATE else self.value[row]

    def text_of(self, row: int) -> str:
        """A row's command as text, for a message."""
        line = self.resources[self.line[row]]
        return f"{NAMES[self.kind[row]]} {self.users[self.user[row]]} {self.value[row]} {line}".rstrip()
