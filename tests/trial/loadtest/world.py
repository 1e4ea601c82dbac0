"""A daemon that is right, for tests of what judges one: it answers columns by the model, and can be made wrong."""

from __future__ import annotations

from billing.trial.loadtest.columns import ACTIVE, DEBIT, EXHAUSTED, NEVER, READ, REFUSED, TOP_UP, Columns
from billing.trial.loadtest.verdict import Account, Impossible

COIN = 10**9
START_NS = 10**18


def answer_rightly(columns: Columns, accounts: dict[int, Account] | None = None) -> dict[int, Account]:
    """Fills in what a right daemon would have said that carries out each row at its moment; the accounts after it."""
    columns.seal()
    accounts = {} if accounts is None else accounts
    entries: dict[int, int] = {}
    for row in range(len(columns)):
        user, kind, at_ns = columns.user[row], columns.kind[row], START_NS + columns.due[row]
        account = accounts.setdefault(user, Account(columns.users[user]))
        try:
            if kind == TOP_UP:
                account.top_up(at_ns, columns.value[row])
            elif kind == DEBIT:
                account.debit(at_ns, columns.value[row])
            elif kind == READ:
                account.settle(at_ns)
            else:
                account.set_rate(at_ns, columns.rate_per_hour(row), columns.resources[columns.line[row]])
        except Impossible:
            columns.state[row] = REFUSED
            continue
        view = account.view()
        if kind != READ:
            entries[user] = entries.get(user, 0) + 1
        columns.entry[row] = entries.get(user, 0)
        columns.at[row] = at_ns
        columns.state[row] = ACTIVE if view.state == "active" else EXHAUSTED
        columns.balance[row] = view.balance_nanos
        columns.rate[row] = view.rate_nanos_per_hour
        columns.exhausts[row] = NEVER if view.exhausts_at_ns is None else view.exhausts_at_ns
        columns.seq[row] = view.exhaustion_seq
    return accounts
