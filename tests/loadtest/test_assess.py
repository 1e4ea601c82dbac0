"""Answers of a run against the model: the order of entries counts, and every difference is seen and named."""

from __future__ import annotations

from fractions import Fraction

from billing.loadtest.assess import TOLD_MAX, Answer, Assessment, answer_of
from billing.loadtest.plan import Plan, make_plan
from billing.loadtest.trace import Machine
from billing.loadtest.verdict import Account

MACHINES = [Machine(10 * number, f"user-{number}", f"vm-{number}", 1, Fraction(7, 4), 100) for number in range(30)]
PLAN = make_plan(MACHINES, speed=10, users_max=0, cut_s=None, dry_share=Fraction(1, 2), seed=1, suffix="")


def right_answers(plan: Plan) -> list[Answer | None]:
    """What a daemon would say that has each command at its moment."""
    accounts = {user: Account(user) for user in plan.users}
    entries = dict.fromkeys(plan.users, 0)
    answers: list[Answer | None] = []
    for step in plan.steps:
        account = accounts[step.user_id]
        if step.method == "top_up":
            account.top_up(step.due_ns, step.value)
        else:
            account.set_rate(step.due_ns, step.value, step.resource)
        entries[step.user_id] += 1
        answers.append(Answer(entries[step.user_id], step.due_ns, *account.view(), ""))
    return answers


def assessed(answers: list[Answer | None]) -> Assessment:
    assessment = Assessment()
    assessment.replay(PLAN, answers, lambda _: None)
    return assessment


def test_right_answers_are_right():
    assessment = assessed(right_answers(PLAN))
    assert (assessment.wrong_replies, assessment.told) == (0, [])
    assert sum(bool(account.cutoffs) for account in assessment.accounts.values()) == PLAN.dry == 15
    for user, account in assessment.accounts.items():
        assessment.reading(user, Answer(99, account.settled_ns, *account.view(), ""))
    assert assessment.wrong_balances == 0


def test_what_was_not_answered_did_not_happen():
    answers = right_answers(PLAN)
    last = max(index for index, step in enumerate(PLAN.steps) if step.user_id == "user-3")
    answers[last] = None
    account = assessed(answers).accounts["user-3"]
    assert account.lines == {"vm-3": account.view().rate_nanos_per_hour}


def test_one_nano_is_a_difference():
    answers = right_answers(PLAN)
    answer = answers[7]
    assert answer is not None
    answers[7] = answer._replace(balance_nanos=answer.balance_nanos + 1)
    assessment = assessed(answers)
    assert assessment.wrong_replies == 1
    step = PLAN.steps[7]
    assert assessment.told == [
        f"{step.user_id}: {f'{step.method} {step.resource}'.strip()} at {step.due_ns} answered "
        f"balance_nanos {answer.balance_nanos + 1}, expected {answer.balance_nanos}"
    ]
    account = assessment.accounts["user-0"]
    assessment.reading("user-0", Answer(99, account.settled_ns, *account.view()._replace(balance_nanos=1), ""))
    assert assessment.wrong_balances == 1


def test_the_order_of_entries_counts_and_not_that_of_sending():
    answers = right_answers(PLAN)
    first, second = [index for index, step in enumerate(PLAN.steps) if step.user_id == "user-5"][:2]
    told = [answers[first], answers[second]]
    assert None not in told
    swapped = [each._replace(entry_id=3 - each.entry_id) for each in told if each]
    answers[first], answers[second] = swapped
    assert assessed(answers).wrong_replies > 0  # a start before the first top-up, as these answers have it


def test_an_instant_that_goes_back_is_told_and_many_are_cut_short():
    answers = [answer and answer._replace(at_ns=-answer.at_ns) for answer in right_answers(PLAN)]
    assessment = assessed(answers)
    assert assessment.wrong_replies > TOLD_MAX == len(assessment.told)
    assert any("goes back" in line for line in assessment.told)


def test_what_is_kept_of_a_reply():
    reply = {
        **dict.fromkeys(Answer._fields, 1),
        "state": "active",
        "replayed": False,
        "bucket_id": 5,
        "cutoff": {"status": "superseded", "attempts": 0},
    }
    assert answer_of(reply).cutoff_status == ""  # as get_account says it: nothing was restored
    assert answer_of({**reply, "restored": True}).cutoff_status == "superseded"
    begun = {**reply, "restored": True, "cutoff": {"status": "superseded", "attempts": 1}}
    assert answer_of(begun).cutoff_status == "begun"
    delivered = {**reply, "restored": True, "cutoff": {"status": "delivered", "attempts": 1}}
    assert answer_of(delivered).cutoff_status == "delivered"
