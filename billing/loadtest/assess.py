"""Feeds the model with what was answered, and compares each answer with it.

Answers are kept as small tuples, since a run has a million of them; the model runs when the load is over, so that it
costs the measurement nothing. Of one account the answers count in the order of their `entry_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from billing.loadtest.plan import TOP_UP, Plan
from billing.loadtest.verdict import BEGUN, SUPERSEDED, Account, Impossible, View, differences

TOLD_MAX: Final = 20  # differences kept in words; all are counted


class Answer(NamedTuple):
    """What a reply said; the fields of the view are compared, in the order of `View`."""

    entry_id: int
    at_ns: int
    state: str
    balance_nanos: int
    rate_nanos_per_hour: int
    exhausts_at_ns: int | None
    exhaustion_seq: int
    cutoff_status: str  # of the newest cutoff in a reply that restored, as `Account.top_up` takes it; else ""


def answer_of(reply: Mapping[str, Any]) -> Answer:
    """The part of a reply that is judged."""
    return Answer(
        reply["entry_id"],
        reply["at_ns"],
        reply["state"],
        reply["balance_nanos"],
        reply["rate_nanos_per_hour"],
        reply["exhausts_at_ns"],
        reply["exhaustion_seq"],
        _status(reply["cutoff"]) if reply.get("restored") and reply.get("cutoff") else "",
    )


def _status(cutoff: Mapping[str, Any]) -> str:
    status: str = cutoff["status"]
    return BEGUN if status == SUPERSEDED and cutoff["attempts"] else status


class Assessment:
    """The accounts of the model after all answers, and where an answer was another one."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.wrong_replies = 0
        self.wrong_balances = 0  # accounts whose last reading differs
        self.told: list[str] = []

    def replay(self, plan: Plan, answers: list[Answer | None], on_progress: Callable[[int], None]) -> None:
        """All answers of the steps, None where there was none."""
        by_user: dict[str, list[int]] = {user_id: [] for user_id in plan.users}
        for index, step in enumerate(plan.steps):
            if answers[index] is not None:
                by_user[step.user_id].append(index)
        done = 0
        for user_id, indexes in by_user.items():
            account = self.accounts[user_id] = Account(user_id)
            for _, index in sorted((_entry_id(answers[index]), index) for index in indexes):
                step, answer = plan.steps[index], answers[index]
                assert answer is not None
                self.wrong_replies += not self._apply(account, step.method, step.value, step.resource, answer)
            done += len(indexes)
            on_progress(done)

    def reading(self, user_id: str, answer: Answer) -> None:
        """What the account said of itself at the end."""
        account = self.accounts[user_id]
        self.wrong_balances += not self._apply(account, "get_account", 0, "", answer)

    def _apply(self, account: Account, method: str, value: int, resource: str, answer: Answer) -> bool:
        """Whether the model says the same."""
        try:
            if method == TOP_UP:
                account.top_up(answer.at_ns, value, answer.cutoff_status)
            elif method == "get_account":
                account.settle(answer.at_ns)
            else:
                account.set_rate(answer.at_ns, value, resource)
        except Impossible as error:
            self._tell([str(error)])
            return False
        expected = account.view()
        if expected == answer[2:7]:
            return True
        self._tell(differences(account.user_id, f"{method} {resource}".strip(), expected, answer._asdict()))
        return False

    def _tell(self, lines: list[str]) -> None:
        self.told += lines[: max(0, TOLD_MAX - len(self.told))]


def _entry_id(answer: Answer | None) -> int:
    assert answer is not None
    return answer.entry_id


assert Answer._fields[2:7] == View._fields
