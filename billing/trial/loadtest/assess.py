"""Runs the model over the answered commands, and compares each answer with the model's.

The model runs when the load is over, so that it does not disturb the measurement. The commands of one account are
applied in the order of their `entry_id`. The reply to a `get_account` names the account's newest entry, and is compared
after that entry. Accounts outlive a run: the next run goes on from their state in the model.

A refused debit leaves no entry, so its place in the order is unknown. The refusal is certainly wrong if the account
always had at least the amount that was asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from billing.trial.loadtest.columns import ACTIVE, DEBIT, EXHAUSTED, NEVER, READ, REFUSED, TOP_UP, Columns
from billing.trial.loadtest.verdict import ACTIVE as ACTIVE_NAME
from billing.trial.loadtest.verdict import EXHAUSTED as EXHAUSTED_NAME
from billing.trial.loadtest.verdict import (
    HOUR_NS,
    SECONDS_MIN,
    Account,
    Expected,
    Impossible,
    View,
    differences,
    ordinal,
)

TOLD_MAX: Final = 20  # differences that are kept in words; all are counted
PROGRESS_ROWS: Final = 20_000


class Claims(NamedTuple):
    """The cutoffs that an account expects, as sent from process to process. See `verdict.Claim`."""

    user_id: str
    cutoffs: list[Expected]
    superseded: list[int]
    overtaken: set[int]


class Assessment:
    """The accounts of the model, by their numbers in the columns, and how many answers differed from the model's."""

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}
        self.wrong_replies = 0
        self.wrong_balances = 0  # replies to get_account that differ from the model
        self.wrong_refusals = 0
        self.told: list[str] = []
        self.seq_base = 0  # of the daemon, see `verdict.ordinal`; 0 until an answer has shown another one

    def apply(self, columns: Columns, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Applies all answered commands of a run to the model, and compares the answers. `on_progress`: gets the number
        of rows done.
        """
        order, starts = _by_user(columns)
        done = reported = 0
        for user in range(len(columns.users)):
            rows = order[starts[user] : starts[user + 1]]
            if rows:
                self._user(columns, user, rows)
                done += len(rows)
                if done - reported >= PROGRESS_ROWS:
                    reported = done
                    on_progress(done)
        on_progress(done)

    def settle(self, at_ns: int) -> None:
        """Lets time pass to `at_ns` for all accounts that have not reached it. No command may have come after it."""
        for account in self.accounts.values():
            if account.settled_ns < at_ns:
                account.settle(at_ns)

    def soonest_ns(self) -> int | None:
        """The instant of the next exhaustion among all accounts; None if none is coming."""
        coming = (each.view().exhausts_at_ns for each in self.accounts.values() if each.rate and not each.exhausted)
        return min((due_ns for due_ns in coming if due_ns is not None), default=None)

    def claims(self) -> list[Claims]:
        """The claims of all accounts that expect cutoffs."""
        return [
            Claims(each.user_id, list(each.cutoffs), list(each.superseded), set(each.overtaken))
            for each in self.accounts.values()
            if each.cutoffs
        ]

    def _user(self, columns: Columns, user: int, rows: Sequence[int]) -> None:
        account = self.accounts.get(user)
        if account is None:
            account = self.accounts[user] = Account(columns.users[user])
        state, entry, kind, at = columns.state, columns.entry, columns.kind, columns.at
        answered = [row for row in rows if state[row] in (ACTIVE, EXHAUSTED)]
        answered.sort(key=lambda row: (entry[row], kind[row] == READ, at[row], row))
        for row in answered:
            if not self._row(columns, account, row):
                if kind[row] == READ:
                    self.wrong_balances += 1
                else:
                    self.wrong_replies += 1
        for row in rows:
            if state[row] == REFUSED and columns.value[row] * HOUR_NS <= account.least:
                self.wrong_refusals += 1
                self._tell([f"{columns.text_of(row)} was refused, though there was always more than that"])

    def _row(self, columns: Columns, account: Account, row: int) -> bool:
        """Applies one answered command to its account. Returns whether the model's answer is the same."""
        at_ns, kind = columns.at[row], columns.kind[row]
        try:
            if kind == TOP_UP:
                account.top_up(at_ns, columns.value[row], columns.restored.get(row, ""))
            elif kind == DEBIT:
                account.debit(at_ns, columns.value[row])
            elif kind == READ:
                account.settle(at_ns)
            else:
                account.set_rate(at_ns, columns.rate_per_hour(row), columns.resources[columns.line[row]])
        except Impossible as error:
            self._tell([str(error)])
            return False
        expected = account.view()
        exhausts_at_ns, seq = columns.exhausts[row], columns.seq[row]
        if seq >= SECONDS_MIN and account.cutoffs and not self.seq_base:
            self.seq_base = seq - len(account.cutoffs)
        answered = View(
            ACTIVE_NAME if columns.state[row] == ACTIVE else EXHAUSTED_NAME,
            columns.balance[row],
            columns.rate[row],
            None if exhausts_at_ns == NEVER else exhausts_at_ns,
            ordinal(seq, self.seq_base),
        )
        if expected == answered:
            return True
        self._tell(differences(account.user_id, columns.text_of(row), expected, {**answered._asdict(), "at_ns": at_ns}))
        return False

    def _tell(self, lines: list[str]) -> None:
        self.told += lines[: max(0, TOLD_MAX - len(self.told))]


def _by_user(columns: Columns) -> tuple[array[int], array[int]]:
    """(rows sorted by user, index at which each user's rows begin). A counting sort, and stable."""
    starts = array("q", bytes(8 * (len(columns.users) + 1)))
    for user in columns.user:
        starts[user + 1] += 1
    for user in range(len(columns.users)):
        starts[user + 1] += starts[user]
    order = array("q", bytes(8 * len(columns)))
    next_index = array("q", starts)
    for row, user in enumerate(columns.user):
        order[next_index[user]] = row
        next_index[user] += 1
    return order, starts
